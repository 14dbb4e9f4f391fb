# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a host program can log: read from a side, never called back."""

from __future__ import annotations

import itertools
import select

import pytest

from remus_native import ConfigError, State
from remus_native._binding import lib, text
from support.pair import checkpoint
from support.waiting import until


def states(side):
    return [entry.state for entry in side.log().entries]


def follows(entries) -> bool:
    numbers = {text(lib.remus_state_name(i)): i for i in range(len(State))}
    path = [numbers[entry.state.value] for entry in entries]
    return all(
        a == b or lib.remus_state_follows(lib.REMUS_ROLE_PRIMARY, a, b)
        for a, b in itertools.pairwise(path)
    )


def test_each_change_is_there_with_its_reason(make_pair):
    pair = make_pair()
    log = pair.primary.log()
    assert log.lost == 0 and log.next == len(log.entries)
    first, last = log.entries[0], log.entries[-1]
    assert (first.state, first.connected) == (State.CONNECTING, False)
    assert first.text == "no connection to the backup yet"
    status = pair.primary.status()
    assert (last.state, last.connected) == (status.state, status.connected)
    assert last.text == status.reason
    assert follows(log.entries)
    assert states(pair.backup)[0] is State.INCONSISTENT
    assert states(pair.backup)[-1] is State.PROTECTED
    times = [entry.time_ns for entry in log.entries]
    assert times == sorted(times)
    # Nothing is said of a checkpoint.
    checkpoint(pair.primary)
    assert pair.primary.log(log.next).entries == ()


def test_a_loss_is_there_once_the_descriptor_tells_of_it(make_pair):
    pair = make_pair()
    pair.primary.events()
    at = pair.primary.log().next
    pair.backup.close()
    assert select.select([pair.primary.event_fd()], [], [], 30)[0]
    entries = pair.primary.log(at).entries
    assert entries and entries[0].state is State.UNPROTECTED
    assert not entries[0].connected
    until(lambda: pair.primary.log(at).entries[-1].text, what="no reason")


def test_a_backup_that_fails_to_be_reached_is_said_once(make_pair):
    pair = make_pair(connect_ms=10)
    at = pair.primary.log().next
    pair.backup.close()

    def tried_again() -> bool:
        entries = pair.primary.log(at).entries
        return bool(entries) and "not back" in entries[-1].text

    until(tried_again)
    texts = [str(entry) for entry in pair.primary.log(at).entries]
    assert all(a != b for a, b in itertools.pairwise(texts))


def test_the_number_is_checked(make_pair):
    pair = make_pair()
    for bad in (-1, 1 << 64, "0", None):
        with pytest.raises(ConfigError):
            pair.primary.log(bad)  # type: ignore[arg-type]
    assert pair.primary.log((1 << 64) - 1).entries == ()
