/* SPDX-License-Identifier: Apache-2.0 */
/* The commands of Redis and Valkey; see redis_commands.h.
 *
 * Names are told in capitals, whatever case they were sent in (they have none), so that one command is one
 * name. Of the arguments those are shown that name something: keys, fields, channels, functions. All others
 * are '?', passwords among them, and so are all of a command that is not in the table. */
#include "redis_commands.h"
#include "table.h"

enum { HIDDEN_RUN = 8 }; /* '?' in a row; of a longer one the rest is "..." */

/* What `COMMAND` and `COMMAND DOCS` tell of each command (https://redis.io/docs/latest/commands/): where its
 * keys are, whether it is read-only, its complexity. */
struct redis_command {
    const char *name;
    /* One sign for each argument behind the name and the subcommand: 'k' is shown, '?' is not, 'n' is shown
     * if it is a number, and so many keys follow; 'p' is shown and what is called; 's': the latter half of
     * what is behind the word STREAMS. The signs behind '*' repeat; behind the last one nothing is shown;
     * with '!' in front the last argument is not. */
    const char *arguments;
    uint8_t traits;
    uint8_t kind; /* enum redis_kind */
    const char *subcommands;
};

/* Read-only, but for those that answer by chance or wait for what is new: to ask them again is not to ask
 * twice. Costly is whose complexity grows with what the keys hold, or with how many there are. */
enum { READS = TRAIT_READS, COSTLY = TRAIT_COSTLY, BLOCKS = TRAIT_BLOCKS };

