# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whatever stands in a resource file or on the command line: a clear error."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from remus_native.cli import main
from remus_native.resource_file import (
    ResourceFileError,
    load,
    parse,
    parse_duration_ms,
    parse_size,
)
from remus_native.resource_file._values import KNOWN
from support.host import Host
from support.paths import ROOT

EXAMPLE = (ROOT / "docs/example.toml").read_text()
HOSTILE = "\x1b[2J\n\x85\u202ereversed\u2028\x7f"
ANY_TEXT = st.text(st.characters(codec="utf-8"), max_size=30)


def problems_of(text: str, file: str = "f.toml") -> tuple[str, ...]:
    """What is wrong with it; () if nothing.  Anything else is a fault."""
    found: ResourceFileError | None = None
    try:
        parse(text, file=file)
    except ResourceFileError as error:
        found = error
    if found is None:
        return ()
    assert found.problems
    assert str(found).isprintable()
    for problem in found.problems:
        assert problem.isprintable(), problem
        assert len(problem) < 2000
    return found.problems


def toml(value: Any) -> str:
    """A value as TOML has it, with everything odd as an escape."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value).replace("\\ud", "\\\\ud").replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, dict):
        pairs = (f"{toml(k)} = {toml(v)}" for k, v in value.items())
        return "{" + ", ".join(pairs) + "}"
    return str(value)


VALUES = st.recursive(
    st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(width=32)
    | ANY_TEXT
    | st.sampled_from(["8GiB", "3s", "/x", "none", "tcp:h:1", "unix:/s", "0600"])
    | st.from_regex(r"\A[0-9]{1,40}(\.[0-9]{1,20})?(ms|s|min|KiB|TiB)\Z"),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=3)
    ),
    max_leaves=8,
)
ALL_KEYS = sorted({key for keys in KNOWN.values() for key in keys})
KEYS = st.sampled_from(ALL_KEYS) | ANY_TEXT
TABLES = st.dictionaries(KEYS, VALUES, max_size=8)


@settings(max_examples=50, deadline=None)
@given(TABLES, TABLES, TABLES, st.lists(TABLES, max_size=3))
def test_any_values_are_read_or_refused_in_words(top, primary, limits, volumes):
    document = {**top, "primary": primary, "limits": limits, "volume": volumes}
    lines = [f"{toml(key)} = {toml(value)}" for key, value in document.items()]
    problems_of("\n".join(lines))


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(EXAMPLE) - 1), st.integers(0, 40), ANY_TEXT)
def test_any_change_to_a_good_file_is_read_or_refused(at, cut, inserted):
    problems_of(EXAMPLE[:at] + inserted + EXAMPLE[at + cut :])


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(ALL_KEYS), VALUES)
def test_any_value_for_each_key(key, value):
    kind = next(kind for kind, keys in KNOWN.items() if key in keys)
    head = {"": "", "volume": "[[volume]]\n"}.get(kind, f"[{kind}]\n")
    problems_of(f"{head}{key} = {toml(value)}\n")


@pytest.mark.parametrize(
    "text",
    [
        f"name = {'9' * 5000}",
        f"name = 0x{'f' * 5000}",
        f"name = [0x{'f' * 5000}]",
        f"name = -{'9' * 5000}",
        f"name = 1.{'9' * 5000}",
        f"name = {'[' * 5000}{']' * 5000}",
        f"name = {'[' * 5000}",
        f"name = {'{a=' * 5000}1{'}' * 5000}",
        f"{'a.' * 5000}b = 1",
        f"[{'a.' * 5000}b]",
        f"[limits]\nstall = '{'9' * 5000}min'",
        f"[limits]\nstall = '{'9' * 18}min'",
        f"[limits]\nqueue = '{'9' * 5000}TiB'",
        f"address = 'tcp:h:{'9' * 5000}'",
        "address = 'tcp:h:\u0661\u0662'",
        "[limits]\nstall = '\u0663s'",
        "address = 'tcp:\u202eh:7'",
        f"name = '{'x' * 200_000}'",
        "\n".join(f"k{i} = 1" for i in range(15_000)),
        "\n".join(f"[[volume]]\nname = 'v{i % 7}'" for i in range(8_000)),
        '"' + "\\u001b\\u202e" * 1000 + '" = 1',
        "name = 1979-05-27T07:32:00Z",
        "name = nan",
    ],
    ids=lambda text: text[:25],
)
def test_what_grows_without_bound_is_refused_in_time(text):
    start = time.monotonic()
    problems = problems_of(text)
    assert problems and len(problems) <= 101
    assert time.monotonic() - start < 20  # many times what it takes


def test_hostile_text_is_shown_with_escapes():
    problems = problems_of(
        f"{toml(HOSTILE)} = 1\nname = {toml(HOSTILE)}\n", file=f"x{HOSTILE}"
    )
    assert any("\\x1b[2J\\n\\x85\\u202ereversed\\u2028\\x7f" in p for p in problems)


@given(VALUES | st.text(st.sampled_from("0123456789.eE-+ _\u0663sminTKB"), max_size=60))
@example("9" * 5000 + "s")
@example("9e16min")
@example("90000000000000000min")
@example("9" * 30 + "TiB")
@example(True)
def test_sizes_and_durations_are_values_or_refused(value):
    with contextlib.suppress(ValueError):
        assert 0 < parse_duration_ms(value) < 1 << 63
    with contextlib.suppress(ValueError):
        assert parse_size(value) > 0


# ---- what is no file ------------------------------------------------------------


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


def test_a_fifo_is_not_waited_for(fifo, capsys):
    assert main(["status", str(fifo)]) == 2
    assert "it is not a regular file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["/dev/zero", "/dev/null", "/dev/tty", "/", "/dev/stdin"]
)
def test_what_is_no_file_is_refused(name, capsys):
    if not os.path.exists(name):
        pytest.skip(f"allowed: there is no {name}")
    assert main(["status", name]) == 2
    said = capsys.readouterr().err
    assert "cannot be read" in said and len(said.splitlines()) == 1


def test_a_file_without_end_is_refused(tmp_path, capsys):
    large = tmp_path / "large.toml"
    with large.open("wb") as file:
        file.truncate(1 << 40)
    assert main(["status", str(large)]) == 2
    assert "it has more than 256 KiB" in capsys.readouterr().err


@pytest.mark.parametrize(
    "data", [b"\xff\xfe", b"\xed\xa0\x80", b"\x00" * 10, b"\xef\xbb\xbf#"]
)
def test_bytes_that_are_no_text(tmp_path, data):
    file = tmp_path / "f.toml"
    file.write_bytes(data)
    with pytest.raises(ResourceFileError):
        load(file)


def test_a_name_with_a_nul():
    with pytest.raises(ResourceFileError, match="cannot be read"):
        load("a\0b")


def test_a_psk_file_that_is_a_fifo_is_not_waited_for(host: Host, fifo, capsys):
    text = host.file.read_text()
    host.file.write_text(f'tls = "psk"\npsk_file = "{fifo}"\n{text}')
    assert main(["backup", "--create", str(host.file)]) == 2
    assert str(fifo) in capsys.readouterr().err


# ---- the command line -------------------------------------------------------------


def run(*arguments: str) -> tuple[int, str]:
    """The exit code and what was said; nothing else may come out of it."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code: Any = main(list(arguments))
        except SystemExit as error:
            code = error.code
    assert isinstance(code, int)
    return code, err.getvalue()


