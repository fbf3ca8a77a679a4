#include "sql.h"
#include <string.h>
void sql_read(const uint8_t *bytes, size_t length, bool complete, enum sql_dialect dialect, bool keep, char *text,
              char *summary, struct sql_text *out)
{
    (void)dialect, (void)keep;
    memset(out, 0, sizeof *out);
    out->safe = true, out->cut = !complete, out->statements = 1;
    out->text_size = (uint32_t)(length < SQL_TEXT_MAX ? length : SQL_TEXT_MAX);
    memcpy(text, bytes, out->text_size);
    const uint8_t *space = memchr(bytes, ' ', length);
    out->summary_size = (uint32_t)(space ? space - bytes : (long)length);
    if (out->summary_size > SQL_SUMMARY_MAX) out->summary_size = SQL_SUMMARY_MAX;
    memcpy(summary, bytes, out->summary_size);
    out->shape = 1;
}
