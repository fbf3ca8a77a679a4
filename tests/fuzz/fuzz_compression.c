/* SPDX-License-Identifier: Apache-2.0 */
/* Fuzz target over compressed frames: any bytes, in pieces of any size, some passed over.
 *
 *   input   algorithm and whether bytes are passed over (1 byte), seed of the pieces (2), frames
 *
 * What frames hold does not depend on where calls end; a call takes no more bytes than there are, gives no more
 * than it says, and goes on. */
#include "../../agent/core/compression.h"
#include "../../agent/core/engine.h"
#include <stdlib.h>

enum { ZSTD = 1, PASSES = 2 };

struct told {
    uint64_t digest, size, passed;
    bool refused, excessive;
    bool between; /* frames, at the end */
};

static bool frame(const uint8_t *header, struct frame *frame)
{
    *frame = (struct frame){.size = header[0] | (uint32_t)header[1] << 8 | (uint32_t)header[2] << 16,
                            .inflated = header[4] | (uint32_t)header[5] << 8 | (uint32_t)header[6] << 16};
    return frame->size > 0;
}

static void check(bool holds)
{
    if (!holds)
        abort();
}

/* A sequence of pieces of 1 to 63 bytes; seed 0: all at once. */
static size_t piece(uint32_t *seed, size_t left)
{
    if (*seed == 0)
        return left;
    *seed = *seed * 1103515245 + 12345;
    size_t n = 1 + (*seed >> 16) % 63;
    return n < left ? n : left;
}

static struct told run(struct core *core, enum compression algorithm, bool passes, uint32_t seed,
                       const uint8_t *data, size_t size)
{
    static const struct protocol protocol = {.frame = frame, .frame_header = 7};
    struct compressed *compressed = compression_new(core, &protocol, algorithm);
    struct told told = {.digest = 14695981039346656037ULL};
    for (size_t at = 0; at < size && !told.refused;) {
        size_t n = piece(&seed, size - at), used = 0;
        bool more = false;
        while ((used < n || more) && !told.refused) {
            struct inflated got = compression_read(core, compressed, 0, data + at + used, n - used, at + used, at);
            told.refused = got.status != PARSE_OK;
            told.excessive = got.excessive;
            if (told.refused)
                break;
            check(got.used <= n - used && (got.used || got.size || got.passed || more));
            check(got.size <= INFLATED_AT_ONCE || got.size <= n - used);
            for (size_t i = 0; i < got.size; i++)
                told.digest = (told.digest ^ got.bytes[i]) * 1099511628211ULL;
            told.size += got.size;
            told.passed += got.passed;
            used += got.used;
            more = got.more;
            if (passes && !more)
                check(compression_pass(compressed, 0, UINT32_MAX) == compressed->frames[0].sent);
        }
        at += n;
    }
    told.between = compressed->frames[0].had == 0;
    compression_free(core, compressed);
    check(core->inflaters_bytes == 0);
    return told;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct core core = {.config.buffer_bytes_max = 1 << 20};
    if (size < 3)
        return 0;
    enum compression algorithm = data[0] & ZSTD ? COMPRESSION_ZSTD : COMPRESSION_ZLIB;
    bool passes = data[0] & PASSES;
    uint32_t seed = 1 + (data[1] | (uint32_t)data[2] << 8);
    struct told whole = run(&core, algorithm, passes, 0, data + 3, size - 3);
    struct told pieces = run(&core, algorithm, passes, seed, data + 3, size - 3);
    /* How much of a frame is passed over depends on how much of it was inflated at once; so does what is seen of a
     * broken one, and whether a cap is reached. */
    if (whole.refused || pieces.refused)
        check(passes || whole.excessive || pieces.excessive || whole.refused == pieces.refused);
    else if (passes)
        check(!whole.between || whole.size + whole.passed == pieces.size + pieces.passed);
    else
        check(whole.size == pieces.size && whole.digest == pieces.digest);
    core_allocate(&core, core.inflated, INFLATED_AT_ONCE, 0);
    check(core.stats.memory_bytes == 0);
    return 0;
}
