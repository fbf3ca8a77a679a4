/* SPDX-License-Identifier: Apache-2.0 */
/* The tables behind the X-lists: attribute keys, protocols, findings. */
#include "engine.h"

#define PROTOCOL_EXTERN(identifier, name, database) extern const struct protocol name##_protocol;
PROTOCOLS(PROTOCOL_EXTERN)
#undef PROTOCOL_EXTERN

const struct protocol *const protocols[PROTOCOL_COUNT] = {
#define PROTOCOL_ROW(identifier, name, database) [PROTOCOL_##identifier] = &name##_protocol,
    PROTOCOLS(PROTOCOL_ROW)
#undef PROTOCOL_ROW
};

static const char *const attribute_names[KEY_COUNT] = {
#define ATTRIBUTE_NAME(identifier, key, metric) [KEY_##identifier] = key,
    ATTRIBUTES(ATTRIBUTE_NAME)
#undef ATTRIBUTE_NAME
};

const char *attribute_name(unsigned key)
{
    return key < KEY_COUNT && attribute_names[key] ? attribute_names[key] : "";
}

const char *protocol_name(unsigned protocol)
{
    static const char *const fixed[] = {"undecided", "encrypted", "unknown"};
    if (protocol < sizeof(fixed) / sizeof(*fixed))
        return fixed[protocol];
    return protocol < PROTOCOL_COUNT && protocols[protocol] ? protocols[protocol]->name : "";
}

static const struct {
    const char *name, *sentence;
} findings[FINDING_COUNT] = {
#define FINDING_TEXT(identifier, name, sentence) [FINDING_##identifier] = {name, sentence},
    FINDINGS(FINDING_TEXT)
#undef FINDING_TEXT
};

const char *finding_name(unsigned finding)
{
    return finding < FINDING_COUNT ? findings[finding].name : "";
}

const char *finding_sentence(unsigned finding)
{
    return finding < FINDING_COUNT ? findings[finding].sentence : "";
}
