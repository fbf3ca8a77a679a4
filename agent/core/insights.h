/* SPDX-License-Identifier: Apache-2.0 */
/* What to look for in the statements of a database: slow, repeated, costly ones, idle transactions, hot keys.
 *
 * All of it lies within fixed tables that are made with the first statement: what finds no place is not told. */
#pragma once
#include "pairing.h"

struct insights;

/* A statement's span is about to be made: looks at it, and marks it, if it was slow. */
void insights_statement(struct core *core, const struct pending *p, uint64_t end_ktime, struct builder *attributes);
/* What an answer said of the connection's transaction. */
void insights_transaction(struct core *core, struct connection *c, enum transaction state, uint64_t ktime_ns);
/* Transactions that nobody has used for too long. */
void insights_sweep(struct core *core);
void insights_forget(struct core *core, struct connection *c);
void insights_free(struct core *core);
