# SPDX-License-Identifier: Apache-2.0
"""Offsets of structure fields and enumerators of the running kernel, from its BTF, read with libbpf.

Runs in the loader and in `doctor`: standard library only. libbpf, because BTF can only be walked from its
first type on, which is a matter of milliseconds in C.
"""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Iterable

if __package__:
    from agent.errors import AgentError
else:  # run as a script's neighbour, by the loader
    from errors import AgentError  # type: ignore[no-redef, import-not-found]

VMLINUX = "/sys/kernel/btf/vmlinux"
KIND_STRUCT, KIND_UNION, KIND_ENUM = 4, 5, 6
QUALIFIERS = (8, 9, 10, 11, 18)  # typedef, volatile, const, restrict, type tag: they wrap a type


class BtfError(AgentError):
    """This kernel's BTF is missing, or lacks a field that the kernel programs read."""


class _Type(ctypes.Structure):
    """struct btf_type; a structure's members follow it in memory."""

    _fields_ = (("name", ctypes.c_uint32), ("info", ctypes.c_uint32), ("size", ctypes.c_uint32))


class _Member(ctypes.Structure):
    """struct btf_member; offset in bits, with the width of a bit-field above bit 24."""

    _fields_ = (("name", ctypes.c_uint32), ("type", ctypes.c_uint32), ("offset", ctypes.c_uint32))


class _Enumerator(ctypes.Structure):
    """struct btf_enum."""

    _fields_ = (("name", ctypes.c_uint32), ("value", ctypes.c_int32))


def _libbpf() -> ctypes.CDLL:
    for name in ("libbpf.so.1", "libbpf.so.0"):
        try:
            library = ctypes.CDLL(name, use_errno=True)
        except OSError:
            continue
        library.libbpf_set_print(None)  # our own words are enough
        library.btf__parse.restype = ctypes.c_void_p
        library.btf__parse.argtypes = (ctypes.c_char_p, ctypes.c_void_p)
        library.btf__free.argtypes = (ctypes.c_void_p,)
        library.btf__type_by_id.restype = ctypes.POINTER(_Type)
        library.btf__type_by_id.argtypes = (ctypes.c_void_p, ctypes.c_uint32)
        library.btf__name_by_offset.restype = ctypes.c_char_p
        library.btf__name_by_offset.argtypes = (ctypes.c_void_p, ctypes.c_uint32)
        library.btf__find_by_name_kind.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32)
        return library
    raise BtfError("libbpf.so.1 was not found", "apt install libbpf1 (Fedora: dnf install libbpf)")


Field = tuple[str, str]  # structure, field; or enumeration, enumerator


def read(
    fields: Iterable[Field],
    optional: Collection[Field] = (),
    enumerators: Iterable[Field] = (),
    path: str = VMLINUX,
) -> tuple[dict[Field, int], dict[Field, int]]:
    """(byte offset of each field, number of each enumerator).

    Raises BtfError with the name of the first field missing, if it is not optional: those are left out. An
    enumerator that is missing is -1.
    """
    library = _libbpf()
    try:
        with open(path, "rb") as file:
            file.read(1)
    except OSError as error:
        raise BtfError(
            f"cannot read the kernel's type information, {path}: {error.strerror}",
            "the kernel must be built with CONFIG_DEBUG_INFO_BTF=y (distributions' kernels since 2020 are)"
            if isinstance(error, FileNotFoundError)
            else "run as root; in a container, /sys must be the host's",
        ) from error
    btf = library.btf__parse(path.encode(), None)
    # libbpf 0.x returns an error as a pointer in the last page, 1.x as NULL
    if not btf or ctypes.c_int64(btf).value in range(-4095, 0):
        raise BtfError(
            f"{path} is not the type information of a kernel, or not whole",
            "bpftool btf dump file shows what is wrong with it; a kernel of the distribution has it right",
        )
    try:
        found: dict[Field, int] = {}
        for structure, field in fields:
            try:
                found[structure, field] = _offset(library, btf, structure, field)
            except BtfError:
                if (structure, field) not in optional:
                    raise
        return found, {(kind, name): _number(library, btf, kind, name) for kind, name in enumerators}
    finally:
        library.btf__free(btf)


def offsets(fields: Iterable[Field], path: str = VMLINUX) -> dict[Field, int]:
    """Byte offset of each (structure, field); raises BtfError with the name of the first one missing."""
    return read(fields, path=path)[0]


def _number(library: ctypes.CDLL, btf: int, kind: str, name: str) -> int:
    number = library.btf__find_by_name_kind(btf, kind.encode(), KIND_ENUM)
    if number <= 0:
        return -1
    header = library.btf__type_by_id(btf, number)
    first = ctypes.addressof(header.contents) + ctypes.sizeof(_Type)
    for each in (_Enumerator * (header.contents.info & 0xFFFF)).from_address(first):
        if library.btf__name_by_offset(btf, each.name) == name.encode():
            return int(each.value)
    return -1


def _offset(library: ctypes.CDLL, btf: int, structure: str, field: str) -> int:
    number = library.btf__find_by_name_kind(btf, structure.encode(), KIND_STRUCT)
    bits = _bits(library, btf, number, field.encode()) if number > 0 else None
    if bits is None:
        raise BtfError(
            f"this kernel's BTF has no field {structure}.{field}",
            "the kernel is not known to this version: please report it with the output of `uname -r`",
        )
    if bits % 8:
        reason = f"{structure}.{field} is a bit-field in this kernel"
        raise BtfError(reason, "please report it with the output of `uname -r`")
    return bits // 8


def _bits(library: ctypes.CDLL, btf: int, number: int, field: bytes) -> int | None:
    """Offset in bits of a member, also inside anonymous structures and unions."""
    kind = library.btf__type_by_id(btf, number)
    while kind.contents.info >> 24 & 0x1F in QUALIFIERS:
        kind = library.btf__type_by_id(btf, kind.contents.size)  # `size` is the wrapped type's number
    info = kind.contents.info
    if info >> 24 & 0x1F not in (KIND_STRUCT, KIND_UNION):
        return None
    first = ctypes.addressof(kind.contents) + ctypes.sizeof(_Type)
    for member in (_Member * (info & 0xFFFF)).from_address(first):
        offset: int = member.offset & 0xFFFFFF if info >> 31 else member.offset
        if not member.name:
            inner = _bits(library, btf, member.type, field)
            if inner is not None:
                return offset + inner
        elif library.btf__name_by_offset(btf, member.name) == field:
            return offset
    return None
