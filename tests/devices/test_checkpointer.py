# SPDX-License-Identifier: LGPL-2.1-or-later
"""The loop: order, pacing, what happens when something fails, statistics."""

from __future__ import annotations

import errno
import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remus_native import (
    CheckpointDevices,
    Checkpointer,
    CheckpointTimeout,
    ConfigError,
    EpochStatistics,
    NullGuest,
    PhaseError,
    ReplicaResource,
    ReplicationLost,
    StateError,
)
from remus_native.checkpointer import _series, percentile
from remus_native.epochs import SeriesSummary
from support.scripted import Scripted


class Guest:
    """Remembers what was done to it, in one list with the device's calls."""

    def __init__(self, calls: list[str]) -> None:
        self.calls = calls
        self.running = True
        self.fail: dict[str, Exception] = {}

    def _do(self, what: str) -> None:
        self.calls.append(what)
        if what in self.fail:
            raise self.fail[what]

    def suspend(self) -> None:
        self._do("suspend")
        self.running = False

    def copy(self, tag: Any) -> None:
        assert not self.running
        self._do("copy")

    def resume(self) -> None:
        self.running = True
        self._do("resume")

    def wait_complete(self) -> None:
        assert self.running
        self._do("wait_complete")


def make(
    copy: Any = None, **options: Any
) -> tuple[Checkpointer, Guest, Scripted, list[str]]:
    calls: list[str] = []
    device = Scripted("d", calls)
    guest = Guest(calls)
    if copy is not None:
        guest.copy = copy  # type: ignore[method-assign]
    layer = CheckpointDevices([device])
    options.setdefault("interval_s", 0)
    return Checkpointer(layer, guest, **options), guest, device, calls


def test_the_order_is_libxls():
    checkpointer, _, _, calls = make()
    assert checkpointer.run(count=1) == 1
    assert calls == [
        "d.setup",
        "suspend",
        "d.postsuspend",
        "copy",
        "d.preresume",
        "resume",
        "wait_complete",
        "d.commit",
        "d.teardown",
    ]


@pytest.mark.parametrize("where", ["suspend", "copy", "postsuspend", "preresume"])
def test_the_guest_is_resumed_whatever_fails(where):
    checkpointer, guest, device, calls = make()
    (guest if where in ("suspend", "copy") else device).fail[where] = StateError(where)
    with pytest.raises(StateError, match=where):
        checkpointer.run(count=1)
    assert guest.running
    assert calls[-1] == "d.teardown"
    assert "d.commit" not in calls
    assert checkpointer.summary().checkpoints == 0


def test_the_first_error_stays_the_error():
    checkpointer, guest, device, _ = make()
    device.fail["preresume"] = StateError("first")
    guest.fail["resume"] = StateError("second")
    with pytest.raises(StateError, match="first") as caught:
        checkpointer.run(count=1)
    if hasattr(caught.value, "__notes__"):
        assert "second" in caught.value.__notes__[0]


def test_a_guest_that_does_not_resume_is_an_error():
    checkpointer, guest, _, calls = make()
    guest.fail["resume"] = StateError("stuck")
    with pytest.raises(StateError, match="stuck"):
        checkpointer.run(count=1)
    assert calls.count("resume") == 1
    assert "d.commit" not in calls


def test_loss_stops_or_goes_on_as_told():
    told: list[Any] = []
    checkpointer, guest, device, _ = make(loss_callback=told.append)
    device.fail["preresume"] = ReplicationLost("gone")
    with pytest.raises(ReplicationLost):
        checkpointer.run(count=3)
    assert guest.running
    assert str(told[0]) == "gone"
    assert checkpointer.summary().lost == "gone"
    quiet, guest, device, _ = make(on_loss="continue")
    device.fail["postsuspend"] = ReplicationLost("gone")
    assert quiet.run(count=3, duration_s=0.05) == 0
    assert guest.running
    assert quiet.summary().lost == "gone"


