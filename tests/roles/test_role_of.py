# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a state directory says that its host is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from remus_native import RemusError, role_of
from support.pair import Pair, checkpoint


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path, [1 << 20])
    yield made
    made.close()


def roles(pair: Pair) -> tuple[str | None, str | None]:
    a, b = (role_of("guest0", pair.folder / side) for side in ("primary", "backup"))
    return a, b


def test_before_any_start_it_says_nothing(pair: Pair) -> None:
    assert roles(pair) == (None, None)
    assert role_of("guest0", pair.folder / "nowhere") is None


def test_each_side_is_what_it_was_opened_as(pair: Pair) -> None:
    pair.open_backup()
    assert roles(pair) == (None, "backup")
    primary = pair.open_primary()
    assert roles(pair) == ("primary", "backup")
    primary.close()
    assert roles(pair) == ("primary", "backup")


def test_a_promote_makes_a_primary_and_the_one_that_stepped_down_a_backup(
    pair: Pair,
) -> None:
    backup = pair.open_backup()
    primary = pair.open_primary()
    checkpoint(primary)
    primary.session_end()
    backup.promote()  # the primary is asked, and steps down
    assert roles(pair) == ("backup", "primary")
    primary.close()
    backup.close()
    assert roles(pair) == ("backup", "primary")


def test_a_primary_that_was_failed_away_from_is_one_until_it_hears_of_it(
    pair: Pair,
) -> None:
    backup = pair.open_backup()
    primary = pair.open_primary()
    checkpoint(primary)
    primary.close()
    backup.promote(force=True)
    assert roles(pair) == ("primary", "primary")


def test_what_is_another_resources_is_refused(pair: Pair) -> None:
    pair.open_backup()
    pair.open_primary()
    for side in ("primary", "backup"):
        with pytest.raises(RemusError, match=rf"{side}\.state"):
            role_of("guest1", pair.folder / side)


def test_what_is_damaged_is_refused(pair: Pair) -> None:
    pair.open_backup().close()
    state = pair.folder / "backup" / "backup.state"
    state.write_bytes(bytes(byte ^ 1 for byte in state.read_bytes()))
    with pytest.raises(RemusError, match=r"backup\.state"):
        role_of("guest0", state.parent)
