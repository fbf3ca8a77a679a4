/* SPDX-License-Identifier: Apache-2.0 */
/* What a parser may ask, as text: where the two sides are, what was told so far, how an exchange ended. */
#pragma once
#include "protocol.h"
#include "text.h"

enum { ADDRESS_MAX = 128 }; /* an address of RFC 5952, or sockaddr_un.sun_path */

/* The address that a Unix socket's server is bound to, as /proc/net/unix has it: '@' stands for the NUL of
 * an abstract one. Empty: it is not known. */
struct text socket_path(const struct parse_context *context, char out[ADDRESS_MAX]);
/* Empty: the peer has no name, as clients of Unix sockets have none. */
struct text peer_address(const struct parse_context *context, char out[ADDRESS_MAX]);
/* Value of a text attribute; empty: there is none. */
struct text exchange_text(const struct exchange *exchange, enum attribute_key key);
/* error.type of an exchange that was not answered; empty: it was. */
struct text outcome_text(enum outcome outcome);
