/* SPDX-License-Identifier: Apache-2.0 */
/* Reads compressed frames with zlib and libzstd; see compression.h. */
#include "compression.h"
#include "engine.h"
#include <zlib.h>
#include <zstd.h>

/* What a frame at level 19 asks for. Level 3 is the default of MySQL: 2 MiB. */
#define ZSTD_WINDOW_LOG_MAX 23

struct inflater {
    z_stream zlib;
    ZSTD_DStream *zstd; /* NULL: zlib it is */
    size_t zstd_bytes;
    uint8_t began; /* so many bytes of zstd's magic number have come */
    bool ended;
};

/* zlib asks for memory through these: behind the size, which it does not say again. */
enum { SIZE_BEFORE = 16 };

static void *zlib_allocate(void *core, unsigned count, unsigned size)
{
    size_t wanted = SIZE_BEFORE + (size_t)count * size;
    uint8_t *memory = core_allocate(core, NULL, 0, wanted);
    if (memory == NULL)
        return NULL;
    memcpy(memory, &wanted, sizeof wanted);
    ((struct core *)core)->inflaters_bytes += wanted;
    return memory + SIZE_BEFORE;
}

static void zlib_release(void *core, void *memory)
{
    size_t size;
    memcpy(&size, (uint8_t *)memory - SIZE_BEFORE, sizeof size);
    ((struct core *)core)->inflaters_bytes -= size;
    core_allocate(core, (uint8_t *)memory - SIZE_BEFORE, size, 0);
}

/* zstd allocates by itself, and tells how much. */
static void zstd_charge(struct core *core, struct inflater *i, size_t bytes)
{
    core->stats.memory_bytes += bytes - i->zstd_bytes;
    core->inflaters_bytes += bytes - i->zstd_bytes;
    i->zstd_bytes = bytes;
}

static void inflater_free(struct core *core, struct inflater *i)
{
    if (i == NULL)
        return;
    inflateEnd(&i->zlib);
    zstd_charge(core, i, 0);
    ZSTD_freeDStream(i->zstd);
    core->inflaters_bytes -= sizeof *i;
    core_allocate(core, i, sizeof *i, 0);
}

/* NULL when memory is short, or the cap is reached. */
static struct inflater *inflater_new(struct core *core, enum compression algorithm)
{
    if (core->inflaters_bytes >= core->config.buffer_bytes_max)
        return NULL;
    struct inflater *i = core_allocate(core, NULL, 0, sizeof *i);
    if (i == NULL)
        return NULL;
    core->inflaters_bytes += sizeof *i;
    bool ready;
    if (algorithm == COMPRESSION_ZSTD) {
        i->zstd = ZSTD_createDStream();
        ready = i->zstd && !ZSTD_isError(ZSTD_DCtx_setParameter(i->zstd, ZSTD_d_windowLogMax, ZSTD_WINDOW_LOG_MAX));
    } else {
        i->zlib = (z_stream){.zalloc = zlib_allocate, .zfree = zlib_release, .opaque = core};
        ready = inflateInit(&i->zlib) == Z_OK;
    }
    if (ready)
        return i;
    inflater_free(core, i);
    return NULL;
}

/* Fills core->inflated as far as it can; -1: the bytes are not what the algorithm makes. */
static ssize_t zlib_inflate(struct core *core, struct inflater *i, const uint8_t *bytes, size_t n, size_t *used)
{
    i->zlib.next_in = (uint8_t *)bytes;
    i->zlib.avail_in = (unsigned)n;
    i->zlib.next_out = core->inflated;
    i->zlib.avail_out = INFLATED_AT_ONCE;
    int status = inflate(&i->zlib, Z_NO_FLUSH);
    *used = n - i->zlib.avail_in;
    i->ended = status == Z_STREAM_END;
    bool fine = status == Z_OK || status == Z_STREAM_END || status == Z_BUF_ERROR; /* the last: it wants more bytes */
    return fine ? (ssize_t)(INFLATED_AT_ONCE - i->zlib.avail_out) : -1;
}

/* The library would read formats of before 2016, too, which no server sends. */
static ssize_t zstd_inflate(struct core *core, struct inflater *i, const uint8_t *bytes, size_t n, size_t *used)
{
    static const uint8_t magic[] = {0x28, 0xb5, 0x2f, 0xfd}; /* RFC 8878, 3.1.1 */
    for (size_t at = 0; at < n && i->began < sizeof magic; at++)
        if (bytes[at] != magic[i->began++])
            return -1;
    ZSTD_inBuffer in = {bytes, n, 0};
    ZSTD_outBuffer out = {core->inflated, INFLATED_AT_ONCE, 0};
    size_t status = ZSTD_decompressStream(i->zstd, &out, &in);
    zstd_charge(core, i, ZSTD_sizeof_DStream(i->zstd));
    *used = in.pos;
    i->ended = status == 0;
    return ZSTD_isError(status) ? -1 : (ssize_t)out.pos;
}

