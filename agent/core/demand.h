/* SPDX-License-Identifier: Apache-2.0 */
/* Tells the kernel side what a connection's directions need from now on (struct demand). */
#pragma once
#include "connection.h"

#define DEMAND_SKIP_MIN 8192 /* what is shorter has come before the kernel side could read the demand */

/* Bytes before this position need not be copied; UINT64_MAX: none of this direction any more. */
void demand_skip(struct core *core, const struct connection *c, unsigned direction, uint64_t skip_to);
void demand_mode(struct core *core, const struct connection *c, unsigned direction, enum demand_mode mode);
/* PROTOCOL_UNKNOWN ends the copying in both directions for good. */
void demand_protocol(struct core *core, const struct connection *c, uint8_t protocol);