ARGUMENT = st.text(
    st.characters(codec=None, categories=None, exclude_characters="\0"), max_size=30
)
NUMBERS = st.from_regex(
    r"\A[-+]?[0-9]{1,60}(e[0-9]{1,9}|\.[0-9]{1,30})?(min|s|ms|TiB|MiB)?\Z"
)
OPTIONS = [
    ["run", "--interval"], ["run", "--timeout"], ["run", "--duration"],
    ["run", "--count"], ["run", "--qmp"], ["promote", "--checkpoint"],
    ["promote", "--tag"], ["verify", "--rate"], ["status", "--side"],
    ["demo", "--seconds"], ["demo", "--interval"], ["demo", "--size"],
    ["demo", "--seed"],
]  # fmt: skip


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.sampled_from(OPTIONS), ARGUMENT | NUMBERS, ARGUMENT)
@example(["run", "--interval"], "9e16min", "f")
@example(["run", "--interval"], "90000000000000000min", "f")
@example(["run", "--duration"], "9" * 5000 + "min", "f")
@example(["promote", "--checkpoint"], "9" * 5000, "f")
@example(["promote", "--checkpoint"], "\u0663", "f")
@example(["promote", "--tag"], "\udcff", "f")
@example(["promote", "--tag"], HOSTILE, HOSTILE)
@example(["demo", "--seconds"], "nan", "f")
@example(["demo", "--size"], "9" * 18 + "TiB", "f")
def test_any_argument_is_taken_or_refused_in_words(option, value, file):
    # No such option of `demo` may begin a demo: what follows is none.
    code, said = run(*option, value, f"/nonexistent/{file}", "--no-such-option")
    assert code == 2
    lines = said.splitlines()
    assert lines and all(line.isprintable() for line in lines), said
    assert all(len(line) < 600 for line in lines)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["status", "promote", "swap", "run", "backup"]), ARGUMENT)
def test_any_file_name_is_refused_in_words(command, name):
    code, said = run(command, "--", f"/nonexistent/{name}")
    assert code == 2
    assert all(line.isprintable() for line in said.splitlines())
    assert said.startswith("remus-native: /nonexistent/")


def test_a_tag_that_is_too_long():
    code, said = run("promote", "--tag", "x" * 33, "f")
    assert code == 2 and "1 to 32 bytes" in said


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_whose_encoding_lacks_characters(host: Host, encoding):
    """Paths in Chinese on a terminal in Latin-1: escapes, no traceback."""
    odd = host.folder / "卷\u202e"
    odd.mkdir()
    text = host.file.read_text().replace(f'{host.folder}/b0"', f'{odd}/b0"')
    host.file.write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "remus_native", "backup", str(host.file)],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert b"\\u202e" in done.stderr and b"\xe2\x80\xae" not in done.stderr


# ---- --create -------------------------------------------------------------------


def test_create_beyond_the_file_systems_limit_leaves_nothing(host: Host):
    text = host.file.read_text().replace('size = "1MiB"', 'size = "4194304TiB"')
    host.file.write_text(text.replace('name = "data"', 'name = "data"\nsize = "1MiB"'))
    code, said = run("backup", "--create", str(host.file))
    assert code == 2
    assert str(host.folder / "b0") in said and "--create" in said
    assert not (host.folder / "b0").exists()
    assert not (host.folder / "b1").exists()
