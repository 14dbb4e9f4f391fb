# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a person sees: a live line or table, sizes and times in words."""

from __future__ import annotations

import queue
import shutil
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TextIO, TypeVar, cast

from .._text import printable
from .log import Log, emit

__all__ = [
    "LiveLine",
    "LiveTable",
    "bytes_text",
    "seconds_text",
    "table",
    "with_progress",
]

T = TypeVar("T")
L = TypeVar("L", bound="LiveLine")


class LiveLine:
    """One line at the bottom of a terminal that is written again and again.

    Nothing is shown where nobody watches (``stream`` is no terminal), and
    nothing in the first second: what is quick needs no progress.  Call
    `update` as often as you like; it draws ten times a second at most.
    `note` prints a lasting line above it, on a terminal or not.
    """

    def __init__(
        self, stream: TextIO | Log | None = None, *, delay_s: float = 1.0
    ) -> None:
        self.stream = sys.stderr if stream is None else stream
        self.watched = _is_terminal(self.stream)
        self._from = time.monotonic() + delay_s
        self._next = self._from
        self._drawn = False

    def __enter__(self: L) -> L:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.clear()

    def due(self) -> bool:
        """Whether `update` would draw now: asks before the text is made."""
        return self.watched and time.monotonic() >= self._next

    def update(self, text: str) -> None:
        """Show ``text``, if somebody watches and it is time."""
        if not self.due():
            return
        self._next = time.monotonic() + 0.1
        width = shutil.get_terminal_size().columns - 1
        # A terminal that is gone is not drawn on any more.
        shown = printable(text[:width])[: max(1, width)]
        self.watched = emit(self.stream, "\r\x1b[K" + shown)
        self._drawn = self.watched

    def clear(self) -> None:
        """Take the line away."""
        if self._drawn:
            emit(self.stream, "\r\x1b[K")
            self._drawn = False
            self._next = 0.0

    def note(self, text: str) -> None:
        """Print a line that stays; printable."""
        self.clear()
        emit(self.stream, f"{printable(text)}\n")


def _is_terminal(stream: TextIO | Log | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except (OSError, ValueError):  # closed, or hung up
        return False


class LiveTable(LiveLine):
    """A `LiveLine` that is a table where the extra ``rich`` is installed.

    Drawn four times a second at most, in the thread that calls `show`.
    """

    def __init__(
        self, stream: TextIO | Log | None = None, *, delay_s: float = 1.0
    ) -> None:
        super().__init__(stream, delay_s=delay_s)
        self._rich: Any = _rich_live(self.stream) if self.watched else None

    def show(self, title: str, rows: list[tuple[str, str]]) -> None:
        """Show ``rows``, if somebody watches and it is time."""
        if not self.due():
            return
        if self._rich is None:
            self.update(f"{title}: " + ", ".join(" ".join(row) for row in rows))
            return
        self._next = time.monotonic() + 0.25
        if not self._drawn:
            self._rich.start()
            self._drawn = True
        self._rich.update(_rich_table(title, rows), refresh=True)

    def clear(self) -> None:
        """Take it away."""
        if self._rich is not None and self._drawn:
            self._rich.stop()
            self._drawn = False
            self._next = 0.0
        super().clear()


def _rich_live(stream: TextIO | Log | None) -> Any:
    """A display of rich's that draws when told; None without rich."""
    try:
        from rich.console import Console
        from rich.live import Live
    except ImportError:
        return None
    console = Console(file=cast(TextIO, stream), highlight=False, soft_wrap=False)
    # No thread of its own, and nothing is left on the screen.  Output of
    # others stays theirs: ours goes to the terminal only.
    return Live(
        console=console,
        auto_refresh=False,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )


def _rich_table(title: str, rows: list[tuple[str, str]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=Text(title), title_justify="left", show_header=False)
    for name, value in rows:
        drawn.add_row(Text(printable(name)), Text(printable(value)))
    return drawn


def with_progress(job: Callable[[], T], text: Callable[[], str]) -> T:
    """Do ``job`` and return its result, with a live line if it takes long.

    ``job`` runs in a thread of its own while this one draws ``text()``; where
    nobody watches it simply runs here.
    """
    with LiveLine() as live:
        if not live.watched:
            return job()
        results: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

        def work() -> None:
            try:
                results.put((True, job()))
            except BaseException as error:
                results.put((False, error))

        threading.Thread(target=work, name="remus-job", daemon=True).start()
        while True:
            try:
                good, result = results.get(timeout=0.2)
            except queue.Empty:
                if live.due():
                    live.update(text())
                continue
            if good:
                return result  # type: ignore[no-any-return]
            raise result


def bytes_text(count: int) -> str:
    """A number of bytes for a person: "512 B", "1.5 MiB"."""
    if count < 1024:
        return f"{count} B"
    size = float(count)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        size /= 1024
        if size < 1024 or unit == "TiB":
            break
    return f"{size:.1f} {unit}"


def seconds_text(seconds: float) -> str:
    """A time for a person: "0.42 ms", "25 ms", "3.2 s"."""
    if seconds < 0.9995:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds:.1f} s" if seconds % 1 else f"{seconds:.0f} s"


def table(rows: list[tuple[str, str]], *, indent: str = "  ") -> str:
    """Two columns, the second one aligned; all of it printable."""
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(
        f"{indent}{printable(name):<{width}}  {printable(value)}"
        for name, value in rows
    )
