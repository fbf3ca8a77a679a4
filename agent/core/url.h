/* SPDX-License-Identifier: Apache-2.0 */
/* Parts of URLs and of the headers that carry hosts, and how secrets in them are hidden. */
#pragma once
#include "protocol.h"
#include "text.h"

/* Request target of RFC 9112, 3.2, or any URL: what the form leaves out stays empty. */
struct url {
    struct text scheme, authority, path, query;
    bool has_query;
};
/* origin-form "/a?b" and absolute-form "http://u@h:1/a?b#c" (the fragment is left out); "*" is a path.
 * False: neither of them. */
bool url_split(struct text target, struct url *url);

/* host[:port], [v6][:port], user@host: the host without user and brackets, the port or 0. An address with
 * several colons and no brackets is an address without port. False: no host. */
bool url_authority(struct text authority, struct text *host, uint16_t *port);

/* Value of a parameter in the first element of a Forwarded header, the one next to the client
 * (RFC 7239, 4), without quotes; empty when there is none. */
struct text forwarded_parameter(struct text header, const char *name);

/* The query with the values of options->redact_keys replaced by REDACTED: at most max bytes to out. */
size_t url_redact_query(char *out, size_t max, struct text query, const struct protocol_options *options);
