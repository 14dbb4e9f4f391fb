# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command line: usage, help, files that are wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from remus_native.cli import main

COMMANDS = (
    "backup", "primary", "run", "status", "events", "metrics", "doctor",
    "promote", "commit", "verify", "swap", "resume", "demo",
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_and_the_exit_codes(
    command: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "example:\n  remus-native " + command in text
    assert "exit codes:" in text and "130  interrupted" in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(re.search(rf"^    {c}\s+\w", text, flags=re.M) for c in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required: COMMAND"),
        (["explode"], "invalid choice"),
        (["status"], "required: FILE"),
        (["run", "--interval", "50", "f"], 'such as "50ms" or "3s", got "50"'),
        (["run", "--count", "0", "f"], "a number from 1 on"),
        (["promote", "--checkpoint", "1", "--tag", "x", "f"], "not allowed with"),
        (["commit", "f", "x"], "a number from 1 on"),
        (["status", "--side", "left", "f"], "invalid choice"),
        (["metrics", "--listen", "9790", "f"], "expected HOST:PORT"),
        (["demo", "--seconds", "0"], "0.1 to 3600"),
        (["demo", "--size", "1MiB"], "64MiB"),
        (["demo", "--interval", "fast"], '"25ms", got "fast"'),
    ],
)
def test_usage(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert words in error and "usage: remus-native" in error


def test_a_wrong_file_is_told_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "guest0.toml"
    file.write_text('name = "x"\nack = 3\n')
    assert main(["status", str(file)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    assert all(line.startswith(f"remus-native: {file}: ") for line in lines)
