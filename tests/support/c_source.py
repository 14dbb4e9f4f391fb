# SPDX-License-Identifier: LGPL-2.1-or-later
"""Our C as text: its comments, functions and includes.

No parser: clang-format lays every file out alike, so a function begins at a
line's first column and ends with the next line that is a brace alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from support.paths import ROOT

CSRC = ROOT / "csrc"
COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
STRING = re.compile(r'"(?:[^"\\\n]|\\.)*"' r"|'(?:[^'\\\n]|\\.)*'")
# What can stand before the name of a function at the first column.
HEAD = re.compile(
    r"^(?!typedef|struct [^;(]*\{|#|\}|/|\*)[A-Za-z_][\w \t*\n,()]*?\(", re.M
)
NAME = re.compile(r"(\w+)\($")


@dataclass(frozen=True)
class Function:
    """A declaration or a definition of a function."""

    name: str
    comment: str  # what stands directly above
    at: int  # where it begins in the text
    end_of_head: int  # behind the closing parenthesis
    end: int  # behind the body, or the semicolon
    body: str  # without comments; "" for a declaration
    lines: int
    line: int


@dataclass(frozen=True)
class Source:
    path: Path
    text: str
    code: str  # the text with blanks for comments and strings

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @property
    def folder(self) -> str:
        """The folder of csrc that it stands in; "" for csrc itself."""
        return self.path.parent.relative_to(CSRC).as_posix().replace(".", "")

    def includes(self) -> list[str]:
        return re.findall(r'^#include "([^"]+)"', self.text, re.MULTILINE)

    def line_of(self, at: int) -> int:
        return self.text.count("\n", 0, at) + 1

    def functions(self) -> list[Function]:
        return _functions(self)


def blank(match: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", match[0])


def without_comments(text: str) -> str:
    """The same length and lines, comments and strings blank."""
    text = re.sub(r'^(#include )("[^"]*")', r"\1\2", text, flags=re.M)
    tokens = re.compile(rf"{COMMENT.pattern}|{STRING.pattern}", re.DOTALL)
    return tokens.sub(blank, text)


@cache
def source(path: Path) -> Source:
    text = path.read_text(encoding="utf-8")
    return Source(path, text, without_comments(text))


def tracked(*patterns: str) -> list[Path]:
    """Files of the tree that match, in any depth; nothing that was built."""
    built = {"build", ".venv", "dist", "__pycache__"}
    return sorted(
        path
        for pattern in patterns
        for path in (ROOT / pattern).parent.rglob(Path(pattern).name)
        if path.is_file() and not built & set(path.relative_to(ROOT).parts)
    )


def product() -> list[Source]:
    """The C sources and headers of the library."""
    return [source(path) for path in sorted(CSRC.rglob("*.[ch]"))]


def _closing(code: str, at: int) -> int:
    """Behind the parenthesis that closes the one at ``at``."""
    depth = 0
    for i in range(at, len(code)):
        depth += {"(": 1, ")": -1}.get(code[i], 0)
        if not depth:
            return i + 1
    raise ValueError("a parenthesis is open at the end of the file")


def _comment_above(text: str, at: int) -> str:
    """The comment that ends on the line before ``at``."""
    above = text[:at].rstrip(" \t")
    if not above.endswith("*/\n"):
        return ""
    start = above.rindex("/*")
    if above[above.rfind("\n", 0, start) + 1 : start].strip():
        return ""  # it stands beside something else
    return above[start:]


def _functions(file: Source) -> list[Function]:
    found = []
    code = file.code
    at = 0
    while head := HEAD.search(code, at):
        at = head.end()
        name = NAME.search(head[0])
        if (
            name is None
            or "=" in head[0]
            or name[1] in ("__attribute__", "_Static_assert")
        ):
            continue
        closed = _closing(code, head.end() - 1)
        follows = re.compile(r"\s*(?:__attribute__\(\(.*?\)\)\s*)?([{;])").match(
            code, closed
        )
        if follows is None:
            continue
        start = head.start()
        if follows[1] == "{":
            end = code.index("\n}", follows.end() - 1) + 2
            body = code[follows.end() : end - 1]
        else:
            end, body = follows.end(), ""
        comment = _comment_above(file.text, start)
        if beside := re.compile(r"[ \t]*(/\*.*?\*/)").match(file.text, end):
            comment += beside[1]
        found.append(
            Function(
                name[1],
                comment,
                start,
                closed,
                end,
                body,
                code.count("\n", start, end) + 1,
                file.line_of(start),
            )
        )
        at = end
    return found
