/* SPDX-License-Identifier: Apache-2.0 */
/* libFuzzer target over the PostgreSQL parser: see conversation.h. */
#include "conversation.h"

extern const struct protocol postgresql_protocol;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    return converse(&postgresql_protocol, 5432, false, data, size);
}
