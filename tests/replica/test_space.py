# SPDX-License-Identifier: LGPL-2.1-or-later
"""Room in the journal: lack of it slows writes, and never costs anything.

Journals as small as they may be, and checkpoints that pile up without a
commit until there is no room for another barrier.  Then postsuspend says so
(EAGAIN) and nothing else happens: every prepared epoch can still be committed,
each by itself, from either side, and after that all goes on.
"""

from __future__ import annotations

import errno
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from remus_native import State, StateError
from support.pair import Pair
from support.waiting import until

SEGMENT = 65536


def small_pair(folder: Path, segments: int, commit_by: str) -> Pair:
    pair = Pair(
        folder,
        [SEGMENT],
        commit_by=commit_by,
        journal_bytes=segments * SEGMENT,
        segment_bytes=SEGMENT,
        stall_ms=60000,
    )
    pair.open_backup()
    pair.open_primary()
    return pair


def checkpoint(pair: Any) -> int | None:
    """Its number; None if there is no room for its barrier."""
    try:
        epoch = int(pair.primary.postsuspend())
    except StateError as error:
        if error.errno != errno.EAGAIN:
            raise
        return None
    pair.primary.preresume(epoch, timeout_s=20)
    return epoch


def pile_up(pair: Any, sizes: list[int], limit: int) -> list[int]:
    """Checkpoints without a commit, until there is no room or enough."""
    epochs: list[int] = []
    for i in range(limit):
        if size := sizes[i % len(sizes)]:
            data = bytes([i % 256]) * size
            writer = threading.Thread(target=pair.primary.pwrite, args=(0, data, 0))
            writer.start()
            # It may have to wait for room that will not come by itself.
            writer.join(0.3)
            if writer.is_alive():
                pair.writers.append(writer)
                return epochs
        epoch = checkpoint(pair)
        if epoch is None:
            return epochs
        epochs.append(epoch)
    return epochs


def one_more(pair: Any) -> int:
    """A checkpoint, once there is room again."""
    end = time.monotonic() + 20
    while (epoch := checkpoint(pair)) is None:
        assert time.monotonic() < end, str(pair.primary.status())
        time.sleep(0.002)
    return epoch


def check(folder: Path, segments: int, commit_by: str, sizes: list[int],
          one_by_one: bool, limit: int) -> None:  # fmt: skip
    pair: Any = small_pair(folder, segments, commit_by)
    pair.writers = []
    try:
        give = pair.backup if commit_by == "backup" else pair.primary
        for _ in range(2):
            epochs = pile_up(pair, sizes, limit)
            assert epochs or pair.writers
            assert pair.primary.status().state is State.PROTECTED
            for epoch in epochs if one_by_one else epochs[-1:]:
                give.commit(epoch)
            give.commit(one_more(pair))
            for writer in pair.writers:
                writer.join(20)
                assert not writer.is_alive(), str(pair.primary.status())
        newest = one_more(pair)
        assert pair.primary.status().state is State.PROTECTED
        pair.primary.close()
        assert pair.backup.promote(newest) == newest
        assert pair.image("backup", 0) == pair.image("primary", 0)
    finally:
        pair.close()


@pytest.mark.parametrize("commit_by", ["primary", "backup"])
@pytest.mark.parametrize("one_by_one", [False, True], ids=["newest", "each"])
@pytest.mark.parametrize("sizes", [[0], [4096], [30000], [0, 16000, 100]])
def test_a_full_journal(tmp_path, commit_by, one_by_one, sizes):
    check(tmp_path, 8, commit_by, sizes, one_by_one, 2000)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    segments=st.integers(4, 20),
    commit_by=st.sampled_from(["primary", "backup"]),
    sizes=st.lists(st.integers(0, SEGMENT), min_size=1, max_size=6),
    one_by_one=st.booleans(),
    limit=st.sampled_from([3, 30, 2000]),
)
def test_any_small_journal(segments, commit_by, sizes, one_by_one, limit):
    with tempfile.TemporaryDirectory() as folder:
        check(Path(folder), segments, commit_by, sizes, one_by_one, limit)


