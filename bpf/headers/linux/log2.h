/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Empty: BCC's headers include it, none of what we use from them needs it. */
