# SPDX-License-Identifier: LGPL-2.1-or-later
"""Several pytest processes that share one suite (`tests/tools/run_suite.py`).

Each of them collects all; a module is run by the one that claims it first.
What is marked `alone` measures time, and is left for a run of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("lanes")
    group.addoption(
        "--claims",
        type=Path,
        help="a folder: run the modules that no other process claimed there, "
        "and nothing that is marked `alone`",
    )
    group.addoption("--alone", action="store_true", help="only what is marked `alone`")


@pytest.hookimpl(trylast=True)  # what -k and -m leave
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    claims: Path | None = config.option.claims
    alone: bool = config.option.alone
    if claims is None and not alone:
        return
    others = [item for item in items if ("alone" in item.keywords) != alone]
    items[:] = [item for item in items if ("alone" in item.keywords) == alone]
    config.hook.pytest_deselected(items=others)
    if claims is not None:
        (claims / "selected").write_text(str(len(items)))


def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """Run what is claimed, a module at a time, as pytest itself would."""
    claims: Path | None = session.config.option.claims
    if claims is None or session.config.option.collectonly or session.testsfailed:
        return None
    for items in claimed(session.items, claims):
        for item, after in zip(items, [*items[1:], None], strict=True):
            session.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
            if session.shouldfail:
                (claims / "stop").touch()
                raise session.Failed(session.shouldfail)
            if session.shouldstop:
                raise session.Interrupted(session.shouldstop)
    return True


def claimed(items: list[pytest.Item], claims: Path) -> Iterator[list[pytest.Item]]:
    for module, of_module in groupby(items, key=lambda item: item.path):
        if (claims / "stop").exists():  # -x, and another lane has failed
            return
        name = "-".join(module.parts[-2:])
        try:
            (claims / name).touch(exist_ok=False)
        except FileExistsError:
            continue
        yield list(of_module)