/* In the order of strcmp(). */
#define C(name, arguments, traits) {name, arguments, traits, REDIS_PLAIN, NULL}
#define KIND(name, arguments, traits, kind) {name, arguments, traits, kind, NULL}
#define GROUP(name, arguments, traits, kind, subcommands) {name, arguments, traits, kind, subcommands}
static const struct redis_command commands[] = {
    GROUP("ACL", "", 0, REDIS_PLAIN,
          "|CAT|DELUSER|DRYRUN|GENPASS|GETUSER|HELP|LIST|LOAD|LOG|SAVE|SETUSER|USERS|WHOAMI|"),
    C("APPEND", "k", 0), C("ASKING", "", 0), C("AUTH", "", 0), C("BGREWRITEAOF", "", 0), C("BGSAVE", "", 0),
    C("BITCOUNT", "k", READS | COSTLY), C("BITFIELD", "k", 0), C("BITFIELD_RO", "k", READS),
    C("BITOP", "?*k", COSTLY), C("BITPOS", "k", READS | COSTLY), C("BLMOVE", "kk", BLOCKS), C("BLMPOP", "?n", BLOCKS),
    C("BLPOP", "!*k", BLOCKS), C("BRPOP", "!*k", BLOCKS), C("BRPOPLPUSH", "kk", BLOCKS), C("BZMPOP", "?n", BLOCKS),
    C("BZPOPMAX", "!*k", BLOCKS), C("BZPOPMIN", "!*k", BLOCKS),
    GROUP("CLIENT", "", 0, REDIS_CLIENT,
          "|CACHING|GETNAME|GETREDIR|HELP|ID|IMPORT-SOURCE|INFO|KILL|LIST|NO-EVICT|NO-TOUCH|PAUSE"
          "|REPLY|SETINFO|SETNAME|TRACKING|TRACKINGINFO|UNBLOCK|UNPAUSE|"),
    GROUP("CLUSTER", "", 0, REDIS_PLAIN,
          "|ADDSLOTS|ADDSLOTSRANGE|BUMPEPOCH|COUNT-FAILURE-REPORTS|COUNTKEYSINSLOT|DELSLOTS"
          "|DELSLOTSRANGE|FAILOVER|FLUSHSLOTS|FORGET|GETKEYSINSLOT|GETSLOTMIGRATIONS|HELP|INFO|KEYSLOT"
          "|LINKS|MEET|MIGRATESLOTS|MYID|MYSHARDID|NODES|REPLICAS|REPLICATE|RESET|SAVECONFIG"
          "|SET-CONFIG-EPOCH|SETSLOT|SHARDS|SLAVES|SLOT-STATS|SLOTS|"),
    GROUP("COMMAND", "", 0, REDIS_PLAIN,
          "|COUNT|DOCS|GETKEYS|GETKEYSANDFLAGS|HELP|INFO|LIST|"),
    GROUP("CONFIG", "", 0, REDIS_PLAIN,
          "|GET|HELP|RESETSTAT|REWRITE|SET|"),
    C("COPY", "kk", COSTLY), C("DBSIZE", "", READS),
    GROUP("DEBUG", "", 0, REDIS_PLAIN,
          "|CHANGE-REPL-ID|DIGEST|ERROR|HTSTATS|HTSTATS-KEY|JMAP|LISTPACK|LOADAOF|LOG|OBJECT|POPULATE"
          "|PROTOCOL|QUICKLIST-PACKED-THRESHOLD|RELOAD|REPLICATE|SDSLEN|SEGFAULT|SET-ACTIVE-EXPIRE"
          "|SLEEP|STRINGMATCH-LEN|"),
    C("DECR", "k", 0), C("DECRBY", "k", 0), C("DEL", "*k", 0), KIND("DISCARD", "", 0, REDIS_EXEC),
    C("DUMP", "k", READS | COSTLY), C("ECHO", "", 0), C("EVAL", "?n", 0), C("EVALSHA", "pn", 0),
    C("EVALSHA_RO", "pn", READS), C("EVAL_RO", "?n", READS), KIND("EXEC", "", 0, REDIS_EXEC),
    C("EXISTS", "*k", READS), C("EXPIRE", "k", 0), C("EXPIREAT", "k", 0), C("EXPIRETIME", "k", READS),
    C("FAILOVER", "", 0), C("FCALL", "pn", 0), C("FCALL_RO", "pn", READS), C("FLUSHALL", "", COSTLY),
    C("FLUSHDB", "", COSTLY),
    GROUP("FUNCTION", "", 0, REDIS_PLAIN,
          "|DELETE|DUMP|FLUSH|HELP|KILL|LIST|LOAD|RESTORE|STATS|"),
    C("GEOADD", "k", 0), C("GEODIST", "k", READS), C("GEOHASH", "k", READS), C("GEOPOS", "k", READS),
    C("GEORADIUS", "k", COSTLY), C("GEORADIUSBYMEMBER", "k", COSTLY),
    C("GEORADIUSBYMEMBER_RO", "k", READS | COSTLY), C("GEORADIUS_RO", "k", READS | COSTLY),
    C("GEOSEARCH", "k", READS | COSTLY), C("GEOSEARCHSTORE", "kk", COSTLY), C("GET", "k", READS),
    C("GETBIT", "k", READS), C("GETDEL", "k", 0), C("GETEX", "k", 0), C("GETRANGE", "k", READS),
    C("GETSET", "k", 0), C("HDEL", "k*k", 0), KIND("HELLO", "", 0, REDIS_HELLO), C("HEXISTS", "kk", READS),
    C("HEXPIRE", "k", 0), C("HEXPIREAT", "k", 0), C("HEXPIRETIME", "k", READS), C("HGET", "kk", READS),
    C("HGETALL", "k", READS | COSTLY), C("HGETDEL", "k", 0), C("HGETEX", "k", 0), C("HINCRBY", "kk", 0),
    C("HINCRBYFLOAT", "kk", 0), C("HKEYS", "k", READS | COSTLY), C("HLEN", "k", READS),
    C("HMGET", "k*k", READS), C("HMSET", "k*k?", 0), C("HPERSIST", "k", 0), C("HPEXPIRE", "k", 0),
    C("HPEXPIREAT", "k", 0), C("HPEXPIRETIME", "k", READS), C("HPTTL", "k", READS), C("HRANDFIELD", "k", 0),
    C("HSCAN", "k", READS), C("HSET", "k*k?", 0), C("HSETEX", "k", 0), C("HSETNX", "kk", 0),
    C("HSTRLEN", "kk", READS), C("HTTL", "k", READS), C("HVALS", "k", READS | COSTLY), C("INCR", "k", 0),
    C("INCRBY", "k", 0), C("INCRBYFLOAT", "k", 0), C("INFO", "", 0), C("KEYS", "", READS | COSTLY),
    C("LASTSAVE", "", 0),
    GROUP("LATENCY", "", 0, REDIS_PLAIN,
          "|DOCTOR|GRAPH|HELP|HISTOGRAM|HISTORY|LATEST|RESET|"),
    C("LCS", "kk", READS | COSTLY), C("LINDEX", "k", READS), C("LINSERT", "k", 0), C("LLEN", "k", READS),
    C("LMOVE", "kk", 0), C("LMPOP", "n", 0), C("LOLWUT", "", 0), C("LPOP", "k", 0),
    C("LPOS", "k", READS | COSTLY), C("LPUSH", "k", 0), C("LPUSHX", "k", 0),
    C("LRANGE", "k", READS | COSTLY), C("LREM", "k", COSTLY), C("LSET", "k", 0), C("LTRIM", "k", 0),
    GROUP("MEMORY", "k", 0, REDIS_PLAIN,
          "|DOCTOR|HELP|MALLOC-STATS|PURGE|STATS|USAGE|"),
    C("MGET", "*k", READS), C("MIGRATE", "??k", 0),
    GROUP("MODULE", "", 0, REDIS_PLAIN,
          "|HELP|LIST|LOAD|LOADEX|UNLOAD|"),
    KIND("MONITOR", "", 0, REDIS_MONITOR), C("MOVE", "k", 0), C("MSET", "*k?", 0), C("MSETNX", "*k?", 0),
    KIND("MULTI", "", 0, REDIS_MULTI),
    GROUP("OBJECT", "k", 0, REDIS_PLAIN,
          "|ENCODING|FREQ|HELP|IDLETIME|REFCOUNT|"),
    C("PERSIST", "k", 0), C("PEXPIRE", "k", 0), C("PEXPIREAT", "k", 0), C("PEXPIRETIME", "k", READS),
    C("PFADD", "k", 0), C("PFCOUNT", "*k", READS | COSTLY), C("PFDEBUG", "?k", 0),
    C("PFMERGE", "*k", COSTLY), C("PFSELFTEST", "", 0), KIND("PING", "", 0, REDIS_PING),
    C("PSETEX", "k", 0), KIND("PSUBSCRIBE", "*k", 0, REDIS_SUBSCRIBE),
    KIND("PSYNC", "", 0, REDIS_REPLICATE), C("PTTL", "k", READS), C("PUBLISH", "k", 0),
    GROUP("PUBSUB", "", 0, REDIS_PLAIN,
          "|CHANNELS|HELP|NUMPAT|NUMSUB|SHARDCHANNELS|SHARDNUMSUB|"),
    KIND("PUNSUBSCRIBE", "*k", 0, REDIS_UNSUBSCRIBE), KIND("QUIT", "", 0, REDIS_PING),
    C("RANDOMKEY", "", 0), C("READONLY", "", 0), C("READWRITE", "", 0), C("RENAME", "kk", 0),
    C("RENAMENX", "kk", 0), KIND("REPLCONF", "", 0, REDIS_REPLCONF), C("REPLICAOF", "", 0),
    KIND("RESET", "", 0, REDIS_RESET), C("RESTORE", "k", 0), C("RESTORE-ASKING", "k", 0), C("ROLE", "", 0),
    C("RPOP", "k", 0), C("RPOPLPUSH", "kk", 0), C("RPUSH", "k", 0), C("RPUSHX", "k", 0), C("SADD", "k", 0),
    C("SAVE", "", COSTLY), C("SCAN", "", READS), C("SCARD", "k", READS),
    GROUP("SCRIPT", "", 0, REDIS_PLAIN,
          "|DEBUG|EXISTS|FLUSH|HELP|KILL|LOAD|"),
    C("SDIFF", "*k", READS | COSTLY), C("SDIFFSTORE", "*k", COSTLY), KIND("SELECT", "", 0, REDIS_SELECT),
    GROUP("SENTINEL", "", 0, REDIS_PLAIN,
          "|CKQUORUM|CONFIG|DEBUG|FAILOVER|FLUSHCONFIG|GET-MASTER-ADDR-BY-NAME|HELP|INFO-CACHE"
          "|IS-MASTER-DOWN-BY-ADDR|MASTER|MASTERS|MONITOR|MYID|PENDING-SCRIPTS|REMOVE|REPLICAS|RESET"
          "|SENTINELS|SET|SIMULATE-FAILURE|SLAVES|"),
    C("SET", "k", 0), C("SETBIT", "k", 0), C("SETEX", "k", 0), C("SETNX", "k", 0), C("SETRANGE", "k", 0),
    C("SHUTDOWN", "", 0), C("SINTER", "*k", READS | COSTLY), C("SINTERCARD", "n", READS | COSTLY),
    C("SINTERSTORE", "*k", COSTLY), C("SISMEMBER", "k", READS), C("SLAVEOF", "", 0),
    GROUP("SLOWLOG", "", 0, REDIS_PLAIN,
          "|GET|HELP|LEN|RESET|"),
    C("SMEMBERS", "k", READS | COSTLY), C("SMISMEMBER", "k", READS), C("SMOVE", "kk", 0),
    C("SORT", "k", COSTLY), C("SORT_RO", "k", READS | COSTLY), C("SPOP", "k", 0), C("SPUBLISH", "k", 0),
    C("SRANDMEMBER", "k", 0), C("SREM", "k", 0), C("SSCAN", "k", READS),
    KIND("SSUBSCRIBE", "*k", 0, REDIS_SUBSCRIBE), C("STRLEN", "k", READS),
    KIND("SUBSCRIBE", "*k", 0, REDIS_SUBSCRIBE), C("SUBSTR", "k", READS), C("SUNION", "*k", READS | COSTLY),
    C("SUNIONSTORE", "*k", COSTLY), KIND("SUNSUBSCRIBE", "*k", 0, REDIS_UNSUBSCRIBE), C("SWAPDB", "", 0),
    KIND("SYNC", "", 0, REDIS_REPLICATE), C("TIME", "", 0), C("TOUCH", "*k", 0), C("TTL", "k", READS),
    C("TYPE", "k", READS), C("UNLINK", "*k", 0), KIND("UNSUBSCRIBE", "*k", 0, REDIS_UNSUBSCRIBE),
    C("UNWATCH", "", 0), C("WAIT", "", BLOCKS), C("WAITAOF", "", BLOCKS), C("WATCH", "*k", 0), C("XACK", "k", 0),
    C("XADD", "k", 0), C("XAUTOCLAIM", "k", 0), C("XCLAIM", "k", 0), C("XDEL", "k", 0),
    GROUP("XGROUP", "k", 0, REDIS_PLAIN,
          "|CREATE|CREATECONSUMER|DELCONSUMER|DESTROY|HELP|SETID|"),
    GROUP("XINFO", "k", 0, REDIS_PLAIN,
          "|CONSUMERS|GROUPS|HELP|STREAM|"),
    C("XLEN", "k", READS), C("XPENDING", "k", READS), C("XRANGE", "k", READS | COSTLY), C("XREAD", "s", BLOCKS),
    C("XREADGROUP", "s", BLOCKS), C("XREVRANGE", "k", READS | COSTLY), C("XSETID", "k", 0), C("XTRIM", "k", 0),
    C("ZADD", "k", 0), C("ZCARD", "k", READS), C("ZCOUNT", "k", READS), C("ZDIFF", "n", READS | COSTLY),
    C("ZDIFFSTORE", "kn", COSTLY), C("ZINCRBY", "k", 0), C("ZINTER", "n", READS | COSTLY),
    C("ZINTERCARD", "n", READS | COSTLY), C("ZINTERSTORE", "kn", COSTLY), C("ZLEXCOUNT", "k", READS),
    C("ZMPOP", "n", 0), C("ZMSCORE", "k", READS), C("ZPOPMAX", "k", 0), C("ZPOPMIN", "k", 0),
    C("ZRANDMEMBER", "k", 0), C("ZRANGE", "k", READS | COSTLY), C("ZRANGEBYLEX", "k", READS | COSTLY),
    C("ZRANGEBYSCORE", "k", READS | COSTLY), C("ZRANGESTORE", "kk", COSTLY), C("ZRANK", "k", READS),
    C("ZREM", "k", 0), C("ZREMRANGEBYLEX", "k", COSTLY), C("ZREMRANGEBYRANK", "k", COSTLY),
    C("ZREMRANGEBYSCORE", "k", COSTLY), C("ZREVRANGE", "k", READS | COSTLY),
    C("ZREVRANGEBYLEX", "k", READS | COSTLY), C("ZREVRANGEBYSCORE", "k", READS | COSTLY),
    C("ZREVRANK", "k", READS), C("ZSCAN", "k", READS), C("ZSCORE", "k", READS),
    C("ZUNION", "n", READS | COSTLY), C("ZUNIONSTORE", "kn", COSTLY),
};
#undef C
#undef KIND
#undef GROUP

