/* SPDX-License-Identifier: Apache-2.0 */
/* Connections by their address tuple: finds the other end of one, on this host. */
#pragma once
#include "connection.h"

void tuple_insert(struct core *core, struct connection *c);
void tuple_remove(struct core *core, struct connection *c);
/* The connections whose tuple may be the mirror image of this one's; walk on with ->tuple_next. A
 * candidate must still be compared by tuple_mirrors(): the table knows hashes. */
struct connection *tuple_partners(struct core *core, const struct connection *c);
/* The same addresses and ports, exchanged; of loopback addresses only within one network namespace. */
bool tuple_mirrors(const struct connection *a, const struct connection *b);
