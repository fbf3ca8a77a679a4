/* SPDX-License-Identifier: Apache-2.0 */
/* What the first bytes of a stream, or of a call behind a loss, begin. */
#pragma once
#include "feed.h"

/* Which protocol? Asked of the first bytes, those that were kept with them. False: not known yet, or none. */
bool recognize(struct feed *f, const uint8_t *bytes, size_t n);
/* In a stream that lost its place: do these bytes, the first of a call, begin a message? */
bool recognize_again(struct feed *f, const uint8_t *bytes, size_t n);
