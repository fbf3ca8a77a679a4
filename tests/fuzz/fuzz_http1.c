/* SPDX-License-Identifier: Apache-2.0 */
/* libFuzzer target over the HTTP/1 parser: both senders, windows that grow as streams do.
 *
 *   input   sender and side, hint, seed of the pieces (4 bytes), then the stream
 *
 * Beside the checks of ../core/checked.h: it ends; what was read of a window is read of that part alone
 * and of any longer window; a resync is inside; a finished span's attributes are well formed. */
#include "checked.h"

extern const struct protocol http1_protocol;

static const char *const methods[] = {"GET", "POST", "HEAD", "CONNECT"};
static const char *const secrets[] = {"sig", "Signature"};
static const char *const captured[] = {"accept", "x-a"};
static const struct protocol_options options = {
    .route_heuristic = 1, .routes_max = 8, .redact_count = 2, .redact_keys = secrets, .method_count = 4,
    .methods = methods, .request_header_count = 2, .request_headers = captured, .response_header_count = 2,
    .response_headers = captured};
static const uint8_t local[16] = {0x20, 1, 0xd, 0xb8, [15] = 1};
static const uint8_t remote[16] = {[10] = 0xff, [11] = 0xff, [12] = 192, [15] = 7};

static uint64_t list_memory[2][LIST_CAPACITY / 8];

static struct builder list(int which)
{
    return (struct builder){.data = (uint8_t *)list_memory[which], .capacity = LIST_CAPACITY};
}

static void finish(struct routes *routes, const struct parse_context *context, const struct step *step,
                   const struct builder *attributes)
{
    struct exchange exchange = {.kind = context->kind, .outcome = (enum outcome)(step->skip % 4),
                                .responded = context->sender == SENDER_SERVER, .status = step->status,
                                .request_body = -1, .response_body = (int64_t)(step->body >> 1),
                                .options = &options, .attributes = attributes->data,
                                .attributes_size = attributes->size, .routes = routes};
    struct finished out = {0};
    struct builder more = list(1);
    http1_protocol.finish(&exchange, &out, &more);
    CHECK(out.name_size <= sizeof out.name && utf8_without_controls((uint8_t *)out.name, out.name_size, false));
    check_list(&more);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 4 || size > WINDOW_LIMIT)
        return 0;
    struct parse_context context = {
        .sender = data[0] & 1 ? SENDER_SERVER : SENDER_CLIENT,
        .kind = data[0] & 2 ? KIND_SERVER : KIND_CLIENT,
        .hint = data[1] % 4,
        .local_address = local, .remote_address = remote, .local_port = 80, .remote_port = 65535,
        .options = &options,
    };
    bool use_seen = data[0] & 4;
    uint32_t seed = (uint32_t)(data[2] | data[3] << 8) | 1;
    data += 4;
    size -= 4;
    uint64_t state[STREAM_STATE_SIZE / 8] = {0}, again[STREAM_STATE_SIZE / 8];
    struct routes *routes = routes_new(options.routes_max);
    size_t at = 0, length = 0, seen = 0;
    while (at < size) {
        seed = seed * 1664525 + 1013904223;
        length += 1 + (seed >> 16) % ((seed >> 8) % 4 ? 16 : 4096);
        if (length > size - at)
            length = size - at;
        struct cursor in = cursor_over(guarded(data + at, length, seed & 1), length);
        struct builder attributes = list(0), others = list(1);
        struct step step, other;
        in.seen = use_seen ? seen : 0;
        memcpy(again, state, sizeof state);
        enum parse_status status = checked_parse(&http1_protocol, &in, &context, state, &step, &attributes);
        if (status == PARSE_INVALID)
            break;
        if (status == PARSE_NEED_MORE) {
            if (length == size - at)
                break;
            seen = length;
            continue;
        }
        size_t consumed = (size_t)(in.at - in.start);
        bool empty_lines = !step.begins && !step.ends && !step.skip; /* takes as many as there are */
        for (int part = 0; part < 2 && !empty_lines; part++) {
            uint64_t copy[STREAM_STATE_SIZE / 8];
            size_t window = part ? size - at : consumed;
            struct cursor shorter = cursor_over(guarded(data + at, window, false), window);
            memcpy(copy, again, sizeof copy);
            CHECK(checked_parse(&http1_protocol, &shorter, &context, copy, &other, &others) == PARSE_OK);
            CHECK((size_t)(shorter.at - shorter.start) == consumed);
            CHECK(memcmp(&step, &other, sizeof step) == 0 && memcmp(copy, state, sizeof copy) == 0);
            CHECK(attributes.size == others.size && memcmp(attributes.data, others.data, others.size) == 0);
        }
        if (step.begins)
            finish(routes, &context, &step, &attributes);
        if (step.opaque || step.skip >= size - at - consumed)
            break;
        at += consumed + step.skip;
        length = seen = 0;
    }
    for (size_t from = 0, start; from < size; from = start + 1) {
        const uint8_t *window = guarded(data, size, false);
        start = http1_protocol.resync(window, size, from, context.sender);
        CHECK(start >= from && start <= size);
        if (from > 8)
            break;
    }
    routes_free(routes);
    return 0;
}
