# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a person sees: the live line and table, numbers in words, systemd."""

from __future__ import annotations

import io
import socket
import sys
from pathlib import Path

import pytest

from remus_native.cli._process import notify_systemd
from remus_native.shared.progress import (
    LiveLine,
    LiveTable,
    bytes_text,
    seconds_text,
    table,
)

# ---- what a person sees ---------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_live_line() -> None:
    stream = Terminal()
    with LiveLine(stream, delay_s=0) as live:
        live.update("half")
        live.update("not drawn: too soon")
        live.note("stays")
    shown = stream.getvalue()
    assert "half" in shown and "too soon" not in shown
    assert shown.endswith("\x1b[Kstays\n")


def test_live_line_is_silent_at_first_and_without_a_terminal() -> None:
    for stream, delay_s in ((Terminal(), 60.0), (io.StringIO(), 0.0)):
        with LiveLine(stream, delay_s=delay_s) as live:
            assert not live.due()
            live.update("nothing")
        assert stream.getvalue() == ""


ROWS = [("checkpoints", "12"), ("pause", "p50 1 ms [not markup], max 2 ms")]


def test_live_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    stream = Terminal()
    with LiveTable(stream, delay_s=0) as live:
        live.show("guest0", ROWS)
        live.show("not drawn: too soon", ROWS)
        live.note("stays")
        live.show("guest0 again", ROWS)
    shown = stream.getvalue()
    for words in ("guest0", "checkpoints", "p50 1 ms [not markup]", "guest0 again"):
        assert words in shown
    assert "too soon" not in shown and "stays\n" in shown
    # The second one is drawn below what stays, and nothing is left of it.
    assert shown.index("stays") < shown.index("guest0 again")
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 2  # the cursor
    assert shown.rstrip().endswith("\x1b[2K")


def test_live_table_without_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setenv("COLUMNS", "200")
    stream = Terminal()
    with LiveTable(stream, delay_s=0) as live:
        live.show("guest0", ROWS)
    assert (
        "guest0: checkpoints 12, pause p50 1 ms [not markup], max 2 ms"
        in stream.getvalue()
    )


def test_live_table_is_silent_without_a_terminal() -> None:
    stream = io.StringIO()
    with LiveTable(stream, delay_s=0) as live:
        live.show("guest0", ROWS)
    assert stream.getvalue() == ""


def test_words() -> None:
    assert [bytes_text(n) for n in (0, 1023, 1536, 8 << 20, 3 << 40)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "8.0 MiB",
        "3.0 TiB",
    ]
    assert [seconds_text(s) for s in (0.00042, 0.025, 0.9999, 1.26, 60)] == [
        "0.42 ms",
        "25 ms",
        "1.0 s",
        "1.3 s",
        "60 s",
    ]
    assert table([("a", "1"), ("bbb", "2")]) == "  a    1\n  bbb  2"


def test_sd_notify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"{tmp_path}/notify")
        monkeypatch.setenv("NOTIFY_SOCKET", f"{tmp_path}/notify")
        notify_systemd("READY=1")
        assert manager.recv(100) == b"READY=1"
    notify_systemd("READY=1")  # nobody listens: no error
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify_systemd("READY=1")
