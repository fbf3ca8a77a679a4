/* SPDX-License-Identifier: Apache-2.0 */
/* Attributes, names and outcomes of database operations; see database.h. */
#include "database.h"
#include "exchange.h"
#include <string.h>

static void add_text(struct builder *b, enum attribute_key key, struct text value, size_t limit)
{
    builder_text(b, key, value.bytes, value.length, limit);
}

static struct text text_at(const char *bytes, size_t length)
{
    return (struct text){(const uint8_t *)bytes, length};
}

/* --- request ---------------------------------------------------------------------------------------- */

static void place(uint16_t usual_port, const struct parse_context *context, struct builder *b)
{
    bool client = context->kind == KIND_CLIENT;
    char server[ADDRESS_MAX], peer[ADDRESS_MAX];
    if (context->transport == TRANSPORT_UNIX) {
        struct text path = socket_path(context, server);
        add_text(b, KEY_NETWORK_TRANSPORT, TEXT("unix"), 4);
        if (path.length) {
            add_text(b, KEY_SERVER_ADDRESS, path, path.length);
            if (client)
                add_text(b, KEY_NETWORK_PEER_ADDRESS, path, path.length);
        }
        return;
    }
    uint16_t port = client ? context->remote_port : context->local_port;
    size_t size = address_text(server, client ? context->remote_address : context->local_address);
    add_text(b, KEY_SERVER_ADDRESS, text_at(server, size), size);
    if (port != usual_port)
        builder_int(b, KEY_SERVER_PORT, port);
    size = address_text(peer, context->remote_address);
    add_text(b, KEY_NETWORK_PEER_ADDRESS, text_at(peer, size), size);
    builder_int(b, KEY_NETWORK_PEER_PORT, context->remote_port);
}

void database_attributes(struct text system, struct text name, uint16_t port, const struct parse_context *context,
                         struct builder *b)
{
    add_text(b, KEY_DB_SYSTEM_NAME, system, system.length);
    if (name.length)
        add_text(b, KEY_DB_NAMESPACE, name, DATABASE_NAME_MAX);
    place(port, context, b);
}

const struct statement *database_sql(const struct parse_context *context, const uint8_t *sql, size_t length,
                                     bool complete, enum sql_dialect dialect, enum sql_backslash backslash)
{
    struct sql_source source = {.bytes = sql, .length = length, .complete = complete, .dialect = dialect,
                                .backslash = backslash,
                                .keep_parameterized = context->options->query_text == QUERY_TEXT_PARAMETERIZED};
    return statement_of(context->statements, &source);
}

void database_statement(const struct statement *statement, const struct parse_context *context, struct step *step,
                        struct builder *b)
{
    if (statement == NULL)
        return;
    step->shape = statement->shape;
    step->exact = statement->exact;
    step->traits |= statement->traits;
    if (statement->text_size && context->options->query_text != QUERY_TEXT_OFF)
        builder_lines(b, KEY_DB_QUERY_TEXT, statement->text, statement->text_size, SQL_TEXT_MAX);
    if (statement->summary_size)
        add_text(b, KEY_DB_QUERY_SUMMARY, text_at(statement->summary, statement->summary_size), SQL_SUMMARY_MAX);
    if (statement->statements > 1)
        builder_int(b, KEY_DB_OPERATION_BATCH_SIZE, statement->statements);
}

/* --- response --------------------------------------------------------------------------------------- */

void database_status(struct text code, bool failed, struct builder *b)
{
    add_text(b, KEY_DB_RESPONSE_STATUS_CODE, code, DATABASE_CODE_MAX);
    if (failed)
        add_text(b, KEY_ERROR_TYPE, code, DATABASE_CODE_MAX);
}

/* --- both together ---------------------------------------------------------------------------------- */

static bool found_int(const struct exchange *exchange, enum attribute_key key, int64_t *value)
{
    const struct attribute *a = attribute_find(exchange->attributes, exchange->attributes_size, key);
    if (a)
        memcpy(value, a + 1, sizeof(*value));
    return a != NULL;
}

static void name_add(struct finished *out, struct text t)
{
    size_t room = sizeof(out->name) - out->name_size;
    size_t size = text_clean(out->name + out->name_size, room, t.bytes, t.length);
    out->name_size += (uint32_t)size;
}

/* {db.query.summary}, or {db.operation.name} {target}, or {target}, or {db.system.name} */
static void name_of(const struct exchange *exchange, struct finished *out)
{
    static const enum attribute_key targets[] = {KEY_DB_COLLECTION_NAME, KEY_DB_STORED_PROCEDURE_NAME,
                                                 KEY_DB_NAMESPACE, KEY_SERVER_ADDRESS};
    struct text summary = exchange_text(exchange, KEY_DB_QUERY_SUMMARY);
    struct text operation = exchange_text(exchange, KEY_DB_OPERATION_NAME), target = TEXT("");
    bool redis = text_is(exchange_text(exchange, KEY_DB_SYSTEM_NAME), "redis");
    for (size_t i = 0; target.length == 0 && i < sizeof targets / sizeof *targets; i++)
        if (!redis || targets[i] == KEY_DB_STORED_PROCEDURE_NAME) /* a number of a database says nothing */
            target = exchange_text(exchange, targets[i]);
    if (summary.length) {
        name_add(out, summary);
        return;
    }
    name_add(out, operation);
    if (operation.length && target.length)
        name_add(out, TEXT(" "));
    name_add(out, target);
    if (out->name_size == 0)
        name_add(out, exchange_text(exchange, KEY_DB_SYSTEM_NAME));
}

void database_finish(const struct exchange *exchange, struct finished *out, struct builder *attributes)
{
    int64_t number;
    struct text error = outcome_text(exchange->outcome);
    bool told = exchange_text(exchange, KEY_ERROR_TYPE).length > 0;
    name_of(exchange, out);
    out->status = exchange->failed || error.length ? STATUS_ERROR : STATUS_UNSET;
    if (error.length && !told)
        add_text(attributes, KEY_ERROR_TYPE, error, error.length);
    if (exchange->batch > 1 && !found_int(exchange, KEY_DB_OPERATION_BATCH_SIZE, &number))
        builder_int(attributes, KEY_DB_OPERATION_BATCH_SIZE, exchange->batch);
    if (exchange->kind != KIND_CLIENT) {
        out->metric = METRIC_COUNT;
        return;
    }
    out->metric = METRIC_DB_CLIENT_DURATION;
    if (found_int(exchange, KEY_DB_RESPONSE_RETURNED_ROWS, &number)) {
        out->value_metric = METRIC_DB_RETURNED_ROWS;
        out->value = (double)number;
    }
}