@pytest.mark.parametrize(
    ("phase", "error"),
    [
        ("postsuspend", ReplicationLost("gone")),
        ("preresume", ReplicationLost("gone")),
        ("preresume", CheckpointTimeout("late")),
        ("commit", ReplicationLost("gone")),
    ],
)
def test_checkpoints_go_on_when_the_backup_is_back(phase, error):
    """Until the device is ready nobody suspends the guest again."""
    lost: list[str] = []
    back: list[float] = []
    checkpointer, _, device, calls = make(
        on_loss="continue",
        loss_callback=lambda error: lost.append(str(error)),
        return_callback=back.append,
    )
    suspended: list[int] = []

    def is_ready() -> bool:
        """Asked three times; then the backup is back."""
        suspended.append(calls.count("suspend"))
        if len(suspended) < 3:
            return False
        device.fail.clear()
        return True

    device.is_ready = is_ready  # type: ignore[attr-defined]
    device.fail[phase] = error
    assert checkpointer.run(count=2) == 2
    assert suspended == [1, 1, 1]
    assert (lost, len(back)) == ([str(error)], 1)
    assert 0.2 < back[0] < 30
    summary = checkpointer.summary()
    assert (summary.losses, summary.lost) == (1, None)


def test_a_failure_that_is_no_loss_ends_it():
    checkpointer, guest, device, _ = make(on_loss="continue")
    device.fail["preresume"] = StateError("broken")
    with pytest.raises(StateError, match="broken"):
        checkpointer.run(count=3)
    assert guest.running


def test_stop_ends_the_wait_for_the_backup():
    checkpointer, _, device, _ = make(on_loss="continue")
    device.is_ready = lambda: bool(checkpointer.stop())  # type: ignore[attr-defined]
    device.fail["postsuspend"] = ReplicationLost("gone")
    assert checkpointer.run() == 0
    assert checkpointer.stopped
    assert checkpointer.summary().lost == "gone"


def test_stop_from_another_thread():
    seen = threading.Event()
    checkpointer, _, _, _ = make(interval_s=60, on_checkpoint=lambda stats: seen.set())
    thread = threading.Thread(target=checkpointer.run)
    thread.start()
    assert seen.wait(10)
    checkpointer.stop()
    thread.join(10)
    assert not thread.is_alive()
    with pytest.raises(PhaseError):
        checkpointer.run()


@pytest.mark.alone
def test_pacing_is_from_start_to_start():
    checkpointer, _, _, _ = make(lambda tag: time.sleep(0.04), interval_s=0.05)
    start = time.monotonic()
    checkpointer.run(count=10)
    took = time.monotonic() - start
    assert 0.45 <= took < 0.85  # not 10 x 90 ms


def test_duration_and_lateness():
    checkpointer, _, _, _ = make(lambda tag: time.sleep(0.005), interval_s=0.001)
    taken = checkpointer.run(duration_s=0.05)
    assert 1 <= taken <= 11
    assert checkpointer.summary().late == taken


