/* SPDX-License-Identifier: Apache-2.0 */
/* placeholder of the sql branch: replaced at its merge */
#pragma once
#include "text.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
enum sql_dialect { SQL_POSTGRESQL, SQL_MYSQL };
enum sql_limits { SQL_TEXT_MAX = 4096, SQL_SUMMARY_MAX = 255 };
struct sql_text {
    bool safe, cut, parameterized;
    uint32_t statements;
    uint32_t text_size, summary_size;
    uint64_t shape;
    struct text traceparent;
};
void sql_read(const uint8_t *bytes, size_t length, bool complete, enum sql_dialect dialect, bool keep, char *text,
              char *summary, struct sql_text *out);
