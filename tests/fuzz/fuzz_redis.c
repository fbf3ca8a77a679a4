/* SPDX-License-Identifier: Apache-2.0 */
/* libFuzzer target over the Redis parser: see conversation.h. */
#include "conversation.h"

extern const struct protocol redis_protocol;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    return converse(&redis_protocol, 6379, false, data, size);
}