enum { COMMAND_COUNT = sizeof commands / sizeof *commands };

static char upper(uint8_t c)
{
    return (char)(c >= 'a' && c <= 'z' ? c & ~0x20 : c);
}

/* The first command whose name is not below `name`, which is in capitals. */
static const struct redis_command *lower_bound(const char *name)
{
    const struct redis_command *at = commands;
    for (size_t count = COMMAND_COUNT; count;) {
        size_t half = count / 2;
        if (strcmp(at[half].name, name) < 0) {
            at += half + 1;
            count -= half + 1;
        } else {
            count = half;
        }
    }
    return at;
}

/* Letters, digits and what modules put between them; in capitals. */
static bool word(struct text t, char out[REDIS_WORD_MAX + 1])
{
    if (t.length == 0 || t.length > REDIS_WORD_MAX)
        return false;
    for (size_t i = 0; i < t.length; i++) {
        char c = out[i] = upper(t.bytes[i]);
        bool letter = c >= 'A' && c <= 'Z';
        if (!letter && (i == 0 || !((c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-')))
            return false;
    }
    out[t.length] = '\0';
    return true;
}

bool redis_is_name(struct text name, bool complete, bool known)
{
    char text[REDIS_WORD_MAX + 1];
    if (name.length == 0)
        return !complete;
    if (!word(name, text))
        return false;
    const struct redis_command *found = lower_bound(text);
    if (!known)
        return true;
    return found < commands + COMMAND_COUNT &&
           (complete ? strcmp(found->name, text) == 0 : strncmp(found->name, text, name.length) == 0);
}

/* --- text ------------------------------------------------------------------------------------------- */

static void add(struct redis_request *r, struct text t)
{
    static const char rest[] = " ...";
    size_t room = sizeof r->text - sizeof rest + 1 - r->size;
    if (r->wanted == QUERY_TEXT_OFF || r->cut)
        return;
    r->cut = t.length + 1 > room;
    if (r->cut)
        t = (struct text){(const uint8_t *)rest + 1, sizeof rest - 2};
    if (r->size)
        r->text[r->size++] = ' ';
    memcpy(r->text + r->size, t.bytes, t.length);
    r->size += (uint32_t)t.length;
}

static void hide(struct redis_request *r)
{
    if (r->hidden < HIDDEN_RUN)
        add(r, TEXT("?"));
    else if (r->hidden == HIDDEN_RUN)
        add(r, TEXT("..."));
    r->hidden++;
}

static void show(struct redis_request *r, struct text t)
{
    add(r, t);
    r->hidden = 0;
}

/* --- arguments -------------------------------------------------------------------------------------- */

void redis_request(struct redis_request *r, uint32_t count, const struct protocol_options *options)
{
    memset(r, 0, offsetof(struct redis_request, operation));
    r->kind = REDIS_PLAIN;
    r->count = count;
    r->wanted = (enum query_text)options->query_text;
}

static void take_name(struct redis_request *r, struct text value)
{
    char text[REDIS_WORD_MAX + 1];
    r->words = word(value, text);
    if (!r->words) {
        hide(r);
        return;
    }
    const struct redis_command *found = lower_bound(text);
    if (found < commands + COMMAND_COUNT && strcmp(found->name, text) == 0) {
        r->known = found;
        r->pattern = found->arguments;
        r->kind = (enum redis_kind)found->kind;
    }
    memcpy(r->operation, text, value.length);
    r->operation_size = (uint32_t)value.length;
    show(r, (struct text){(const uint8_t *)text, value.length});
}

/* False: the command has none of this name. */
static bool take_subcommand(struct redis_request *r, struct text value)
{
    char text[REDIS_WORD_MAX + 1], between[REDIS_WORD_MAX + 3];
    if (r->known == NULL || r->known->subcommands == NULL || !word(value, text))
        return false;
    between[0] = between[value.length + 1] = '|';
    memcpy(between + 1, text, value.length);
    between[value.length + 2] = '\0';
    bool room = r->operation_size + 1 + value.length <= sizeof r->operation;
    if (!room || strstr(r->known->subcommands, between) == NULL)
        return false;
    r->operation[r->operation_size++] = ' ';
    memcpy(r->operation + r->operation_size, text, value.length);
    r->operation_size += (uint32_t)value.length;
    show(r, (struct text){(const uint8_t *)text, value.length});
    return true;
}

/* What the next argument is, by the pattern. */
static char next_sign(struct redis_request *r)
{
    if (r->keys) {
        r->keys--;
        return 'k';
    }
    if (r->pattern == NULL)
        return '?';
    bool last_hidden = r->known->arguments[0] == '!';
    if (*r->pattern == '!')
        r->pattern++;
    if (*r->pattern == '*')
        r->repeat = ++r->pattern;
    if (*r->pattern == '\0' && r->repeat)
        r->pattern = r->repeat;
    if (*r->pattern == '\0' || (last_hidden && r->read + 1 == r->count))
        return '?';
    return *r->pattern == 's' ? 's' : *r->pattern++;
}

static bool number(struct text t, uint32_t *n)
{
    *n = 0;
    for (size_t i = 0; i < t.length; i++) {
        if (t.bytes[i] < '0' || t.bytes[i] > '9')
            return false;
        *n = *n * 10 + (t.bytes[i] - '0');
    }
    return t.length > 0 && t.length < 9;
}

static bool is_procedure(struct text t)
{
    for (size_t i = 0; i < t.length; i++)
        if ((t.bytes[i] < '0' || t.bytes[i] > '9') && (upper(t.bytes[i]) < 'A' || upper(t.bytes[i]) > 'Z') &&
            t.bytes[i] != '_')
            return false;
    return t.length > 0 && t.length <= 128;
}

static uint64_t mixed(uint64_t hash, struct text t)
{
    uint64_t word = t.length;
    hash = table_mix(hash ^ word) + 0x9e3779b97f4a7c15ULL;
    for (; t.length >= sizeof word; t.bytes += sizeof word, t.length -= sizeof word) {
        memcpy(&word, t.bytes, sizeof word);
        hash = table_mix(hash ^ word) + 0x9e3779b97f4a7c15ULL;
    }
    word = 0;
    memcpy(&word, t.bytes, t.length);
    return table_mix(hash ^ word);
}

static void take_other(struct redis_request *r, struct text value)
{
    bool keys_shown = r->wanted == QUERY_TEXT_PARAMETERIZED, shown = false;
    uint32_t keys;
    switch (next_sign(r)) {
    case 'k':
        shown = keys_shown;
        if (r->key == 0)
            r->key = mixed(1, value);
        break;
    case 'n':
        shown = number(value, &keys);
        r->keys = shown ? keys : 0;
        break;
    case 'p':
        shown = r->procedure = is_procedure(value);
        break;
    case 's':
        shown = text_is(value, "streams");
        if (shown) {
            r->keys = (r->count - r->read) / 2;
            r->pattern = "";
            value = TEXT("STREAMS");
        }
        break;
    default:
        break;
    }
    if (shown)
        show(r, value);
    else
        hide(r);
}

static struct text operation_of(const struct redis_request *r)
{
    return (struct text){(const uint8_t *)r->operation, r->operation_size};
}

void redis_argument(struct redis_request *r, struct text value)
{
    if (r->read == 1)
        r->first = value;
    else if (r->read == 2)
        r->second = value;
    if (r->read == 0)
        take_name(r, value);
    else if (r->read > 1 || !take_subcommand(r, value))
        take_other(r, value);
    r->exact = mixed(r->exact, r->read ? value : operation_of(r));
    r->read++;
}

void redis_unread(struct redis_request *r)
{
    for (uint32_t i = r->read; i < r->count && r->hidden <= HIDDEN_RUN; i++)
        hide(r);
    r->exact = 0;
}

void redis_told(struct redis_request *r, struct step *step, struct builder *b)
{
    if (r->operation_size)
        builder_text(b, KEY_DB_OPERATION_NAME, r->operation, r->operation_size, sizeof r->operation);
    if (r->wanted != QUERY_TEXT_OFF && r->words)
        builder_text(b, KEY_DB_QUERY_TEXT, r->text, r->size, 3 * sizeof r->text);
    if (r->procedure)
        builder_text(b, KEY_DB_STORED_PROCEDURE_NAME, r->first.bytes, r->first.length, r->first.length);
    step->traits = r->known ? r->known->traits : 0;
    step->shape = mixed(r->count, operation_of(r)) | 1;
    step->exact = r->exact;
    step->key = r->key;
}
