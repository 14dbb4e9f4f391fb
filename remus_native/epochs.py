# SPDX-License-Identifier: LGPL-2.1-or-later
"""Epoch statistics: the last epochs one by one, and histograms of all of them.

`EpochStatistics` has one writer and any number of readers, in other threads
or, with a file, in other processes; reading never slows the writer.  Times
are nanoseconds, sizes bytes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from ._binding import ffi, lib, sized, text
from ._checks import encoded, integer, path_of
from ._handle import Handle
from .errors import ConfigError, StateError, raise_for

__all__ = [
    "EpochBatch",
    "EpochSample",
    "EpochStatistics",
    "EpochSummary",
    "HistogramBucket",
    "SeriesSummary",
    "StatisticsSource",
]

Series = Literal[
    "barrier", "ack", "commit", "pause", "bytes", "extents", "coalesced"
]  # fmt: skip

SERIES: dict[str, int] = {
    name: getattr(lib, f"REMUS_SERIES_{name.upper()}") for name in get_args(Series)
}
RING: int = lib.REMUS_EPOCHS_RING
BUCKETS: int = lib.REMUS_EPOCHS_BUCKETS
NUMBER_MAX = (1 << 64) - 1


@dataclass(frozen=True)
class EpochSample:
    """One epoch of a device, a resource or a group of devices.

    - ``epoch``: its number (of a group: a running number); never falls.
    - ``start_ns``: `time.monotonic_ns` when postsuspend was called.
    - ``barrier_ns``: how long postsuspend took.
    - ``ack_ns``: from its end to the ack, or to the failure.
    - ``commit_ns``: how long commit took; None: not committed (yet), or only
      by the commit of a later epoch.
    - ``bytes``: written and zeroed in the epoch.
    - ``extents``: ranges of consecutive bytes that it holds; None: unknown.
    - ``coalesced``: of ``bytes``, those overwritten within the epoch before
      they travelled to a disk; None: unknown.
    - ``errno``: of the first phase that failed; None: none did.
    """

    epoch: int
    start_ns: int = 0
    barrier_ns: int = 0
    ack_ns: int = 0
    commit_ns: int | None = None
    bytes: int = 0
    extents: int | None = None
    coalesced: int | None = None
    errno: int | None = None

    @property
    def pause_ns(self) -> int:
        """Barrier and ack together: what the devices add to a guest's pause."""
        return self.barrier_ns + self.ack_ns


@dataclass(frozen=True)
class EpochBatch:
    """What `EpochStatistics.since` found.

    ``next`` is the position to go on from; ``lost`` says how many samples
    since the position given were overwritten by newer ones.
    """

    samples: tuple[EpochSample, ...]
    next: int
    lost: int


@dataclass(frozen=True)
class SeriesSummary:
    """One series in numbers, in its own unit; all 0 if ``count`` is 0.

    ``min``, ``max``, ``mean`` (rounded down) and ``total`` (2^64 - 1 if it is
    more) are exact.  A quantile (``p50``, ``p90``, ``p99``, ``p999``) is the
    smallest value that this share of all values does not exceed; the number
    given is never less than it and at most 1/64 more.
    """

    count: int
    min: int
    max: int
    mean: int
    p50: int
    p90: int
    p99: int
    p999: int
    total: int


_SUMMARY_FIELDS = [field.name for field in fields(SeriesSummary)]


@dataclass(frozen=True)
class HistogramBucket:
    """``count`` values from ``low`` to ``high``, both included."""

    low: int
    high: int
    count: int


@dataclass(frozen=True)
class EpochSummary:
    """All epochs since the statistics were created.

    ``epochs`` is how many there were, ``failed`` how many of them failed;
    the series are of the others.  Times are nanoseconds.
    """

    name: str
    epochs: int
    failed: int
    barrier_ns: SeriesSummary
    ack_ns: SeriesSummary
    commit_ns: SeriesSummary
    pause_ns: SeriesSummary
    bytes: SeriesSummary
    extents: SeriesSummary
    coalesced: SeriesSummary


@dataclass(frozen=True)
class StatisticsSource:
    """Whose statistics these are, and whether more will come.

    ``pid``: of the writer.  ``writing``: it runs and has not closed them;
    ``closed``: it has.  ``this_boot``: created since this host started, so that
    ``created_ns`` and ``start_ns`` can be compared with `time.monotonic_ns`.
    """

    name: str
    pid: int
    created_ns: int
    writing: bool
    closed: bool
    this_boot: bool


