/* SPDX-License-Identifier: Apache-2.0 */
/* Which pairs are still certain after a loss; see loss.h.
 *
 * Every record tells how many chunks of either direction were lost so far, so a loss is known before
 * anything that came after it, and what came after it need not pay for it. Then:
 *
 *   lost or not seen    what waits                              what comes
 *   a request           keeps its place: a server answers in    paired, if the client is one that waits
 *                       the order of the requests (RFC 9112,    for its answers
 *                       9.3.2)
 *   an answer           is dropped: it may have been answered.  paired, if the client waits
 *                       An answer whose head was read keeps
 *                       its span, without a size; where the
 *                       outcome stands at the end (resync_end),
 *                       only if it is known to have failed
 *   part of a body of   is not concerned                        is paired
 *   known length
 *
 * A client that waits: nothing else is due when it asks. That is every client that was not yet seen to ask
 * before it was answered. One that was (`pipelined`) is not trusted again: after a loss none of its requests
 * is paired (`unsure`), until so long a silence that they would have timed out. Once pairs rest on the
 * client's waiting (`assumed`), to see it pipeline has the same effect.
 *
 * Clients of some protocols (protocol.batches) send several requests and wait for all the answers. There a
 * request pipelines only if it is asked when the answers to those before it have begun and are not complete. A
 * loss while several wait is forgiven to a client that was seen to wait for such a batch before, with the next batch:
 * the rest of this one is not paired (`sits_out`). */
#include "loss.h"
#include "kept.h"
#include "pairing.h"

static bool grew(uint32_t now, uint32_t *known)
{
    bool more = (int32_t)(now - *known) > 0;
    if (more)
        *known = now;
    return more;
}

/* Between two messages, as far as is known. */
static bool between(const struct stream *s)
{
    return s->sync != SYNC_LOST && !s->in_message && s->skip == 0 && kept_length(s) == 0;
}

/* A request came that was not seen: the rest of the oldest one's answer may be of that one's. */
static void accompany(struct connection *c)
{
    pairing_batch_unknown(c);
    if (c->first) {
        c->first->accompanied = c->last->accompanied = true;
        c->first->alone = false;
    }
}

bool loss_told(struct core *core, struct connection *c, const uint32_t unsent[2], uint32_t shed,
               const struct chunk_event *chunk)
{
    uint32_t before[2] = {c->streams[0].unsent, c->streams[1].unsent};
    bool told_before[2] = {c->streams[0].told, c->streams[1].told};
    if (c->joined) { /* told to an earlier pipeline */
        c->joined = false;
        c->streams[0].unsent = unsent[0];
        c->streams[1].unsent = unsent[1];
        c->shed = shed;
        return false;
    }
    if (chunk) {
        struct stream *own = &c->streams[chunk->header.direction & 1];
        if ((int32_t)(unsent[chunk->header.direction & 1] - own->unsent) < 0) {
            /* A send has the time of its entry and the totals of its exit: it was sorted before this
             * record and told of a loss that is still to come. It will be told again. */
            own->unsent = unsent[chunk->header.direction & 1];
            own->told = TOLD_NOTHING;
        }
    }
    bool more[2] = {grew(unsent[0], &c->streams[0].unsent), grew(unsent[1], &c->streams[1].unsent)};
    bool left_out = grew(shed, &c->shed);
    if (!more[0] && !more[1] && !left_out)
        return false;
    for (int i = 0; i < 2; i++)
        c->streams[i].told |= (more[i] ? TOLD_UNSENT : 0) | (left_out ? TOLD_SHED : 0);
    if (c->kind == 0)
        return false;
    unsigned answering = answers_direction(c);
    const struct stream *answers = &c->streams[answering], *asks = &c->streams[!answering];
    /* A request that was lost, if only its end, while another waits whose answer was not, is of its batch. */
    bool begins = asks->sync != SYNC_LOST && !asks->in_message && asks->skip == 0;
    bool waiting = c->first && !c->first->responded;
    if (chunk && more[!answering] && !more[answering] && begins && waiting)
        c->batched |= protocol_of(c)->batches;
    bool doubted = answers->sync == SYNC_LOST || told_before[answering];
    if (more[!answering] || left_out) {
        accompany(c);
        /* A client that never sent several waits with the next one until the answer has come, or is lost too. */
        bool single = !c->first && !c->batched && !c->waits && (more[answering] || left_out);
        if (protocol_of(c) && protocol_of(c)->batches && !single)
            c->sits_out = SITS_OUT;
    }
    bool waits = c->first && !(c->first->responded && doubted);
    /* What is missing may all be of the body that is being read: the next record of that stream tells. If it was
     * more, the answers to the rest of a batch are in it. */
    bool may_be_body = answers->current && stream_in_body(answers) && !(c->batched && c->first != c->last);
    if ((more[answering] || left_out) && !may_be_body)
        loss_of_answers(core, c);
    /* A whole request was lost, and its answer was not: nor was that sent, for this record would not be the
     * first to tell. So there is a request now while another one waits. */
    uint32_t answers_lost = answers->unsent - before[answering];
    return chunk && (chunk->header.direction & 1) != answering && more[!answering] && !left_out &&
           between(&c->streams[!answering]) && answers_lost < 1U + waits;
}

