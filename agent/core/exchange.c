/* SPDX-License-Identifier: Apache-2.0 */
/* See exchange.h. */
#include "exchange.h"

struct text socket_path(const struct parse_context *context, char out[ADDRESS_MAX])
{
    size_t size = context->path_size < ADDRESS_MAX ? context->path_size : ADDRESS_MAX;
    if (context->transport != TRANSPORT_UNIX || size == 0)
        return TEXT("");
    memcpy(out, context->path, size);
    if (out[0] == '\0')
        out[0] = '@';
    else
        size = strnlen(out, size);
    return (struct text){(const uint8_t *)out, size};
}

struct text peer_address(const struct parse_context *context, char out[ADDRESS_MAX])
{
    if (context->transport != TRANSPORT_UNIX)
        return (struct text){(const uint8_t *)out, address_text(out, context->remote_address)};
    return context->kind == KIND_CLIENT ? socket_path(context, out) : TEXT("");
}

struct text exchange_text(const struct exchange *exchange, enum attribute_key key)
{
    const struct attribute *a = attribute_find(exchange->attributes, exchange->attributes_size, key);
    return a == NULL ? TEXT("") : (struct text){(const uint8_t *)(a + 1), a->size};
}

struct text outcome_text(enum outcome outcome)
{
    switch (outcome) {
    case OUTCOME_CLOSED:
        return TEXT("connection_closed");
    case OUTCOME_RESET:
        return TEXT("connection_reset");
    case OUTCOME_TIMEOUT:
        return TEXT("timeout");
    case OUTCOME_ANSWERED:
        break;
    }
    return TEXT("");
}
