# SPDX-License-Identifier: Apache-2.0
"""What `agent/core/sql.c` should make of a statement, written a second time, plainly and slowly.

`sanitized("SELECT 'a', 1", "postgresql")` is "SELECT ?, ?", and None where two readings are possible.
End-to-end tests compare a server's own log with spans through it: the same statement gives the same text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

SPACES = " \t\n\v\f\r"
WORD = r"[A-Za-z0-9_$\x80-\U0010ffff]"


class TwoReadings(Exception):
    """Servers of this dialect may read the statement differently, or not at all."""


@dataclass
class Token:
    kind: str  # space, comment, literal, placeholder, word, name, other
    text: str

    @property
    def counts(self) -> bool:
        return self.kind not in ("space", "comment")


def string_end(text: str, quote_at: int, backslash: str) -> int:
    quote, at = text[quote_at], quote_at + 1
    while at < len(text):
        run = re.compile(r"\\*").match(text, at)
        assert run is not None
        if backslash != "literal" and run[0]:
            after = run.end()
            if text[after : after + 1] == quote:
                if text[at - 1] >= "\x80" and at - 1 > quote_at:
                    raise TwoReadings("a backslash that may be half of a character")
                if len(run[0]) % 2:
                    if backslash == "unknown":
                        raise TwoReadings("an escaped quote, or the end")
                    at = after + 1
                    continue
            at = after
        elif text[at] != quote:
            at += 1
        elif text[at + 1 : at + 2] == quote:
            at += 2
        else:
            return at + 1
    raise TwoReadings("a string without end")


def name_end(text: str, at: int) -> int:
    found = re.compile(r'"(?:[^"]|"")*"|`(?:[^`]|``)*`').match(text, at)
    if found is None:
        raise TwoReadings("a name without end")
    return found.end()


def block_end(text: str, at: int, nested: bool) -> int:
    depth = 0
    for mark in re.compile(r"/\*|\*/").finditer(text, at) if nested else ():
        depth += 1 if mark[0] == "/*" else -1
        if depth == 0:
            return mark.end()
    end = text.find("*/", at + 2)
    if nested or end < 0:
        raise TwoReadings("a comment without end")
    return end + 2


def is_utf8(text: str) -> bool:
    """Bytes come as latin-1, text as itself; lone bytes are what makes the difference."""
    try:
        text.encode("latin-1").decode()
    except UnicodeEncodeError:
        return True
    except UnicodeDecodeError:
        return False
    return True


def tokens(text: str, dialect: str, backslash: str) -> list[Token]:
    mysql = dialect != "postgresql"
    dollar = "$" if mysql else ""
    number = re.compile(
        rf"0[xX][A-Za-z0-9_.{dollar}\x80-\U0010ffff]*"
        rf"|\.?[0-9](?:[A-Za-z0-9_.{dollar}\x80-\U0010ffff]|(?<=[eE])[+-](?=[0-9]))*"
    )
    prefix = re.compile(r"[xXbBnN]?'" if mysql else r"(?:[xXbBnNeE]|[uU]&)?'")
    out: list[Token] = []
    at, executable = 0, -1

    def before() -> Token | None:
        return next((token for token in reversed(out) if token.counts), None)

    strings_before: list[bool] = []  # of the strings that follow each other: is it an E''?
    while at < len(text):
        end, kind = at + 1, "other"
        c, two = text[at], text[at : at + 2]
        adjacent = out[-1] if out and out[-1].counts else None
        value = adjacent is not None and (
            adjacent.kind in ("word", "name", "placeholder") or adjacent.text in (")", "]")
        )
        behind_word = at > 0 and re.match(WORD, text[at - 1]) is not None
        quoted = prefix.match(text, at)
        if c in SPACES:
            kind = "space"
            while end < len(text) and text[end] in SPACES:
                end += 1
        elif (
            two == "--"
            and (not mysql or at + 2 >= len(text) or text[at + 2] <= " " or text[at + 2] == "\x7f")
        ) or (mysql and c == "#"):
            kind = "comment"
            while end < len(text) and text[end] not in ("\n" if mysql else "\r\n"):
                end += 1
        elif at == executable:
            kind, end = "comment", at + 2
            executable = -1
        elif two == "/*":
            kind, end = "comment", block_end(text, at, not mysql)
            if mysql and (runs := re.compile(r"/\*M?!\d{0,6}").match(text, at)) and executable < 0:
                inside = text[at + 2 : end - 2]
                if re.search(r"""['"`#\\$]|--|/\*""", inside):
                    raise TwoReadings("SQL in a comment")
                executable, end = end - 2, runs.end()
        elif quoted or (mysql and c == '"'):
            quote_at = quoted.end() - 1 if quoted else at
            how = backslash
            escapes = not mysql and c in "eE"
            doubtful = (quote_at == at and behind_word) or any(strings_before)
            if escapes:
                how = "escapes"
            elif not mysql and doubtful and how == "literal":
                how = "unknown"
            kind, end = "literal", string_end(text, quote_at, how)
            strings_before.append(escapes)
        elif c == ("`" if mysql else '"'):
            kind, end = "name", name_end(text, at)
            if mysql and (not is_utf8(text[at:end]) or (at > 0 and text[at - 1] >= "\x80")):
                raise TwoReadings("a backtick that may be half of a character")
        elif not mysql and re.compile(r'[uU]&"').match(text, at):
            kind, end = "name", name_end(text, at + 2)
        elif c == "$" and (
            tag := re.compile(r"\$(?:[A-Za-z_\x80-\U0010ffff][A-Za-z0-9_\x80-\U0010ffff]*)?\$").match(
                text, at
            )
        ):
            if mysql or (close := text.find(tag[0], tag.end())) < 0:
                raise TwoReadings("a dollar-quoted string")
            kind, end = "literal", close + len(tag[0])
        elif not mysql and (found := re.compile(r"\$[0-9]+").match(text, at)):
            kind, end = "placeholder", found.end()
        elif mysql and c == "?":
            kind = "placeholder"
        elif (c.isdecimal() and c < "\x80") or (c == "." and not value and number.match(text, at)):
            found = number.match(text, at)
            assert found is not None
            kind, end = "literal", found.end()
        elif c in "+-" and not value and (found := number.match(text, at + 1)):
            kind, end = "literal", found.end()
        elif re.match(WORD, c) and (c != "$" or mysql):
            while end < len(text) and re.match(WORD, text[end]):
                end += 1
            kind = "word"
            if (
                text[at:end].upper() in ("TRUE", "FALSE")
                and text[end : end + 1] != "."
                and text[at - 1 : at] != "."
            ):
                kind = "literal"
        if kind not in ("space", "comment") and not (quoted or (mysql and c == '"')):
            strings_before.clear()
        out.append(Token(kind, text[at:end]))
        at = end
    return out


def keyword(row: list[Token], index: int, *words: str) -> bool:
    token = row[index]
    return (
        token.kind == "word"
        and token.text.upper() in words
        and not (index and row[index - 1].text == ".")
        and not (index + 1 < len(row) and row[index + 1].text[0] == ".")
    )


def collapsed(row: list[Token]) -> list[Token]:
    """IN (1, 2) becomes IN (1), VALUES (1, 2), (3, 4) becomes VALUES (1, 2): elements that look alike."""

    def next_token(index: int) -> int:
        return next((i for i in range(index + 1, len(row)) if row[i].counts), len(row))

    def opens(index: int, *words: str) -> bool:
        following = next_token(index)
        return keyword(row, index, *words) and following < len(row) and row[following].text == "("

    def closing(opening: int) -> int:
        depth = 0
        for i in range(opening, len(row)):
            depth += (row[i].text == "(") - (row[i].text == ")")
            if depth == 0:
                return i
        return len(row)

    def looks(first: int, end: int, rows: bool) -> list[str]:
        return [
            "?"
            if row[i].kind in ("literal", "placeholder") or (rows and keyword(row, i, "NULL", "DEFAULT"))
            else row[i].text
            for i in range(first, end)
            if row[i].counts
        ]

    def has_list(first: int, end: int) -> bool:
        return any(opens(i, "IN", "VALUES", "VALUE") for i in range(first, end))

    drop: set[int] = set()
    for index in range(len(row)):
        if opens(index, "IN"):
            opening = next_token(index)
            close = closing(opening)
            if close == len(row) or has_list(opening, close):
                continue
            commas, depth = [], 0
            for i in range(opening, close):
                depth += (row[i].text == "(") - (row[i].text == ")")
                if row[i].text == "," and depth == 1:
                    commas.append(i)
            starts = [opening + 1, *[i + 1 for i in commas]]
            elements = [looks(a, b, False) for a, b in zip(starts, [*commas, close], strict=True)]
            if commas and all(element == elements[0] for element in elements):
                drop.update(i for i in range(commas[0], close))
                kept = [i for i in range(opening + 1, commas[0]) if row[i].counts]
                drop.update(range(kept[-1] + 1 if kept else opening + 1, commas[0]))
        elif opens(index, "VALUES", "VALUE"):
            opening, kept_look, kept_end = next_token(index), None, 0
            while opening < len(row) and row[opening].text == "(":
                close = closing(opening)
                if close == len(row) or has_list(opening, close):
                    break
                look = looks(opening + 1, close, True)
                if look == kept_look:
                    drop.update(range(kept_end + 1, close + 1))
                else:
                    kept_look, kept_end = look, close
                comma = next_token(close)
                if comma == len(row) or row[comma].text != ",":
                    break
                opening = next_token(comma)
    return [token for i, token in enumerate(row) if i not in drop]


def sanitized(text: str, dialect: str, backslash: str = "unknown") -> str | None:
    """`dialect`: "postgresql", "mysql" or "mariadb"; `backslash`: "unknown", "escapes" or "literal"."""
    try:
        row = tokens(text, dialect, backslash)
    except TwoReadings:
        return None
    out, gap = "", False
    for token in collapsed(row):
        if token.kind == "comment":
            gap = True
            continue
        piece = "?" if token.kind == "literal" else token.text
        if gap and out and out[-1] not in SPACES and piece[0] not in SPACES:
            out += " "
        gap = False
        out += piece
    return out.strip(SPACES)
