// SPDX-License-Identifier: GPL-2.0-only
/* The kernel side, in reading order. agent/loader.py joins these files into one text (BCC rewrites map
 * calls in its main text only), defines the constants, compiles, and loads each program on its own. */
#include <linux/types.h>

#include "events.h"
#include "protocols.h"
#include "classify.h"
#include "ends.h"

#include "kernel.bpf.h"
#include "maps.bpf.h"
#include "socket.bpf.h"
#include "filter.bpf.h"
#include "emit.bpf.h"
#include "connection.bpf.h"
#include "capture.bpf.h"
#include "chunk.bpf.h"

#include "tails.bpf.c"
#if CAPTURE_SYSCALLS
#include "syscalls.bpf.c"
#endif
#if CAPTURE_KPROBES
#include "kprobes.bpf.c"
#endif
#include "sockets.bpf.c"
#include "processes.bpf.c"