def test_tags_and_history():
    checkpointer, _, _, _ = make(tag=lambda n: f"cp{n}", history=3)
    checkpointer.run(count=5)
    assert [stats.tag for stats in checkpointer.history] == ["cp3", "cp4", "cp5"]
    summary = checkpointer.summary()
    assert (summary.checkpoints, summary.kept) == (5, 3)
    last = checkpointer.history[-1]
    assert last.pause_ns >= last.ack_ns >= 0
    assert last.total_ns >= last.pause_ns
    pauses = sorted(stats.pause_ns for stats in checkpointer.history)
    series = summary.pause_ns
    assert (series.count, series.min, series.p50, series.max) == (3, *pauses)
    assert (series.total, series.mean) == (sum(pauses), sum(pauses) // 3)


@given(st.lists(st.integers(0, 1 << 60), max_size=60))
def test_a_series_is_exact(values):
    series = _series(values)
    if not values:
        assert series == SeriesSummary(0, 0, 0, 0, 0, 0, 0, 0, 0)
        return
    assert (series.count, series.total) == (len(values), sum(values))
    assert (series.min, series.max) == (min(values), max(values))
    for fraction, found in ((0.5, series.p50), (0.9, series.p90), (0.99, series.p99)):
        at_most = sum(value <= found for value in values)
        below = sum(value < found for value in values)
        assert found in values
        assert below < fraction * len(values) <= at_most + 1e-6


def test_percentiles():
    values = [float(n) for n in range(1, 101)]
    assert percentile(values, 0.5) == 50
    assert percentile(values, 0.99) == 99
    assert percentile(values, 1.0) == 100
    assert percentile([7.0], 0.99) == 7
    assert percentile([], 0.5) == 0


@pytest.mark.parametrize(
    "bad", [{"interval_s": -1}, {"on_loss": "perhaps"}, {"history": 0}]
)
def test_bad_settings(bad):
    with pytest.raises(ConfigError):
        make(**bad)


def test_over_a_real_replica(make_pair):
    pair = make_pair([65536])
    layer = CheckpointDevices([ReplicaResource(pair.primary)])
    stop = threading.Event()

    class Counted(NullGuest):
        """Writes no more after its last checkpoint: a journal that is full
        would make the engine take one more."""

        suspended = 0

        def suspend(self) -> None:
            self.suspended += 1
            if self.suspended == 50:
                stop.set()
                thread.join()

    checkpointer = Checkpointer(layer, Counted(), interval_s=0.001)

    def guest() -> None:
        n = 0
        while not stop.is_set():
            pair.primary.pwrite(0, bytes([n % 256]) * 512, n % 100 * 512)
            n += 1
            time.sleep(0.0002)

    thread = threading.Thread(target=guest)
    thread.start()
    try:
        assert checkpointer.run(count=50) == 50
    finally:
        stop.set()
        thread.join()
    pair.primary.close()
    epoch = pair.backup.promote(tag=50)
    assert checkpointer.history[-1].numbers == (epoch,)


def test_checkpoints_go_into_statistics_that_others_can_read():
    with EpochStatistics("guest0") as epochs:
        checkpointer, _, _, _ = make(epochs=epochs)
        assert checkpointer.epochs is epochs
        checkpointer.run(count=3)
        samples = epochs.recent(10)
        assert [s.epoch for s in samples] == [1, 2, 3]
        for sample, stats in zip(samples, checkpointer.history, strict=True):
            assert sample.barrier_ns == stats.barrier_ns
            assert sample.ack_ns == stats.ack_ns
            assert sample.commit_ns == stats.commit_ns
            assert sample.errno is None
            assert 0 < sample.start_ns <= time.monotonic_ns()


@pytest.mark.parametrize(
    ("phase", "error", "number"),
    [
        ("postsuspend", ReplicationLost("gone", errno=errno.EPROTO), errno.EPROTO),
        ("preresume", CheckpointTimeout("late", errno=errno.ETIMEDOUT), 110),
        ("preresume", ValueError("no errno"), errno.EIO),
    ],
)
def test_a_failed_checkpoint_is_in_the_statistics(phase, error, number):
    with EpochStatistics("guest0") as epochs:
        checkpointer, guest, device, _ = make(epochs=epochs)
        checkpointer.devices.setup()
        checkpointer.once()
        device.fail[phase] = error
        with pytest.raises(type(error)):
            checkpointer.once()
        device.fail.clear()
        guest.fail["suspend"] = OSError("no phase of a device was reached")
        with pytest.raises(OSError, match="reached"):
            checkpointer.once()
        del guest.fail["suspend"]
        checkpointer.once()
        found = [(s.epoch, s.errno, s.commit_ns) for s in epochs.recent(10)]
        assert [each[:2] for each in found] == [(1, None), (2, number), (2, None)]
        assert found[0][2] and found[1][2] is None and found[2][2]
        assert epochs.summary().failed == 1


def test_what_the_devices_keep_themselves_is_found():
    checkpointer, _, _, _ = make()
    assert checkpointer.epochs is None
    with checkpointer.devices as devices:
        epochs = devices.epochs
        assert checkpointer.epochs is epochs
        checkpointer.run(count=1)
        assert epochs.end == 1  # the layer has added it, and nobody else


def test_the_bytes_of_a_replica_are_known(make_pair):
    pair = make_pair()
    with EpochStatistics("guest0") as epochs:
        checkpointer = Checkpointer(
            CheckpointDevices([ReplicaResource(pair.primary)]),
            NullGuest(),
            interval_s=0,
            epochs=epochs,
        )
        pair.primary.pwrite(0, b"x" * 700, 0)
        checkpointer.run(count=2)
        assert [s.bytes for s in epochs.recent(2)] == [700, 0]
