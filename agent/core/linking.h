/* SPDX-License-Identifier: Apache-2.0 */
/* Which trace and parent a request belongs to. An orphan is better than a wrong parent. */
#pragma once
#include "pairing.h"

/* Sets trace, parent, flags and link of a new request, from what was read off the wire and from the
 * two links that are certain; draws new ids otherwise. */
void link_request(struct core *core, struct pending *p, const struct trace_context *context);
/* The request is open on the thread that read it, until link_close(). Server requests only. */
void link_open(struct core *core, struct pending *p);
void link_close(struct core *core, struct pending *p);
