# SPDX-License-Identifier: LGPL-2.1-or-later
"""Epoch statistics from Python: quantiles, ring, other processes, a primary's.

tests/c/test_epochs.c has what needs threads and processes at full speed.
"""

from __future__ import annotations

import dataclasses
import errno
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remus_native import (
    ConfigError,
    EpochSample,
    EpochStatistics,
    Primary,
    ReplicationLost,
    StateError,
    Volume,
)
from remus_native.epochs import RING, SERIES
from support import formats
from support.backup_process import BackupProcess

U64 = (1 << 64) - 1


def wait_for(ready: Callable[[], Any]) -> Any:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        value = ready()
        if value:
            return value
        time.sleep(0.005)
    raise AssertionError("not in a minute")


def exact(values: list[int], permille: int) -> int:
    """The smallest value that so many of them do not exceed."""
    rank = max(1, -(-permille * len(values) // 1000))
    return sorted(values)[rank - 1]


# ---- numbers ------------------------------------------------------------------

# Values of every magnitude, not mostly huge ones.
VALUES = st.integers(0, 64).flatmap(lambda bits: st.integers(0, (1 << bits) - 1))


@given(st.lists(VALUES, min_size=1, max_size=300))
def test_quantiles_are_those_of_the_sorted_list(values: list[int]) -> None:
    with EpochStatistics("x") as statistics:
        for i, value in enumerate(values):
            statistics.add(EpochSample(i + 1, bytes=value))
        found = statistics.summary().bytes
        buckets = statistics.histogram("bytes")
    assert (found.count, found.min, found.max) == (
        len(values),
        min(values),
        max(values),
    )
    assert found.mean == sum(values) // len(values)
    assert found.total == min(sum(values), U64)
    for permille, quantile in (
        (500, found.p50),
        (900, found.p90),
        (990, found.p99),
        (999, found.p999),
    ):
        right = exact(values, permille)
        assert right <= quantile <= right + right // 64
    assert sum(bucket.count for bucket in buckets) == len(values)
    for bucket in buckets:
        inside = [v for v in values if bucket.low <= v <= bucket.high]
        assert len(inside) == bucket.count > 0
    assert buckets == sorted(buckets, key=lambda bucket: bucket.low)


def test_many_values_keep_the_bound() -> None:
    """A skewed distribution with many values in each bucket."""
    values = [int(math.exp(i / 5000)) for i in range(100_000)]
    with EpochStatistics("x") as statistics:
        for i, value in enumerate(values):
            statistics.add(EpochSample(i + 1, ack_ns=value))
        found = statistics.summary().ack_ns
    for permille, quantile in ((500, found.p50), (990, found.p99), (999, found.p999)):
        right = exact(values, permille)
        assert right <= quantile <= right + right // 64


def test_series_are_of_good_epochs_only() -> None:
    with EpochStatistics("guest0") as statistics:
        statistics.add(EpochSample(1, barrier_ns=10, ack_ns=20, bytes=5))
        statistics.add(EpochSample(2, barrier_ns=9, ack_ns=9**9, errno=errno.EPROTO))
        statistics.add(EpochSample(3, barrier_ns=30, ack_ns=40, extents=2, coalesced=0))
        statistics.committed(1, 7)
        statistics.committed(2, 7)
        statistics.measured(1, 3, 4)
        found = statistics.summary()
        samples = statistics.recent(10)
    assert (found.name, found.epochs, found.failed) == ("guest0", 3, 1)
    assert (found.pause_ns.count, found.pause_ns.min, found.pause_ns.max) == (2, 30, 70)
    assert found.commit_ns.count == 1 and found.extents.count == 2
    assert found.coalesced.max == 4
    assert samples == [
        EpochSample(
            1, barrier_ns=10, ack_ns=20, bytes=5, commit_ns=7, extents=3, coalesced=4
        ),
        EpochSample(2, barrier_ns=9, ack_ns=9**9, commit_ns=7, errno=errno.EPROTO),
        EpochSample(3, barrier_ns=30, ack_ns=40, extents=2, coalesced=0),
    ]
    assert samples[0].pause_ns == 30
    for frozen in (found, found.bytes, samples[0]):
        with pytest.raises(dataclasses.FrozenInstanceError):
            frozen.name = "other"  # type: ignore[misc, union-attr]


def test_the_ring_wraps_and_says_what_it_lost() -> None:
    with EpochStatistics("x") as statistics:
        assert statistics.recent(5) == [] and statistics.end == 0
        for i in range(RING + 100):
            statistics.add(EpochSample(i + 1))
        everything = statistics.since(0)
        assert (len(everything.samples), everything.lost) == (RING, 100)
        assert everything.samples[0].epoch == 101
        assert everything.next == statistics.end == RING + 100
        assert statistics.since(everything.next).samples == ()
        statistics.add(EpochSample(RING + 101))
        (newest,) = statistics.since(everything.next).samples
        assert newest.epoch == RING + 101
        assert statistics.since(U64).next == RING + 101
        assert [s.epoch for s in statistics.recent(2)] == [RING + 100, RING + 101]
        assert len(statistics.recent(10 * RING)) == RING
        assert statistics.recent(0) == []
        statistics.committed(5, 1)  # overwritten: nothing happens
        assert statistics.summary().commit_ns.count == 0


def test_wrong_arguments_are_told() -> None:
    with EpochStatistics("x") as statistics:
        with pytest.raises(ConfigError, match='"barrier", "ack"'):
            statistics.histogram("pauses")  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="position"):
            statistics.since(-1)
    with pytest.raises(StateError, match="closed"):
        statistics.summary()
    for name in ("", "n" * 64):
        with pytest.raises(ConfigError, match="1 to 63 bytes"):
            EpochStatistics(name)
    statistics.close()  # again


def test_what_another_handle_keeps_is_only_read() -> None:
    kept = EpochStatistics("kept")
    kept.add(EpochSample(1))
    with EpochStatistics.of(kept._raw, kept, "a group") as view:
        assert view.end == 1
        with pytest.raises(StateError, match="a group: their owner writes them"):
            view.committed(1, 1)
    kept.add(EpochSample(2))  # the view closed nothing
    view = EpochStatistics.of(kept._raw, object(), "a group")
    assert [sample.epoch for sample in view.recent(5)] == [1, 2]
    view = EpochStatistics.of(kept._raw, kept, "a group")
    kept.close()
    with pytest.raises(StateError, match="kept is closed"):
        view.summary()


# ---- files ---------------------------------------------------------------------


@pytest.fixture(params=["memory", "disk"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A directory in memory, and one wherever pytest has its own."""
    if request.param == "disk":
        yield tmp_path
        return
    made = Path(tempfile.mkdtemp(dir="/dev/shm", prefix="remus-test-"))
    try:
        yield made
    finally:
        shutil.rmtree(made)


def test_the_file_is_what_the_page_says(folder: Path) -> None:
    path = folder / "epochs"
    values = [i * i * 977 % 1_000_003 for i in range(RING + 50)]
    with EpochStatistics("guest0", path=path) as statistics:
        for i, value in enumerate(values):
            statistics.add(
                EpochSample(
                    i + 1,
                    start_ns=i * 1000,
                    barrier_ns=value,
                    ack_ns=2 * value,
                    bytes=U64 - i,
                    errno=errno.ETIMEDOUT if i == 60 else None,
                )
            )
        statistics.committed(len(values), 77)
        statistics.measured(len(values), 8, 9)
        source, summary = statistics.source(), statistics.summary()
        assert source.writing and not source.closed and source.pid == os.getpid()
    assert path.stat().st_mode & 0o7777 == 0o600 and not path.is_symlink()
    found = formats.epochs(path.read_bytes())
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert (found.name, found.pid, found.boot) == (
        "guest0",
        os.getpid(),
        boot.replace("-", ""),
    )
    assert (found.added, found.failed, found.closed) == (len(values), 1, 1)
    assert 0 < found.created == source.created_ns <= time.monotonic_ns()
    assert len(found.samples) == RING
    last = len(values) - 1
    assert found.samples[-1] == (
        len(values), last * 1000, values[last], 2 * values[last], 77, U64 - last, 8, 9,
        0, 0,
    )  # fmt: skip
    assert found.samples[10][:2] == (61, 60_000)
    assert found.samples[10][8] == -errno.ETIMEDOUT
    good = [value for i, value in enumerate(values) if i != 60]
    n, least, most, total, buckets = found.series["barrier"]
    assert (n, least, most, total) == (len(good), min(good), max(good), sum(good))
    assert sum(buckets.values()) == n == summary.barrier_ns.count
    assert found.series["pause"][3] == 3 * sum(good)
    assert found.series["bytes"][3] > U64
    assert found.series["commit"] == (1, 77, 77, 77, {77: 1})
    assert found.series["extents"][4] == {8: 1}
    assert found.series["coalesced"][4] == {9: 1}
    assert list(found.series) == list(SERIES)


READER = """
import sys
from remus_native import EpochStatistics
with EpochStatistics.attach(sys.argv[1]) as statistics:
    position = 0
    print("attached", statistics.source().pid, flush=True)
    for line in sys.stdin:
        batch = statistics.since(position)
        position = batch.next
        print(*(sample.epoch for sample in batch.samples), flush=True)
    source = statistics.source()
    print(source.writing, source.closed, statistics.summary().epochs, flush=True)
"""


def test_another_process_follows(folder: Path) -> None:
    path = folder / "epochs"
    statistics = EpochStatistics("guest0", path=path)
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert reader.stdin is not None and reader.stdout is not None
    try:
        assert reader.stdout.readline() == f"attached {os.getpid()}\n"
        for first in (1, 4, 7):
            for epoch in range(first, first + 3):
                statistics.add(EpochSample(epoch))
            print("more", file=reader.stdin, flush=True)
            assert reader.stdout.readline() == f"{first} {first + 1} {first + 2}\n"
        statistics.close()
        reader.stdin.close()
        assert reader.stdout.read() == "False True 9\n"
    finally:
        statistics.close()
        reader.kill()
        reader.wait()
        reader.stdin.close()
        reader.stdout.close()
    with EpochStatistics.attach(path) as later:
        assert [sample.epoch for sample in later.recent(3)] == [7, 8, 9]
        assert later.source().closed and not later.source().writing


WRITER = """
import itertools, sys
from remus_native import EpochSample, EpochStatistics
statistics = EpochStatistics("killed", path=sys.argv[1])
for epoch in itertools.count(1):
    statistics.add(EpochSample(epoch, start_ns=3 * epoch, bytes=7 * epoch))
    if epoch == 10:
        print("ready", flush=True)
"""


def test_a_reader_outlives_a_killed_writer(folder: Path) -> None:
    path = folder / "epochs"
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    try:
        assert writer.stdout.readline() == "ready\n"
        with EpochStatistics.attach(path) as reader:
            assert reader.source().writing
            wait_for(lambda: reader.end > 2 * RING)
            writer.send_signal(signal.SIGKILL)
            writer.wait()
            source = reader.source()
            assert not source.writing and not source.closed
            batch = reader.since(0)
            assert len(batch.samples) in (RING - 1, RING)
            assert all(
                sample.start_ns == 3 * sample.epoch and sample.bytes == 7 * sample.epoch
                for sample in batch.samples
            )
            assert batch.lost + len(batch.samples) == batch.next
            assert abs(reader.summary().bytes.count - batch.next) <= 1
            end = reader.end
    finally:
        writer.kill()
        writer.wait()
        writer.stdout.close()
    if path.is_symlink():
        with pytest.raises(StateError, match="died without closing") as caught:
            EpochStatistics.attach(path)
        assert caught.value.errno == errno.ENOENT
    else:
        with EpochStatistics.attach(path) as later:
            assert later.end == end and not later.source().writing
    # What is there is no obstacle.
    with (
        EpochStatistics("again", path=path),
        EpochStatistics.attach(path) as fresh,
    ):
        assert fresh.end == 0 and fresh.source().name == "again"


def test_a_foreign_or_damaged_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "epochs"
    with pytest.raises(StateError) as caught:
        EpochStatistics.attach(path)
    assert caught.value.errno == errno.ENOENT
    EpochStatistics("guest0", path=path).close()
    good = path.read_bytes()

    def refused(data: bytes, words: str) -> None:
        path.write_bytes(data)
        with pytest.raises(StateError, match=words) as caught:
            EpochStatistics.attach(path)
        assert caught.value.errno == errno.EBADMSG and str(path) in str(caught.value)

    refused(b"", "0 bytes, expected 544768")
    refused(good[:-1], "544767 bytes")
    refused(bytes(len(good)), "holds no epoch statistics")
    refused(good[:4] + b"\2" + good[5:], "version 2, this library reads version 1")
    refused(good[:90] + b"\xff" + good[91:], "damaged")
    path.write_bytes(good)
    EpochStatistics.attach(path).close()
    with pytest.raises(StateError) as caught:
        EpochStatistics("x", path=tmp_path / "nowhere" / "epochs")
    assert caught.value.errno == errno.ENOENT


def test_a_relative_path_survives_a_change_of_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    statistics = EpochStatistics("x", path="epochs")
    monkeypatch.chdir("elsewhere")
    statistics.close()
    assert (tmp_path / "epochs").stat().st_size == 544768
    assert not (tmp_path / "epochs").is_symlink()
    assert list((tmp_path / "elsewhere").iterdir()) == []


# ---- a primary's ------------------------------------------------------------------


def checkpoint(primary: Primary, commit: bool = True) -> int:
    epoch = primary.postsuspend()
    primary.preresume(epoch, timeout_s=20)
    if commit:
        primary.commit(epoch)
    return epoch


def test_a_primary_keeps_its_epochs(make_pair: Any, tmp_path: Path) -> None:
    pair = make_pair([1 << 20, 65536], epochs_file=tmp_path / "epochs")
    primary = pair.primary
    # The first one, which ended the copy, was the engine's own.
    assert primary.epochs.recent(1) == []
    begin = time.monotonic_ns()
    primary.pwrite(0, b"x" * 4096, 0)
    primary.pwrite(0, b"y" * 1000, 96)
    primary.discard(1, 512, 512)
    first = checkpoint(primary)
    second = checkpoint(primary, commit=False)
    third = checkpoint(primary)
    assert primary.epoch(third + 1) is None
    known = wait_for(
        lambda: (s := primary.epoch(first)) and s.extents is not None and s
    )
    assert (known.bytes, known.extents, known.coalesced) == (5608, 2, 1000)
    assert begin <= known.start_ns <= time.monotonic_ns()
    assert 0 < known.pause_ns < 20e9 and known.commit_ns and known.errno is None
    samples = primary.epochs.recent(10)
    assert [s.epoch for s in samples] == [first, second, third]
    assert [s.commit_ns is None for s in samples] == [False, True, False]
    assert [s.bytes for s in samples] == [5608, 0, 0]
    status = primary.status()
    assert (status.measured_epoch, status.epoch_extents) == (first, 2)
    assert (status.epoch_coalesced, status.bytes_coalesced) == (1000, 1000)
    with EpochStatistics.attach(tmp_path / "epochs") as reader:
        assert reader.source().name == "guest0"
        assert reader.recent(10) == samples
        with pytest.raises(StateError, match="their owner writes them"):
            primary.epochs.add(EpochSample(99))
        primary.close()
        assert reader.source().closed
        assert reader.summary().ack_ns.count == 3
    with pytest.raises(StateError, match="closed"):
        primary.epochs.summary()


def test_an_epoch_without_an_ack_is_a_failed_one(tmp_path: Path) -> None:
    for name in ("p", "b"):
        (tmp_path / f"{name}.state").mkdir()
        (tmp_path / name).write_bytes(bytes(65536))
    address = f"unix:{tmp_path}/sock"
    backup = BackupProcess(address, tmp_path / "b.state", {"xvda": tmp_path / "b"})
    try:
        with Primary(
            "guest0",
            state_dir=tmp_path / "p.state",
            volumes=[Volume("xvda", tmp_path / "p")],
            address=address,
        ) as primary:
            primary.wait_protected(timeout_s=60)
            good = checkpoint(primary)
            backup.pause()
            primary.pwrite(0, b"lost", 0)
            epoch = primary.postsuspend()
            assert [s.epoch for s in primary.epochs.recent(9)] == [good]
            backup.kill()
            with pytest.raises(ReplicationLost):
                primary.preresume(epoch, timeout_s=60)
            sample = primary.epoch(epoch)
            assert sample is not None
            assert (sample.errno, sample.bytes) == (errno.EPROTO, 4)
            summary = primary.epochs.summary()
            assert (summary.epochs, summary.failed) == (2, 1)
            assert summary.ack_ns.count == 1
    finally:
        backup.kill()
