/* SPDX-License-Identifier: Apache-2.0 */
/* libFuzzer target over the MySQL parser: see conversation.h. */
#include "conversation.h"

extern const struct protocol mysql_protocol;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    return converse(&mysql_protocol, 3306, true, data, size);
}