/* What was not seen may belong to requests that were not seen either. */
static void doubt(struct connection *c)
{
    c->assumed = true;
    c->unsure |= c->pipelined || (c->batched && !c->waits);
    if (c->batched)
        c->sits_out = SITS_OUT;
}

void loss_of_answers(struct core *core, struct connection *c)
{
    doubt(c);
    pairing_drop_unanswered(core, c);
}

void loss_of_requests(struct core *core, struct connection *c, bool told)
{
    (void)core;
    accompany(c);
    doubt(c);
    if (!told && protocol_of(c) && protocol_of(c)->batches)
        c->sits_out = SITS_OUT;
}

void loss_of_place(struct connection *c)
{
    accompany(c);
    c->assumed = true;
    c->unsure |= c->pipelined;
    if (protocol_of(c)->batches)
        c->sits_out = SITS_OUT;
}

void loss_finish_unseen(struct core *core, struct connection *c)
{
    struct stream *answers = &c->streams[answers_direction(c)];
    struct pending *p = c->first;
    if (p == NULL || !p->responded || (answers->sync != SYNC_LOST && !answers->told && !p->size_unknown))
        return;
    if (protocol_of(c)->resync_end && !p->failed) {
        pairing_drop(core, p);
        if (answers->sync == SYNC_OK && answers->skip == 0 && kept_length(answers) == 0) { /* what comes is the next */
            kept_drop(core, answers);
            answers->in_message = answers->ends = false;
        }
        return;
    }
    p->size_unknown |= !stream_in_body(answers) || answers->skip == SKIP_TO_END;
    pairing_finish(core, p, OUTCOME_ANSWERED, c->answered_ktime);
}

void loss_overtaken(struct connection *c)
{
    if (protocol_of(c)->batches) {
        c->batched = true;
        doubt(c);
        return;
    }
    c->pipelined = true;
    c->unsure = true;
}

void loss_before_request(struct core *core, struct connection *c)
{
    if (!c->pipelined)
        loss_finish_unseen(core, c);
    if (c->first == NULL) {
        if (c->sits_out == SITS_OUT_ANSWERED)
            c->sits_out = SITS_OUT_NOT;
        if (!c->sits_out) {
            c->waits |= c->batched;
            c->batched = false;
        }
        return;
    }
    bool batches = protocol_of(c)->batches;
    c->batched |= batches;
    if (batches && !c->last->followed)
        return;
    c->pipelined = true;
    if (c->assumed && !c->unsure) {
        c->unsure = true;
        pairing_drop_unanswered(core, c);
    }
}
