/* SPDX-License-Identifier: Apache-2.0 */
/* From bytes in order to messages: what the parser is shown, and what its steps mean for the connection. */
#pragma once
#include "feed.h"

/* These bytes to the parser, behind those that are kept. How many of them were read, or are kept. */
size_t messages_read(struct feed *f, const uint8_t *bytes, size_t n, uint64_t base, uint64_t ktime_ns);
/* n bytes of those that nobody needs have come, or are known to be missing. */
void messages_pass_over(struct feed *f, uint64_t n);
/* Not a message: look for the next start. What was held back is not ours. */
void messages_refuse(struct feed *f);
/* The connection is none of ours to read, though its protocol may be known. */
void messages_decline(struct feed *f, enum ledger_class as);
/* The bytes that are kept were counted as parsed when they came: count them as `as` instead. */
void messages_disown(struct feed *f, enum ledger_class as);
