/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* BCC carries its own copy, which its helpers are written against: the system's would clash with it. */
#include <bcc/bpf.h>
