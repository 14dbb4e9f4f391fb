# SPDX-License-Identifier: LGPL-2.1-or-later
"""Each public declaration of C says what a caller has to know.

A comment counts for all declarations that follow it without an empty line.  The
head of a section (a comment right below its `---- title ----`, with an empty
line behind it) counts for the whole section, and what remus.h says for all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from support.public_headers import CSRC, DECLARED, PUBLIC

#: Rules that remus.h gives for every function, as its own words say them.
RULES = {
    "units": "Sizes and offsets are bytes, times are milliseconds (`_ms`) or",
    "no timeout": "A negative timeout waits without a limit",
    "threads": "Handles may be used from any number of threads at once",
    "errors": "A function that names no error of its own has only the two of",
    "NULL": "NULL for a handle, or for an argument that is not said to be optional",
    "ownership": "Strings passed in are copied; strings handed out belong to the",
    "forks": "Forks: a handle belongs to the process that opened it",
}
#: Numbers whose unit the rules give, or that have none: counts, indices.
PLAIN = re.compile(
    r"\w+_(ms|ns|bytes|len|epoch|count|done|total|limit)|len|offset|size|count|cap"
    r"|epoch|volume|tag|[ug]id|pid|crc|crc32c|min|max|mean|p\d+|low|high|first_ns"
    r"|epochs|flags|after|added"
)
NUMBER = re.compile(r"\b(?:u?int\d*_t|size_t|int|unsigned int)\s+(?!\*)(\w+)$")
#: Functions that mirror or mend what libxl or DRBD do.
MIRRORS = re.compile(
    r"remus_drbd_(?!close|cancel_signal|barriers|is_node)"
    r"|remus_group_(open|post|pre|commit)|remus_primary_(postsuspend|preresume|commit)$"
    r"|remus_(export|standby)_open$|remus_backup_promote$"
)
SOURCE = re.compile(r"\b(libxl|DRBD|protocol D|xl)\b")


@dataclass(frozen=True)
class Declared:
    """One function or struct, and the words that count for it."""

    name: str
    kind: str
    comment: str
    head: str
    text: str

    @property
    def said(self) -> str:
        return f"{self.head} {self.comment}"


TOKEN = re.compile(
    r"/\* -{3,} (?P<title>.*?) -+ \*/\n"
    r"|(?P<comment>/\*.*?\*/)"
    r"|^REMUS_API\s(?P<function>[^;]*);"
    r"|^struct (?P<struct>remus_\w+) \{(?P<body>.*?)^\};",
    re.MULTILINE | re.DOTALL,
)


def words(comment: str) -> str:
    return " ".join(re.sub(r"^\s*/?\*+/?", "", comment, flags=re.M).split())


def read(header: str) -> list[Declared]:
    text = (CSRC / header).read_text()
    part = text.split("/* cffi:begin */")[1].split("/* cffi:end */")[0]
    found = []
    head = comment = ""
    title_ends = comment_ends = 0
    for one in TOKEN.finditer(part):
        if one["title"]:
            head, title_ends = "", one.end()
        elif one["comment"]:
            alone = part.startswith("\n\n", one.end())
            if alone and not part[title_ends : one.start()].strip():
                head = words(one["comment"])
            comment, comment_ends = words(one["comment"]), one.end()
        else:
            if "\n\n" in part[comment_ends : one.start()]:
                comment = ""
            name = one["struct"] or re.search(r"(remus_\w+)\(", one["function"])[1]  # type: ignore[index]
            body = one["body"] or one["function"]
            kind = "struct" if one["struct"] else "function"
            found.append(Declared(name, kind, comment, head, body))
            comment_ends = one.end()
    return found


ALL = [one for path in PUBLIC[1:] for one in read(path.relative_to(CSRC).as_posix())]
FUNCTIONS = [one for one in ALL if one.kind == "function"]
STRUCTS = [one for one in ALL if one.kind == "struct"]


def test_every_declaration_is_read():
    assert {one.name for one in FUNCTIONS} == {name for name, _ in DECLARED}
    assert len(STRUCTS) > 14


@pytest.mark.parametrize("rule", RULES)
def test_remus_h_has_the_rules_that_count_for_all(rule):
    page = (CSRC / "remus.h").read_text()
    assert RULES[rule] in re.sub(r"\s*\n \*\s+", " ", page)


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
def test_a_comment_says_what_it_is_for(one):
    assert len(one.comment.split()) > 1


@pytest.mark.parametrize("one", FUNCTIONS, ids=lambda one: one.name)
def test_it_says_whether_it_blocks(one):
    assert re.search(r"\bblocks?\b|\bnever waits\b", one.said, re.IGNORECASE)


@pytest.mark.parametrize("one", FUNCTIONS, ids=lambda one: one.name)
def test_it_says_how_it_fails(one):
    if one.text.startswith("int "):
        said = r"\bErrors:|\bnever fails\b|\bno errors of (its|their) own\b|^As remus_"
        assert re.search(said, one.said, re.IGNORECASE)


@pytest.mark.parametrize("one", FUNCTIONS, ids=lambda one: one.name)
def test_it_says_what_its_numbers_are(one):
    inside = one.text[one.text.index("(") + 1 : one.text.rindex(")")]
    for part in inside.split(","):
        number = NUMBER.search(" ".join(part.split()))
        if number and not PLAIN.fullmatch(number[1]):
            assert re.search(rf"[`*]?\b{number[1]}\b", one.comment), number[1]


@pytest.mark.parametrize("one", STRUCTS, ids=lambda one: one.name)
def test_each_member_says_what_it_is(one):
    members = re.findall(r"^ {4}(?! )([^;{}/]+;)(\s*/\*)?", one.text, re.MULTILINE)
    assert members
    for member, comment in members:
        names = re.findall(r"(\w+)(?:\[\w+\])?[,;]", member)
        plain = names and all(PLAIN.fullmatch(name) for name in names)
        told = "(" in member or re.match(r"enum|const struct", member)
        assert comment or plain or told, member


@pytest.mark.parametrize(
    "one",
    [one for one in FUNCTIONS if MIRRORS.match(one.name)],
    ids=lambda one: one.name,
)
def test_it_says_what_it_mirrors_or_mends(one):
    assert SOURCE.search(one.said)