struct compressed *compression_new(struct core *core, const struct protocol *protocol,
                                   enum compression algorithm)
{
    if (core->inflated == NULL)
        core->inflated = core_allocate(core, NULL, 0, INFLATED_AT_ONCE);
    struct compressed *compressed = core->inflated ? core_allocate(core, NULL, 0, sizeof *compressed) : NULL;
    if (compressed)
        *compressed = (struct compressed){.protocol = protocol, .algorithm = algorithm};
    return compressed;
}

void compression_reset(struct core *core, struct compressed *compressed, unsigned direction)
{
    inflater_free(core, compressed->frames[direction].inflater);
    compressed->frames[direction] = (struct frames){.in_turn = compressed->frames[direction].in_turn};
}

void compression_free(struct core *core, struct compressed *compressed)
{
    if (compressed == NULL)
        return;
    for (unsigned i = 0; i < 2; i++)
        compression_reset(core, compressed, i);
    core_allocate(core, compressed, sizeof *compressed, 0);
}

static struct inflated refused(bool excessive)
{
    return (struct inflated){.status = PARSE_INVALID, .excessive = excessive};
}

/* The header, as much of it as there is. */
static struct inflated read_header(struct compressed *compressed, struct frames *f, const uint8_t *bytes, size_t n,
                                   uint64_t pos, uint64_t ktime_ns)
{
    size_t wanted = compressed->protocol->frame_header - f->had, there = n < wanted ? n : wanted;
    if (f->had == 0) {
        f->pos = pos;
        f->ktime_ns = ktime_ns;
    }
    memcpy(f->header + f->had, bytes, there);
    f->had += (uint8_t)there;
    struct frame frame;
    if (there == wanted && !compressed->protocol->frame(f->header, &frame))
        return refused(false);
    if (there == wanted) {
        f->sent = frame.size;
        f->held = frame.inflated ? frame.inflated : frame.size;
        f->compressed = frame.inflated;
    }
    return (struct inflated){.used = there};
}

/* The payload of a frame that is compressed. */
static struct inflated inflate_payload(struct core *core, struct compressed *compressed, struct frames *f,
                                       const uint8_t *bytes, size_t n)
{
    struct inflated got = {.bytes = core->inflated};
    if (f->inflater == NULL)
        f->inflater = inflater_new(core, compressed->algorithm);
    if (f->inflater == NULL || f->in_turn >= INFLATED_MAX)
        return refused(true);
    ssize_t size = compressed->algorithm == COMPRESSION_ZSTD ? zstd_inflate(core, f->inflater, bytes, n, &got.used)
                                                             : zlib_inflate(core, f->inflater, bytes, n, &got.used);
    if (size < 0 || size > f->held || (f->inflater->ended && (size < f->held || got.used < f->sent)))
        return refused(false);
    got.size = (size_t)size;
    got.more = size == INFLATED_AT_ONCE && !f->inflater->ended;
    f->in_turn += (uint32_t)size;
    bool stuck = !got.more && !f->inflater->ended && (got.used < n || n == f->sent);
    return stuck ? refused(false) : got;
}

static struct inflated read_payload(struct core *core, struct compressed *compressed, unsigned direction,
                                    const uint8_t *bytes, size_t n, uint64_t ktime_ns)
{
    struct frames *f = &compressed->frames[direction];
    n = n < f->sent ? n : f->sent;
    struct inflated got = {.bytes = bytes, .used = n, .size = n};
    if (f->compressed)
        got = inflate_payload(core, compressed, f, bytes, n);
    got.pos = f->pos + f->given;
    got.ktime_ns = f->given ? ktime_ns : f->ktime_ns;
    f->sent -= (uint32_t)got.used;
    f->held -= (uint32_t)got.size;
    f->given += (uint32_t)got.size;
    if (f->sent == 0 && !got.more && got.status == PARSE_OK)
        compression_reset(core, compressed, direction);
    return got;
}

struct inflated compression_read(struct core *core, struct compressed *compressed, unsigned direction,
                                 const uint8_t *bytes, size_t n, uint64_t pos, uint64_t ktime_ns)
{
    struct frames *f = &compressed->frames[direction];
    compressed->frames[!direction].in_turn = 0;
    if (f->passes)
        return compression_hole(core, compressed, direction, n);
    if (f->had < compressed->protocol->frame_header)
        return read_header(compressed, f, bytes, n, pos, ktime_ns);
    return read_payload(core, compressed, direction, bytes, n, ktime_ns);
}

uint32_t compression_pass(struct compressed *compressed, unsigned direction, uint64_t unneeded)
{
    struct frames *f = &compressed->frames[direction];
    f->passes = f->sent && unneeded >= f->held;
    return f->passes ? f->sent : 0;
}

struct inflated compression_hole(struct core *core, struct compressed *compressed, unsigned direction, uint64_t n)
{
    struct frames *f = &compressed->frames[direction];
    if (!f->passes)
        return refused(false);
    n = n < f->sent ? n : f->sent;
    f->sent -= (uint32_t)n;
    struct inflated got = {.used = n, .passed = f->sent ? 0 : f->held};
    if (f->sent == 0)
        compression_reset(core, compressed, direction);
    return got;
}