def sample_from(raw: Any) -> EpochSample:
    """A ``struct remus_epoch_sample``."""
    return EpochSample(
        epoch=raw.epoch,
        start_ns=raw.start_ns,
        barrier_ns=raw.barrier_ns,
        ack_ns=raw.ack_ns,
        commit_ns=raw.commit_ns or None,
        bytes=raw.bytes,
        extents=raw.extents or None,
        coalesced=raw.coalesced if raw.extents else None,
        errno=-raw.result or None,
    )


class EpochStatistics(Handle):
    """The epochs of a device, a resource or a group of devices.

    ``EpochStatistics("guest0", path=...)`` makes new ones, to `add` to;
    `attach` reads those of another process; `Primary.epochs` are a
    primary's.  Use as a context manager, or `close` it.

    ``path``: where other processes find them.  Without it they are for this
    process.  On a file system in memory (/run, /dev/shm) a file is made.
    Elsewhere, where a store could wait for a disk, ``path`` is a symbolic
    link to memory of this process, and a file once they are closed.  Whoever
    has attached keeps what it has when a new writer takes the name.

    Raises `ConfigError` for a bad name, `StateError` (ENOENT, EACCES,
    ENOSPC, ...) for a path that can't be made.

    Any thread may call any method.  A method blocks only where it says so.
    All raise `ConfigError` for a bad argument, and `StateError` once this is
    closed or in a forked child.
    """

    def __init__(
        self, name: str, *, path: str | os.PathLike[str] | None = None
    ) -> None:
        super().__init__()
        raw_path = ffi.NULL if path is None else encoded("path", path_of("path", path))
        out = ffi.new("remus_epochs **")
        rc = lib.remus_epochs_create(raw_path, encoded("name", name), out)
        if rc < 0:
            raise_for(rc)
        self._own(out[0], f"epoch statistics of {name}")

    @classmethod
    def attach(cls, path: str | os.PathLike[str]) -> EpochStatistics:
        """Read the statistics of another process, or what one left.

        If a new writer takes the name, these stay the old ones: attach again
        when ``source().writing`` is false.  Blocks for file I/O.  Raises
        `StateError`: ENOENT no such file, or its writer died and they are
        lost; EBADMSG not such a file, damaged, or of another version.
        """
        out = ffi.new("remus_epochs **")
        name = path_of("path", path)
        rc = lib.remus_epochs_attach(encoded("path", name), out)
        if rc < 0:
            raise_for(rc)
        self = cls._bare()
        self._own(out[0], f"epoch statistics {name}")
        return self

    @classmethod
    def of(cls, raw: Any, owner: Any, what: str) -> EpochStatistics:
        """Those that another C handle keeps (``what``, in words).

        Reading only; closing this object leaves them alone.  A `Handle` as
        ``owner`` is asked at every call, so they end with it; any other is
        kept alive, and its memory with it.
        """
        self = cls._bare()
        self._owner = owner
        self._own(raw, f"epoch statistics of {what}")
        return self

    @classmethod
    def _bare(cls) -> EpochStatistics:
        self = cls.__new__(cls)
        Handle.__init__(self)
        return self

    _owner: Any = None

    def _own(self, raw: Any, what: str) -> None:
        self._what = what
        self._sample = ffi.new("struct remus_epoch_sample *")  # the writer's
        self._raw = raw

    @contextmanager
    def _call(self) -> Iterator[Any]:
        with super()._call() as raw:
            if isinstance(self._owner, Handle):
                with self._owner._call():
                    yield raw
            else:
                yield raw

    def __del__(self) -> None:
        if self._owner is None:  # others' are not ours to close
            super().__del__()

    def __enter__(self) -> EpochStatistics:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go; of a writer's, nothing follows.  Idempotent; blocks for file I/O."""
        raw = self._take()
        if raw is not None and self._owner is None:
            lib.remus_epochs_close(raw)

    # -- writing -----------------------------------------------------------

    def add(self, sample: EpochSample) -> None:
        """Add one epoch.  One thread at a time; epoch numbers never decrease.

        Nothing happens on statistics that were attached.
        """
        raw = self._sample
        raw.epoch = sample.epoch
        raw.start_ns = sample.start_ns
        raw.barrier_ns = sample.barrier_ns
        raw.ack_ns = sample.ack_ns
        raw.commit_ns = sample.commit_ns or 0
        raw.bytes = sample.bytes
        raw.extents = sample.extents or 0
        raw.coalesced = sample.coalesced or 0
        raw.result = -(sample.errno or 0)
        with self._written() as handle:
            lib.remus_epochs_add(handle, raw)

    def committed(self, epoch: int, commit_ns: int) -> None:
        """``epoch``, added before, was committed now; from the writer's thread.

        Nothing happens if it is no longer among the newest 4,096, or was
        committed before.
        """
        with self._written() as handle:
            lib.remus_epochs_committed(handle, epoch, commit_ns)

    def measured(self, epoch: int, extents: int, coalesced: int) -> None:
        """As `committed`, for the ``extents`` and ``coalesced`` bytes of ``epoch``."""
        with self._written() as handle:
            lib.remus_epochs_measured(handle, epoch, extents, coalesced)

    @contextmanager
    def _written(self) -> Iterator[Any]:
        if self._owner is not None:
            raise StateError(
                f"{self._what}: their owner writes them", errno=errno.EPERM
            )
        with self._call() as handle:
            yield handle

    # -- reading, from any thread --------------------------------------------

    def source(self) -> StatisticsSource:
        """Whose statistics these are, and whether more will come."""
        raw = self._info()
        return StatisticsSource(
            name=text(raw.name),
            pid=raw.pid,
            created_ns=raw.created_ns,
            writing=bool(raw.writing),
            closed=bool(raw.closed),
            this_boot=bool(raw.this_boot),
        )

    def _info(self) -> Any:
        out = sized("epochs_info")
        with self._call() as raw:
            lib.remus_epochs_info(raw, out)
        return out

    def summary(self) -> EpochSummary:
        """Every series in numbers."""
        info = self._info()
        out = sized("series_summary")
        series = {}
        with self._call() as raw:
            for name, index in SERIES.items():
                lib.remus_epochs_summary(raw, index, out)
                timed = name in ("barrier", "ack", "commit", "pause")
                series[f"{name}_ns" if timed else name] = SeriesSummary(
                    **{field: getattr(out, field) for field in _SUMMARY_FIELDS}
                )
        return EpochSummary(text(info.name), info.added, info.failed, **series)

    def recent(self, count: int) -> list[EpochSample]:
        """The newest ``count`` epochs (at most 4,096), oldest first."""
        integer("count", count, NUMBER_MAX)
        samples = self.since(max(0, self.end - count)).samples
        return list(samples[max(0, len(samples) - count) :])

    @property
    def end(self) -> int:
        """The position after the newest epoch: how many there ever were."""
        return int(self._info().added)

    def since(self, position: int) -> EpochBatch:
        """The epochs from ``position`` on, oldest first (at most 4,096).

        For following: begin with 0 (all that are kept) or `end` (only new
        ones), and go on with ``next``.
        """
        integer("position", position, NUMBER_MAX)
        following, lost = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        with self._call() as raw:
            # No more than there is: most calls find a few.
            lib.remus_epochs_read(raw, NUMBER_MAX, ffi.NULL, 0, following, lost)
            cap = max(0, min(following[0] - position, RING))
            out = ffi.new("struct remus_epoch_sample[]", cap)
            count = lib.remus_epochs_read(raw, position, out, cap, following, lost)
        samples = tuple(sample_from(out[i]) for i in range(count))
        return EpochBatch(samples, following[0], lost[0])

    def histogram(self, series: Series) -> list[HistogramBucket]:
        """The buckets of one series that are not empty, lowest first.

        ``series``: "barrier", "ack", "commit", "pause" (ns), "bytes",
        "extents", "coalesced".
        """
        if series not in SERIES:
            allowed = ", ".join(f'"{name}"' for name in SERIES)
            raise ConfigError(f"series: {series!r} is not one of {allowed}")
        out = ffi.new("struct remus_epochs_bucket[]", BUCKETS)
        with self._call() as raw:
            count = lib.remus_epochs_histogram(raw, SERIES[series], out, BUCKETS)
        return [
            HistogramBucket(each.low, each.high, each.count) for each in out[0:count]
        ]
