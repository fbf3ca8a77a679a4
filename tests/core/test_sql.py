# SPDX-License-Identifier: Apache-2.0
"""sql.c: official and own cases, a second implementation, and that no byte of a literal gets out."""

from __future__ import annotations

import atexit
import functools
import random
import struct
import subprocess
from dataclasses import dataclass

import pytest

from tests.contract import CORE, ROOT, SANITIZE, compile_c
from tests.core.sql_cases import CONFORMANCE, DIALECT, MY, PG, Dialect
from tests.sql_reference import sanitized

SOURCES = [CORE / "sql.c", ROOT / "tests/core/sql_driver.c"]
ANSWER = struct.Struct("<8IQ")
BACKSLASH = ("unknown", "escapes", "literal")


@dataclass(frozen=True)
class Result:
    safe: bool
    cut: bool
    parameterized: bool
    statements: int
    traceparent: bytes
    shape: int
    text: bytes
    summary: bytes


class Sql:
    """One process of sql_driver.c."""

    def __init__(self) -> None:
        path = compile_c("sql_driver", SOURCES, *SANITIZE)
        self.process = subprocess.Popen([path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        atexit.register(self.process.kill)

    def read(
        self,
        statement: bytes,
        dialect: str,
        backslash: str = "unknown",
        complete: bool = True,
        keep: bool = False,
    ) -> Result:
        job = bytes((complete, dialect == MY, BACKSLASH.index(backslash), keep)) + statement
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(struct.pack("<I", len(job)) + job)
        self.process.stdin.flush()
        head = self.process.stdout.read(ANSWER.size)
        if len(head) < ANSWER.size:
            driver.cache_clear()
            pytest.fail(f"the driver ended with {self.process.wait()}: its report is on stderr")
        safe, cut, parameterized, statements, text, summary, at, size, shape = ANSWER.unpack(head)
        body = self.process.stdout.read(text + summary)
        return Result(
            bool(safe), bool(cut), bool(parameterized), statements, statement[at : at + size], shape,
            body[:text], body[text:],
        )  # fmt: skip


@functools.cache
def driver() -> Sql:
    return Sql()


def read(
    statement: str | bytes,
    dialect: str = PG,
    backslash: str = "unknown",
    complete: bool = True,
    keep: bool = False,
) -> Result:
    data = statement.encode() if isinstance(statement, str) else statement
    return driver().read(data, dialect, backslash, complete, keep)


@pytest.mark.parametrize("dialect", [PG, MY])
@pytest.mark.parametrize(("statement", "text", "summary"), CONFORMANCE)
def test_conformance(statement: str, text: str, summary: str, dialect: str) -> None:
    result = read(statement, dialect)
    assert (result.text.decode(), result.summary.decode()) == (text or statement, summary)
    assert sanitized(statement, dialect) == (text or statement)


@pytest.mark.parametrize("case", DIALECT)
def test_dialects(case: Dialect) -> None:
    for dialect in (PG, MY) if case.dialect == "" else (case.dialect,):
        result = read(case.statement, dialect, case.backslash)
        assert result.summary.decode() == case.summary
        assert result.safe == (case.text is not None)
        if case.text is not None:
            assert result.text.decode() == (case.text or case.statement)
        assert sanitized(case.statement, dialect, case.backslash) == (
            None if case.text is None else case.text or case.statement
        )


@pytest.mark.parametrize(("statement", "dialect", "count"), [
    ("SELECT 1", PG, 1),
    ("SELECT 1;", PG, 1),
    (" ; SELECT 1;; SELECT 2 ; -- end", PG, 2),
    ("", PG, 0),
    ("/* nothing */ ;", PG, 0),
    ("SELECT ';'", PG, 1),
    ("CREATE RULE r AS ON INSERT TO t DO (UPDATE a SET b = 1; UPDATE c SET d = 1); SELECT 1", PG, 2),
    ("CREATE PROCEDURE p() BEGIN SELECT 1; SELECT 2; END", MY, 1),
])  # fmt: skip
def test_statements_are_counted(statement: str, dialect: str, count: int) -> None:
    assert read(statement, dialect).statements == count


@pytest.mark.parametrize(("statement", "dialect", "expected"), [
    ("SELECT $1", PG, True),
    ("SELECT '$1', \"$1\", $$ $1 $$, a$1 -- $1", PG, False),
    ("SELECT a ? 'b'", PG, False),
    ("SELECT ?", MY, True),
    ("SELECT '?', \"?\", `?` /* ? */ # ?", MY, False),
    ("SELECT $1", MY, False),
])  # fmt: skip
def test_placeholders_of_the_dialect(statement: str, dialect: str, expected: bool) -> None:
    assert read(statement, dialect).parameterized == expected


@pytest.mark.parametrize(("statement", "kept"), [
    ("SELECT 'x' /* c */ FROM t WHERE a IN (?, ?)", "SELECT 'x'  FROM t WHERE a IN (?, ?)"),
    ("SELECT 'x' FROM t WHERE a IN (1, 2)", "SELECT ? FROM t WHERE a IN (?)"),
    ("SELECT ?; ALTER USER bob IDENTIFIED BY 'secret'", "SELECT ?; ALTER USER bob IDENTIFIED BY ?"),
    ("SELECT ?; SET PASSWORD = 'secret'", "SELECT ?; SET PASSWORD = ?"),
])  # fmt: skip
def test_parameterized_text_is_kept_when_asked(statement: str, kept: str) -> None:
    result = read(statement, MY, keep=True)
    assert result.text.decode() == kept
    assert result.shape == read(statement, MY).shape


def test_a_literal_open_at_the_cut_is_replaced_even_in_kept_text() -> None:
    for end in ("'secr", "'it'", "12", ".5e"):
        assert read("SELECT ?, 'a', " + end, MY, complete=False, keep=True).text == b"SELECT ?, 'a', ?"


SHAPES = [
    ("SELECT 1", "SELECT 'a'", True),
    ("SELECT 1", "SELECT  -1e5 /* c */", True),
    ("SELECT a IN (1, 2)", "SELECT a IN (3)", True),
    ("INSERT INTO t VALUES (1, 2)", "INSERT INTO t VALUES ('a', NULL), (3, 4)", False),
    ("INSERT INTO t VALUES (1, 2)", "INSERT INTO t VALUES ('a', 5), (3, NULL)", True),
    ("SELECT 1 FROM ab", "SELECT 1 FROM a b", False),
    ("SELECT 1 FROM a", "SELECT 1 FROM b", False),
    ("SELECT a+b", "SELECT a-b", False),
    ("SELECT a", "select a", False),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other", "same"), SHAPES)
def test_shape(one: str, other: str, same: bool) -> None:
    assert (read(one).shape == read(other).shape) == same


def test_shapes_of_different_statements_differ() -> None:
    rng = random.Random(23)
    statements = {statement(rng, PG) for _ in range(2000)}
    texts: dict[int, set[str]] = {}
    for one in statements:
        result = read(one)
        if result.safe:
            texts.setdefault(result.shape, set()).add("".join(result.text.decode().split()))
    assert [found for found in texts.values() if len(found) > 1] == []


@pytest.mark.parametrize(("statement", "expected"), [
    ("SELECT 1 /*a='b',traceparent='00-aa-bb-01',tracestate='x%3D1'*/", b"00-aa-bb-01"),
    ("/* traceparent='00-aa-bb-01' */ SELECT 1", b"00-aa-bb-01"),
    ("SELECT 1 -- traceparent='00-aa-bb-01'", b"00-aa-bb-01"),
    ("SELECT 1 /*xtraceparent='00-aa-bb-01'*/", b""),
    ("SELECT 1 /*traceparent='00-aa", b""),
    ("SELECT 'traceparent=''00-aa-bb-01''' /* */", b""),
    ("/*traceparent='first'*/ SELECT 1 /*traceparent='second'*/", b"second"),
])  # fmt: skip
def test_traceparent_of_sqlcommenter(statement: str, expected: bytes) -> None:
    result = read(statement, complete="*/" in statement or "--" in statement)
    assert result.traceparent == expected
    assert result.text.decode().strip() in ("SELECT ?",)


def test_long_text_is_cut_between_characters_and_read_to_its_end() -> None:
    for pad in range(4):
        result = read("SELECT " + "a" * pad + "\u20ac" * 2000 + " FROM t WHERE a = 'x' JOIN u")
        assert result.cut and 4093 <= len(result.text) <= 4096
        result.text.decode()
        assert result.summary == b"SELECT t"
    one, other = (read("SELECT " + "a, " * 2000 + name) for name in ("b", "c"))
    assert one.text == other.text and one.shape != other.shape


def test_what_a_long_list_covered_is_there_again() -> None:
    result = read("SELECT * FROM t WHERE a IN (" + ", ".join(map(str, range(5000))) + ") AND b = 1")
    assert (result.text, result.cut) == (b"SELECT * FROM t WHERE a IN (?) AND b = ?", False)


def test_lists_and_characters_at_a_cut() -> None:
    assert read("SELECT a IN (1, 2, 3", complete=False).text == b"SELECT a IN (?"
    assert read("INSERT INTO t VALUES (1, 2), (3", complete=False).text == b"INSERT INTO t VALUES (?, ?)"
    for end in range(1, 3):
        assert read("SELECT a\u20ac".encode()[:-end], complete=False).text == b"SELECT a"
    assert read("SELECT * FROM orders", complete=False).summary == b"SELECT"


# --- random statements ----------------------------------------------------------------------------------

MARKER = "Z"  # in every literal, and nowhere else


def literal(rng: random.Random, dialect: str, backslash: str) -> str:
    body = "".join(
        rng.choices(
            ["Z", "ZZ", "''", '"', "`", "--", "/*", "*/", "#", "$$", ";", "(", ", ", "\n", "?"],
            k=rng.randrange(8),
        )
    )
    if backslash == "escapes":
        body += rng.choice(["", r"\'Z", r"\\", r"Z\nZ", r"\\\'Z"])
    elif backslash == "literal":
        body += rng.choice(["", "\\", "\\Z", "\\''Z"])
    kinds = [
        f"'{body}'",
        f"'Z{body}'",
        f"N'{body}'",
        f"{rng.choice(['', '-', '+'])}{rng.choice(['1', '.5', '0x'])}Z",
        "x'Z'",
    ]
    if dialect == PG:
        kinds += [
            f"$a${body}$a$",
            f"$$Z{body.replace('$', '')}$$",
            f"E'Z{body}\\'Z'" if backslash != "literal" else "E'\\'Z'",
        ]
    else:
        kinds += ['"Z\'Z"', '"Z""Z"']
    return rng.choice(kinds)


def expression(rng: random.Random, dialect: str, backslash: str, depth: int = 0) -> str:
    def more() -> str:
        return expression(rng, dialect, backslash, depth + 1)

    simple = [
        lambda: literal(rng, dialect, backslash),
        lambda: rng.choice(
            ["a", "t.b", "c1", "NULL", "now()", "t.true", '"q""x"' if dialect == PG else "`q``x`"]
        ),
        lambda: rng.choice(["$1", "$23"]) if dialect == PG else "?",
    ]
    nested = [
        lambda: f"{more()} {rng.choice(['=', '+', '-', '||', 'AND', '<'])} {more()}",
        lambda: f"({more()})",
        lambda: f"f({more()}, {more()})",
        lambda: f"a IN ({', '.join(literal(rng, dialect, backslash) for _ in range(rng.randrange(1, 5)))})",
        lambda: f"a NOT IN ( {more()},{more()} )",
        lambda: f"EXISTS (SELECT {more()} FROM u WHERE {more()})",
        lambda: f"a+{literal(rng, dialect, backslash)}",
    ]
    return rng.choice(simple if depth > 2 else simple + nested)()


def statement(rng: random.Random, dialect: str, backslash: str = "unknown") -> str:
    def some() -> str:
        return expression(rng, dialect, backslash)

    def row() -> str:
        return f"({some()}, {some()})"

    space = rng.choice([" ", "  ", "\n", " /* it's */ ", "/**/", " -- it's\n"])
    return rng.choice([
        lambda: f"SELECT {some()}, {some()}{space}FROM t, s.u JOIN v ON {some()} WHERE {some()}",
        lambda: f"INSERT INTO t (a, b){space}VALUES {', '.join(row() for _ in range(rng.randrange(1, 5)))}",
        lambda: f"INSERT INTO t VALUES{space}({literal(rng, dialect, backslash)}, NULL), (NULL, {some()})",
        lambda: f"UPDATE t SET a = {some()},{space}b = {some()} WHERE {some()}; {some()}",
        lambda: f"DELETE FROM t{space}WHERE {some()} -- end",
        lambda: f"CREATE TABLE t (a int DEFAULT {some()})",
    ])()  # fmt: skip


FRAGMENTS = [
    b"'", b"'", b'"', b"`", b"\\", b"\\\\", b"\\'", b"--", b"-- ", b"/*", b"*/", b"/*!", b"/*!40000",
    b"#", b"\n", b"\r", b" ", b"$", b"$$", b"$a$", b"$1", b"?", b"E'", b"x'", b"N'", b"U&'", b'U&"',
    b"_a'", b"a", b"e", b"1", b"0x", b".", b"1e", b"-", b"+", b"(", b")", b",", b";", b"[", b"]", b"@",
    b"IN (", b"IN(", b"VALUES ", b"VALUES(", b"(1,2),", b"NULL", b"TRUE", b"true.", b".false",
    b"SELECT ", b" FROM ", b"\xc3\xa9", b"\xe2\x82\xac", b"\x95", b"\x95\\'", b"\x95`", b"it's", b"Z",
    b"\x7f", b"*", b"/",
]  # fmt: skip


def agree(data: bytes, dialect: str, backslash: str) -> None:
    """The driver and the reference, which reads bytes as latin-1."""
    expected = sanitized(data.decode("latin-1"), dialect, backslash)
    result = read(data, dialect, backslash)
    assert result.safe == (expected is not None), data
    if expected is not None:
        assert result.text == expected.encode("latin-1")[:4096].rstrip(b" \t\n\v\f\r"), data


@pytest.mark.parametrize("dialect", [PG, MY])
@pytest.mark.parametrize("backslash", BACKSLASH)
def test_random_statements_are_read_as_the_reference_reads_them(dialect: str, backslash: str) -> None:
    rng = random.Random(f"{dialect} {backslash}")
    for _ in range(1500):
        agree(statement(rng, dialect, backslash).encode(), dialect, rng.choice(BACKSLASH))


@pytest.mark.parametrize("dialect", [PG, MY])
@pytest.mark.parametrize("backslash", BACKSLASH)
def test_random_fragments_are_read_as_the_reference_reads_them(dialect: str, backslash: str) -> None:
    rng = random.Random(f"fragments {dialect} {backslash}")
    for _ in range(6000):
        agree(b"".join(rng.choices(FRAGMENTS, k=rng.randrange(1, 24))), dialect, backslash)


@pytest.mark.parametrize("dialect", [PG, MY])
def test_what_is_safe_before_it_is_known_what_a_backslash_is_stays_so(dialect: str) -> None:
    rng = random.Random(f"unknown {dialect}")
    safe = 0
    for _ in range(6000):
        data = b"".join(rng.choices(FRAGMENTS, k=rng.randrange(1, 16)))
        complete = rng.random() < 0.7
        unknown = read(data, dialect, complete=complete)
        if unknown.safe:
            safe += b"\\'" in data
            assert read(data, dialect, "escapes", complete) == unknown, data
            assert read(data, dialect, "literal", complete) == unknown, data
    assert safe > 100


@pytest.mark.parametrize("dialect", [PG, MY])
@pytest.mark.parametrize("backslash", BACKSLASH)
def test_no_prefix_shows_a_literal(dialect: str, backslash: str) -> None:
    """However the server reads a backslash: it is told, or not."""
    rng = random.Random(f"prefixes {dialect} {backslash}")
    for _ in range(60):
        data = statement(rng, dialect, backslash).encode()
        for told in {backslash, "unknown"}:
            for end in range(len(data) + 1):
                result = read(data[:end], dialect, told, complete=False)
                assert MARKER.encode() not in result.text + result.summary, data[:end]
        assert backslash == "unknown" or read(data, dialect, backslash).safe, data


@pytest.mark.parametrize("dialect", [PG, MY])
def test_statements_that_differ_in_literals_have_one_shape(dialect: str) -> None:
    rng = random.Random(dialect)
    for _ in range(500):
        one = statement(rng, dialect)
        other = one.replace("Z", "Z" * rng.randrange(1, 9))
        first, second = read(one, dialect), read(other, dialect)
        if first.safe:
            assert (first.shape, first.text) == (second.shape, second.text), one
            assert first.shape == read(one, dialect, keep=True).shape


def bench() -> None:
    """Nanoseconds per statement: python -m tests.core.test_sql"""
    subprocess.run([compile_c("sql_bench", SOURCES, "-O2"), "bench"], check=True)


if __name__ == "__main__":
    bench()
