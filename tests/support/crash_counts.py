# SPDX-License-Identifier: LGPL-2.1-or-later
"""How many states after a crash does a test look at?  Kept in its report."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.crash_model import World


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    before = World.crashes
    yield
    if World.crashes > before:
        item.user_properties.append(("crash_states", World.crashes - before))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if World.crashes:
        terminalreporter.write_line(f"states after a crash: {World.crashes}")
