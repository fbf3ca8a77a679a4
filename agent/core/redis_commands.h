/* SPDX-License-Identifier: Apache-2.0 */
/* What a span says of a Redis command, however it was sent: its name, the places of its keys, its text.
 *
 * https://github.com/open-telemetry/semantic-conventions/blob/v1.44.0/docs/db/redis.md */
#pragma once
#include "protocol.h"
#include "text.h"

enum redis_limits {
    REDIS_TEXT_MAX = 512,     /* bytes of db.query.text */
    REDIS_WORD_MAX = 32,      /* of the name of a command; the longest that Redis has is 20 */
    REDIS_OPERATION_MAX = 64, /* of a name and a subcommand */
};

/* Commands that the protocol must know, because they change what follows or how they are answered. */
enum redis_kind {
    REDIS_PLAIN = 1,
    REDIS_SELECT,
    REDIS_RESET,
    REDIS_SUBSCRIBE,
    REDIS_UNSUBSCRIBE,
    REDIS_MONITOR,
    REDIS_REPLICATE,
    REDIS_MULTI,
    REDIS_EXEC,
    REDIS_HELLO,
    REDIS_PING,
    REDIS_CLIENT,   /* which may be CLIENT REPLY */
    REDIS_REPLCONF, /* which may be REPLCONF ACK */
};

struct redis_command;

/* One command, while its arguments are read. */
struct redis_request {
    enum redis_kind kind;
    uint32_t count, read;     /* arguments, the name is the first of them */
    struct text first, second; /* behind the name */
    enum query_text wanted;
    bool words;               /* the name is one */
    const struct redis_command *known;
    const char *pattern, *repeat; /* of what the arguments to come are, NULL: not known */
    uint32_t keys;            /* so many to come are keys, whatever the pattern says */
    uint32_t hidden;          /* one after the other, so far */
    bool procedure;           /* `first` names what is called */
    bool cut;
    uint32_t operation_size, size;
    uint64_t exact;
    uint64_t key; /* hash of the first key; 0: none */
    char operation[REDIS_OPERATION_MAX];
    char text[REDIS_TEXT_MAX];
};

void redis_request(struct redis_request *r, uint32_t count, const struct protocol_options *options);
/* The next argument, of which the name is the first. */
void redis_argument(struct redis_request *r, struct text value);
/* The arguments that were not looked at, `count` of them in all. */
void redis_unread(struct redis_request *r);
/* db.operation.name, db.query.text, db.stored_procedure.name; shape, exact, key and traits of the step. */
void redis_told(struct redis_request *r, struct step *step, struct builder *b);

/* May a command have this name? `complete`: it is all of it. `known`: those of the servers alone. */
bool redis_is_name(struct text name, bool complete, bool known);
