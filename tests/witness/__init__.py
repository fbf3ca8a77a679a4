# SPDX-License-Identifier: Apache-2.0
"""A process that logs the bytes it moved itself, to be compared with what the kernel side counted."""
