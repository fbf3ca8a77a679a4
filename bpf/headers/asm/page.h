/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Named by BCC's macros for ring buffers; we size ours in bytes. */
#define PAGE_SIZE 4096