# ---- what both sides say of a journal that is full --------------------------------


def fill(pair: Any, commit: bool) -> list[int]:
    """Checkpoints until a write has to wait for room, or a barrier has none."""
    epochs: list[int] = []
    for i in range(200):
        data = bytes([i % 256]) * 30000
        writer = threading.Thread(target=pair.primary.pwrite, args=(0, data, 0))
        writer.start()
        pair.writers.append(writer)
        writer.join(0.3)
        if writer.is_alive():
            return epochs
        epoch = checkpoint(pair)
        if epoch is None:
            return epochs
        epochs.append(epoch)
        if commit:
            pair.primary.commit(epoch)
    raise AssertionError("the journal is not full")


NOT_COMMITTED = "journal is full of checkpoints that are not committed"


@pytest.mark.parametrize("pinned", [True, False])
def test_a_full_journal_is_named_on_both_sides(tmp_path, pinned):
    """While writes wait for room, once the link is lost, and after restarts."""
    pair: Any = small_pair(tmp_path, 8, "primary")
    pair.writers = []
    try:
        first = one_more(pair)
        pair.primary.commit(first)
        until(lambda: pair.backup.status().committed_epoch == first)
        if pinned:
            pair.backup.pin(first)
        epochs = fill(pair, commit=pinned)
        assert pair.backup.status().committed_epoch == first
        says = "is pinned by" if pinned else NOT_COMMITTED
        # Protected still, but what is waited for has its name.
        until(lambda: says in pair.primary.status().reason)
        assert pair.primary.status().state is State.PROTECTED
        own = f"checkpoint {first} is pinned" if pinned else NOT_COMMITTED
        until(lambda: own in pair.backup.status().reason)
        assert pair.backup.status().state is State.PROTECTED
        # No session can begin any more: a primary hears why, a new one, too.
        pair.backup.close()
        for writer in pair.writers:
            writer.join(20)
        for fresh in (False, True):
            if fresh:
                pair.primary.close()
                pair.open_primary(wait=False)
            else:
                pair.open_backup()
                if pinned:  # it ended with the handle
                    pair.backup.pin(first)
            until(lambda: pair.backup.status().state is State.STANDBY)
            until(lambda: own in pair.backup.status().reason)
            until(lambda: pair.primary.status().state is State.UNPROTECTED)
            until(lambda: says in pair.primary.status().reason)
        # Room again: it comes back by itself, and nothing is said any more.
        if pinned:
            pair.backup.pin(None)
        pair.backup.commit(epochs[-1])
        pair.primary.wait_protected(timeout_s=30)
        until(lambda: "journal" not in pair.backup.status().reason)
        assert "journal" not in pair.primary.status().reason
        newest = one_more(pair)
        pair.primary.close()
        assert pair.backup.promote(newest) == newest
        assert pair.image("backup", 0) == pair.image("primary", 0)
    finally:
        pair.close()


@pytest.mark.parametrize("pinned", [True, False])
def test_a_link_that_ends_over_a_full_journal_says_so(tmp_path, pinned):
    """A write that waited for room longer than ``stall``."""
    pair: Any = Pair(tmp_path, [SEGMENT], journal_bytes=8 * SEGMENT, stall_ms=1500)
    pair.writers = []
    pair.open_backup()
    pair.open_primary()
    try:
        first = one_more(pair)
        pair.primary.commit(first)
        until(lambda: pair.backup.status().committed_epoch == first)
        if pinned:
            pair.backup.pin(first)
        fill(pair, commit=pinned)
        says = "is pinned by" if pinned else NOT_COMMITTED
        more = threading.Thread(target=pair.primary.pwrite, args=(0, b"x", 0))
        pair.writers.append(more)
        more.start()
        until(lambda: pair.primary.status().state is State.UNPROTECTED)
        assert says in pair.primary.status().reason
        for writer in pair.writers:
            writer.join(20)
            assert not writer.is_alive()
    finally:
        pair.close()
