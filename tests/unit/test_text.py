# SPDX-License-Identifier: LGPL-2.1-or-later
"""Text from elsewhere is printed printable; event lines can be read back."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remus_native._text import event, printable, quoted, shortened

# With halves of surrogate pairs, as undecodable bytes of a path are.
ANY_TEXT = st.text(st.characters(codec=None, categories=None))
HOSTILE = "\x1b[2J\n\r\t\x00\x7f\x85\x9b\u202e\u2066\u2028\u200b\ufeff\ud800\udcff"


def read_back(line: str) -> dict[str, str]:
    """The pairs of an event line, by a reader that knows the rule only."""
    pair = re.compile(r'([a-z_]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s"=\\]+))(?: |\Z)')
    found, at = {}, 0
    while at < len(line):
        match = pair.match(line, at)
        assert match, line[at:]
        key, inside, bare = match.groups()
        found[key] = bare if inside is None else unescape(inside)
        at = match.end()
    return found


def unescape(text: str) -> str:
    one = re.compile(
        r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8})|(.))", re.DOTALL
    )

    def mean(match: re.Match[str]) -> str:
        digits = match[1] or match[2] or match[3]
        if digits:
            return chr(int(digits, 16))
        return {"n": "\n", "t": "\t", "r": "\r"}.get(match[4], match[4])

    return one.sub(mean, text)


@given(ANY_TEXT, ANY_TEXT)
def test_an_event_line_is_one_line_and_can_be_read_back(first, second):
    line = event("state", reason=first, source=second)
    assert line.isprintable()
    assert read_back(line) == {"event": "state", "reason": first, "source": second}


def test_what_somebody_else_worded_is_quoted_always():
    line = event("refused", source="tcp:192.0.2.1", count=3, reason="closed")
    assert line == 'event=refused source="tcp:192.0.2.1" count=3 reason="closed"'


@given(ANY_TEXT)
def test_a_text_is_printed_printable(text):
    shown = printable(text)
    assert shown.isprintable()
    assert all(
        unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in shown
    )
    if text.isprintable():
        assert shown == text


@given(ANY_TEXT, st.integers(4, 80))
def test_a_shortened_text_is_short(text, length):
    shown = shortened(text, length)
    assert shown.isprintable() and len(shown) <= length


def test_nothing_of_a_hostile_text_is_left():
    shown = printable(HOSTILE)
    assert shown.isprintable()
    assert shown.startswith("\\x1b[2J\\n\\r\\t\\x00")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("", '""'),
        ("bare/value:1", "bare/value:1"),
        ("two words", '"two words"'),
        ("a=b", '"a=b"'),
        ('say "no"', '"say \\"no\\""'),
        ("back\\slash", '"back\\\\slash"'),
        ("é", '"é"'),
        (7, "7"),
    ],
)
def test_a_value_is_quoted_where_it_must_be(value, shown):
    assert quoted(value) == shown
