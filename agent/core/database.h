/* SPDX-License-Identifier: Apache-2.0 */
/* What a span says of a database operation, whatever protocol carried it.
 *
 * https://github.com/open-telemetry/semantic-conventions/blob/v1.44.0/docs/db/database-spans.md and the pages of
 * PostgreSQL, MySQL, MariaDB and Redis beside it. */
#pragma once
#include "protocol.h"
#include "statements.h"
#include "text.h"

enum database_limits {
    DATABASE_NAME_MAX = 128, /* bytes of a namespace that are told; identifiers are shorter */
    DATABASE_CODE_MAX = 64,  /* of a status code */
};

/* db.system.name, db.namespace (empty: not known), where the server is; `port`: the system's own, which is not told. */
void database_attributes(struct text system, struct text name, uint16_t port, const struct parse_context *context,
                         struct builder *b);
/* db.query.text as the options want it, db.query.summary. NULL: not known, nothing is told. Sets the shape, exact
 * and traits of the step. */
void database_statement(const struct statement *statement, const struct parse_context *context, struct step *step,
                        struct builder *b);
/* The statement of these bytes, by the options; see statement_of() and struct sql_source. */
const struct statement *database_sql(const struct parse_context *context, const uint8_t *sql, size_t length,
                                     bool complete, enum sql_dialect dialect, enum sql_backslash backslash);
/* db.response.status_code, and error.type if the operation failed. */
void database_status(struct text code, bool failed, struct builder *b);

/* protocol.finish of every database: the name by the rule of the conventions, error.type of an exchange that was
 * not answered, db.operation.batch.size, and the metrics. */
void database_finish(const struct exchange *exchange, struct finished *out, struct builder *attributes);
