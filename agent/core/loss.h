/* SPDX-License-Identifier: Apache-2.0 */
/* What it means for the requests that wait when something of their connection was not seen. */
#pragma once
#include "connection.h"

/* A record's totals of lost chunks, before the record itself is handled. `chunk`: it is one, of this
 * direction; NULL: an end of the connection. True: should a request begin with this record, its client
 * does not wait for answers. */
bool loss_told(struct core *core, struct connection *c, const uint32_t unsent[2], uint32_t shed,
               const struct chunk_event *chunk);
/* Bytes of the answering direction were not seen, or not understood: anything that waits may have been
 * answered in them, but for the exchange whose answer is being read. */
void loss_of_answers(struct core *core, struct connection *c);
/* The same of requests: more may have been asked than is known. `told`: loss_told() has drawn its conclusions. */
void loss_of_requests(struct core *core, struct connection *c, bool told);
/* A request that was seen, or bytes that may be of one, get no place in the queue: nor does what is asked behind
 * them, before their answer. */
void loss_of_place(struct connection *c);
/* A request begins that may stand behind one that was lost, and is due too. */
void loss_overtaken(struct connection *c);
/* A request begins: what became of those before it? */
void loss_before_request(struct core *core, struct connection *c);
/* An answer whose end was not seen is complete when something else follows it. */
void loss_finish_unseen(struct core *core, struct connection *c);
