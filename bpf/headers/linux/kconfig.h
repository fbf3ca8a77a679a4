/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* The one kernel option that BCC's own headers ask for. */
#define CONFIG_BPF_SYSCALL 1
