# SPDX-License-Identifier: LGPL-2.1-or-later
"""A backup on a simulated disk, and the plain Python model beside it.

`World` is the machine: files in memory that lose what was not synced.
`TestBackup` is the real backup on it, driven record by record.  `Model` holds
what the primary's disks were at each checkpoint and what the backup has
promised so far.  `Workload` drives both with the same random steps.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from remus_native._binding import ffi, last_error, lib, sized

SEGMENT = 65536
PAGE = 4096
SEGMENTS = 6
PAYLOAD_MAX = SEGMENT // 4
SIZES = {b"xvda": 256 * 1024, b"xvdb": 128 * 1024 + 512}
PATHS = {b"xvda": b"/disk/a", b"xvdb": b"/disk/b"}
NAMES = list(SIZES)
LOSSES = {
    "lose": lib.REMUS_SIM_LOSE,
    "keep": lib.REMUS_SIM_KEEP,
    "tear": lib.REMUS_SIM_TEAR,
    "reorder": lib.REMUS_SIM_REORDER,
}

Disks = tuple[bytes, ...]


class Failed(Exception):
    """A call into the backup failed: ``errno`` says how."""

    def __init__(self, rc: int) -> None:
        super().__init__(f"{errno.errorcode.get(-rc, rc)}: {last_error()}")
        self.errno = -rc


def check(rc: int) -> int:
    if rc < 0:
        raise Failed(rc)
    return rc


class World:
    """A simulated machine with the backup's disks."""

    crashes = 0  # of all worlds so far, in this process

    def __init__(self, raw: Any = None) -> None:
        if raw is None:
            out = ffi.new("remus_sim **")
            check(lib.remus_sim_new(out))
            raw = out[0]
            for name, size in SIZES.items():
                check(lib.remus_sim_create(raw, PATHS[name], size))
        self.raw = ffi.gc(raw, lib.remus_sim_free)

    def clone(self) -> World:
        out = ffi.new("remus_sim **")
        check(lib.remus_sim_clone(self.raw, out))
        return World(out[0])

    @property
    def ops(self) -> int:
        return lib.remus_sim_ops(self.raw)

    def stop_after(self, ops: int) -> None:
        lib.remus_sim_stop_after(self.raw, ops)

    def fail_after(self, ops: int, err: int) -> None:
        lib.remus_sim_fail_after(self.raw, ops, err)

    def interrupts(self) -> None:
        """Reads and writes are interrupted and short from here on."""
        lib.remus_sim_interrupts(self.raw, 1)

    @property
    def failed_op(self) -> str:
        return ffi.string(lib.remus_sim_failed_op(self.raw)).decode()

    @property
    def failed_path(self) -> str:
        return ffi.string(lib.remus_sim_failed_path(self.raw)).decode()

    @property
    def failed_hint(self) -> bool:
        """What failed may be passed over: it only costs time later.

        So may the dirty map that a promoted backup leaves behind: without
        it both sides are compared.
        """
        hint = self.failed_op in ("writeback", "drop_cache")
        return hint or self.failed_path.endswith("dirty.map")

    def drops_cache(self) -> None:
        """Let drop_cache show what the medium holds."""
        lib.remus_sim_drops_cache(self.raw, 1)

    def crash(self, loss: str, seed: int = 0) -> None:
        """The process is gone; with "kill" the machine is not."""
        World.crashes += 1
        if loss == "kill":
            lib.remus_sim_kill(self.raw)
        else:
            lib.remus_sim_crash(self.raw, LOSSES[loss], seed)

    def read(self, name: bytes) -> bytes:
        return self.read_file(PATHS[name], SIZES[name])

    def read_file(self, path: bytes, length: int) -> bytes:
        buf = ffi.new("unsigned char[]", length)
        check(lib.remus_sim_read(self.raw, path, buf, length, 0))
        return bytes(ffi.buffer(buf))

    def disks(self) -> Disks:
        return tuple(self.read(name) for name in NAMES)

    def create(self, path: bytes, size: int) -> None:
        check(lib.remus_sim_create(self.raw, path, size))

    def write(self, name: bytes, data: bytes, offset: int) -> None:
        """As a primary writes: it is in the page cache, and not synced."""
        path = PATHS[name]
        check(lib.remus_sim_write(self.raw, path, data, len(data), offset))

    def poke(self, name: bytes, data: bytes, offset: int) -> None:
        self.poke_file(PATHS[name], data, offset)

    def poke_file(self, path: bytes, data: bytes, offset: int) -> None:
        check(lib.remus_sim_poke(self.raw, path, data, len(data), offset))

    def segments_begun(self) -> int:
        """How many segments the journal has begun: its start is a multiple."""
        newest = 0
        for i in range(SEGMENTS):
            header = self.read_file(b"/state/journal/segment.%04d" % i, 16)
            newest = max(newest, int.from_bytes(header[8:16], "little"))
        return newest & 0xFFFF


class TestBackup:
    """The backup, driven record by record."""

    __test__ = False

    def __init__(
        self,
        world: World,
        *,
        ack: str = "durable",
        paths: dict[bytes, bytes] | None = None,
        discard_local: bool = False,
        read_only: bool = False,
        journal: bytes = b"/state/journal",
        segment: int = SEGMENT,
        segments: int = SEGMENTS,
    ) -> None:
        """paths: the volumes and their images, if they are others now."""
        paths = PATHS if paths is None else paths
        texts = (b"guest0", b"/state", journal)
        keep = [ffi.new("char[]", text) for text in texts]
        volumes = sized("volume", len(paths))
        for raw, (name, path) in zip(volumes, paths.items(), strict=True):
            keep += [ffi.new("char[]", name), ffi.new("char[]", path)]
            raw.name, raw.path = keep[-2], keep[-1]
        config = sized("backup_config")
        config.resource, config.state_dir = keep[0], keep[1]
        config.journal_dir = keep[2]
        config.volumes, config.volume_count = volumes, len(paths)
        config.ack = lib.REMUS_ACK_DURABLE if ack == "durable" else lib.REMUS_ACK_MEMORY
        config.discard_local, config.read_only = discard_local, read_only
        config.journal_bytes = segment * segments
        config.segment_bytes = segment
        out = ffi.new("remus_backup **")
        check(lib.remus_test_backup_open(config, world.raw, out))
        self.raw = out[0]
        self._world = world  # the handle uses it until it is gone
        self._epoch = ffi.new("uint64_t *")

    def abandon(self) -> None:
        """The process dies: nothing is done any more."""
        if self.raw is not None:
            lib.remus_test_backup_abandon(self.raw)
            self.raw = None

    def close(self) -> None:
        """The process ends well."""
        lib.remus_backup_close(self.raw)
        self.raw = None

    def begin(self) -> None:
        check(lib.remus_test_backup_begin(self.raw))

    def greet(self) -> tuple[int, int]:
        """A hello; what the reply says of `content` and `held`."""
        content, held = ffi.new("uint32_t *"), ffi.new("uint64_t *")
        check(lib.remus_test_backup_greet(self.raw, content, held))
        return content[0], held[0]

    def catch_up(self) -> None:
        check(lib.remus_test_backup_catch_up(self.raw))

    def copy_begin(self, *, keep: bool = False) -> None:
        check(lib.remus_test_backup_copy_begin(self.raw, keep))

    def copy_write(self, volume: int, data: bytes, offset: int) -> None:
        check(
            lib.remus_test_backup_copy_write(self.raw, volume, data, len(data), offset)
        )

    def copy_zero(self, volume: int, offset: int, length: int) -> None:
        check(lib.remus_test_backup_copy_zero(self.raw, volume, offset, length))

    def copy_flush(self) -> None:
        check(lib.remus_test_backup_copy_flush(self.raw))

    def copy_end(self) -> None:
        check(lib.remus_test_backup_copy_end(self.raw))

    def write(self, volume: int, data: bytes, offset: int) -> None:
        check(lib.remus_test_backup_write(self.raw, volume, data, len(data), offset))

    def zero(self, volume: int, offset: int, length: int) -> None:
        check(lib.remus_test_backup_zero(self.raw, volume, offset, length))

    def barrier(self, tag: bytes = b"", flags: int = 0) -> int:
        check(
            lib.remus_test_backup_barrier(self.raw, tag, len(tag), flags, self._epoch)
        )
        return self._epoch[0]

    def commit(self, epoch: int) -> None:
        """As the primary's word comes: not synced by itself."""
        check(lib.remus_test_backup_commit(self.raw, epoch))

    def commit_durably(self, epoch: int) -> None:
        check(lib.remus_backup_commit(self.raw, epoch))

    def room(self) -> int:
        """What the primary may still spend on writes of this session."""
        return lib.remus_test_backup_room(self.raw)

    def head(self) -> int:
        """Bytes in use of the segment that is written to; 0: none is."""
        return lib.remus_test_backup_head(self.raw)

    def differs(self, volume: int, data: bytes, offset: int) -> int:
        """In how many blocks a comparison finds that the backup differs."""
        return check(
            lib.remus_test_backup_differs(self.raw, volume, data, len(data), offset)
        )

    def apply(self) -> None:
        check(lib.remus_test_backup_apply(self.raw))

    def checkpoint(self) -> None:
        check(lib.remus_test_backup_checkpoint(self.raw))

    def checkpoints(self) -> list[tuple[int, bytes, bool]]:
        """(epoch, tag, committed) of each, oldest first."""
        out = sized("checkpoint", 1024)
        count = check(lib.remus_backup_checkpoints(self.raw, out, 1024))
        return [
            (
                cp.epoch,
                bytes(ffi.buffer(cp.tag, cp.tag_len)),
                bool(cp.flags & lib.REMUS_CP_COMMITTED),
            )
            for cp in out[0:count]
        ]

    def promote(self, epoch: int | None = None, *, tag: bytes | None = None) -> int:
        by = lib.REMUS_PROMOTE_DEFAULT
        if tag is not None:
            by = lib.REMUS_PROMOTE_TAG
        elif epoch is not None:
            by = lib.REMUS_PROMOTE_EPOCH
        name = tag or b""
        check(
            lib.remus_backup_promote(
                self.raw, by, epoch or 0, name, len(name), 0, self._epoch
            )
        )
        return self._epoch[0]

    def status(self) -> Any:
        status = sized("status")
        check(lib.remus_backup_status(self.raw, status))
        return status

    def state(self) -> str:
        return ffi.string(lib.remus_state_name(self.status().state)).decode()


@dataclass
class Model:
    """What the primary's disks held at each barrier, and what was promised.

    A step is noted as given before it is tried and as done after it returned,
    so whenever the world stops, the model says what may be and what must be.
    """

    now: list[bytearray] = field(
        default_factory=lambda: [bytearray(size) for size in SIZES.values()]
    )
    #: What each checkpoint holds, and its tag.
    at: dict[int, Disks] = field(default_factory=dict)
    tags: dict[int, bytes] = field(default_factory=dict)
    #: Barriers that were sent and not acked: perhaps there, perhaps not.
    pending: list[tuple[Disks, bytes]] = field(default_factory=list)
    #: The newest epoch that was acked, and how far commits got.
    acked: int = 0
    commit_given: int = 0
    commit_written: int = 0
    commit_durable: int = 0
    #: A begin() returned: from here on there is always a checkpoint.
    started: bool = False
    #: A promote was tried (to), and returned.
    promoting: int = 0
    promoted: bool = False
    #: How much of it has to be there after the ends since the last recovery:
    #: all that was "written"; what was "acked"; only what was "applied".
    kept: str = "written"

    def snapshot(self) -> Disks:
        return tuple(bytes(disk) for disk in self.now)

    def begin(self, backup: TestBackup) -> None:
        """A session; the first of all makes a checkpoint of its own.

        With a full journal what is prepared is committed first: only that
        makes room.
        """
        if not self.started:
            self.pending.append((self.snapshot(), b""))
        try:
            backup.begin()
        except Failed as error:
            if "journal is full" not in str(error):
                raise
            self.make_room(backup)
            backup.begin()
        if not self.started:
            self.started = True
            [(epoch, _, _)] = backup.checkpoints()
            self.arrived(epoch)
            self.commit_given = self.commit_written = self.commit_durable = epoch

    def arrived(self, epoch: int) -> None:
        """The newest pending barrier was acked as this epoch."""
        assert epoch > max(self.at, default=0), "a number was used twice"
        self.at[epoch], self.tags[epoch] = self.pending[-1]
        self.pending.clear()
        self.acked = epoch

    def barrier(self, backup: TestBackup, tag: bytes) -> int:
        self.pending.append((self.snapshot(), tag))
        epoch = backup.barrier(tag)
        self.arrived(epoch)
        return epoch

    def write(self, backup: TestBackup, volume: int, data: bytes, at: int) -> None:
        backup.write(volume, data, at)
        self.now[volume][at : at + len(data)] = data

    def zero(self, backup: TestBackup, volume: int, at: int, length: int) -> None:
        backup.zero(volume, at, length)
        self.now[volume][at : at + length] = bytes(length)

    def make_room(self, backup: TestBackup) -> None:
        if self.acked > self.commit_given:
            self.commit(backup, self.acked)
        self.apply(backup)
        backup.checkpoint()

    def reconnect(self, backup: TestBackup) -> None:
        """The link is lost and comes back: the open epoch never was."""
        self.begin(backup)
        self.now = [bytearray(disk) for disk in self.at[self.acked]]

    def commit(self, backup: TestBackup, epoch: int, *, durably: bool = False) -> None:
        self.commit_given = max(self.commit_given, epoch)
        if durably:
            backup.commit_durably(epoch)
            self.commit_durable = max(self.commit_durable, epoch)
        else:
            backup.commit(epoch)
        self.commit_written = max(self.commit_written, epoch)

    def apply(self, backup: TestBackup) -> None:
        backup.apply()
        self.commit_durable = self.commit_written

    def promote(self, backup: TestBackup, epoch: int) -> None:
        self.promoting = epoch
        assert backup.promote(epoch) == epoch
        self.promoted = True

    def ended(self, end: str, *, ack: str = "durable", failed: bool = False) -> None:
        """The process ended like this; perhaps after a failed operation."""
        survives = "acked" if ack == "durable" else "applied"
        if end in ("kill", "keep") and not failed:
            survives = "written"
        order = ["applied", "acked", "written"]
        self.kept = min(self.kept, survives, key=order.index)

    def after(self, end: str) -> Model:
        """A copy for a copy of the world that ended like this."""
        copy = replace(self, at=dict(self.at), tags=dict(self.tags))
        copy.ended(end)
        return copy

    def name_pending(self, offered: list[tuple[int, bytes, bool]]) -> None:
        """Barriers without an ack turned out to be there, in their order."""
        waiting = list(self.pending)
        for epoch, tag, _ in offered:
            if epoch in self.at:
                continue
            assert epoch > max(self.at, default=0), f"epoch {epoch} is from nowhere"
            while waiting and waiting[0][1] != tag:
                waiting.pop(0)
            assert waiting, f"no barrier made epoch {epoch}"
            self.at[epoch], self.tags[epoch] = waiting.pop(0)

    def resume(self, backup: TestBackup) -> None:
        """Go on from what a recovered backup has: the primary does."""
        offered = backup.checkpoints()
        self.name_pending(offered)
        self.pending.clear()
        self.kept = "written"
        if not offered or not self.started:
            # Not one session began: the disks are as they were.
            self.at.clear()
            self.tags.clear()
            self.now = [bytearray(size) for size in SIZES.values()]
            return
        newest = offered[-1][0]
        for lost in [epoch for epoch in self.at if epoch > newest]:
            del self.at[lost], self.tags[lost]
        self.now = [bytearray(disk) for disk in self.at[newest]]
        # It says that it has them, so they count from here on.
        self.acked = newest
        self.commit_given = self.commit_written = offered[0][0]
        self.commit_durable = offered[0][0]


def edge(backup: TestBackup, rng: random.Random) -> int:
    """A length of a write: any, or one after which the record, or a barrier or
    a commit behind it, ends where a page or a segment does, or beside that."""
    if rng.random() < 0.6:
        return rng.choice([1, 17, 511, 512, 4096, 5000, 12000, PAYLOAD_MAX])
    head = backup.head() or PAGE
    end = rng.choice([-(-head // PAGE) * PAGE + PAGE * rng.randrange(4), SEGMENT])
    behind = rng.choice([0, 0, 64, 64 + 24, PAGE])
    length = end - behind - head - 64 + rng.choice([0, 0, 0, -1, 1, -512, 512])
    if rng.random() < 0.3:
        length -= length % 512
    return length if 1 <= length <= PAYLOAD_MAX else rng.choice([1, 512, 4096])


class Workload:
    """Random steps: the same ones for the same seed."""

    def __init__(self, seed: int = 7, epochs: int = 100, tail: int = 4) -> None:
        self.seed = seed
        self.epochs = epochs
        self.tail = tail  # checkpoints at the end that nobody commits

    def run(self, backup: TestBackup, model: Model, *, promote: bool = False) -> None:
        """A session of `epochs` checkpoints; then, if told so, a failover."""
        rng = random.Random(self.seed)
        model.begin(backup)
        for i in range(self.epochs):
            self.epoch(rng, backup, model, i)
        for i in range(self.tail):
            self.change(rng, backup, model)
            model.barrier(backup, b"tail%d" % i)
        self.change(rng, backup, model)  # of an epoch that is never closed
        if promote:
            offered = [epoch for epoch, _, _ in backup.checkpoints()]
            model.promote(backup, offered[-2])

    def epoch(
        self, rng: random.Random, backup: TestBackup, model: Model, i: int
    ) -> None:
        for _ in range(rng.randrange(0, 7) if i % 5 else 0):
            self.change(rng, backup, model)
        model.barrier(backup, b"" if i % 3 else b"cp%d" % i)
        step = rng.randrange(12)
        if backup.room() < PAYLOAD_MAX:
            model.make_room(backup)
        elif step < 4:
            prepared = [n for n in model.at if n > model.commit_given]
            if prepared:
                model.commit(backup, rng.choice(prepared[:4]), durably=step == 0)
        elif step < 6:
            model.apply(backup)
        elif step < 7:
            backup.checkpoint()
        elif step < 9:
            for _ in range(rng.randrange(9)):
                self.change(rng, backup, model)
            model.reconnect(backup)
            if step == 8 and model.acked > model.commit_given:
                # It comes before the first record of the new session.
                model.commit(backup, model.acked)

    @staticmethod
    def change(rng: random.Random, backup: TestBackup, model: Model) -> None:
        volume = rng.randrange(len(NAMES))
        size = SIZES[NAMES[volume]]
        length = edge(backup, rng)
        if backup.room() < length + 64 + 96:
            return  # a primary waits then
        # A narrow window, so that epochs overwrite one another, and the end.
        at = rng.randrange(40000) if rng.random() < 0.9 else size - length
        if rng.random() < 0.2:
            model.zero(backup, volume, at, length)
        else:
            model.write(backup, volume, rng.randbytes(length), at)


def run_until_failure(
    world: World,
    work: Callable[[TestBackup], None],
    *,
    ack: str = "durable",
    journal: bytes = b"/state/journal",
    close: bool = False,
) -> Failed | None:
    """Open a backup and work until done or until something fails.

    Then its process dies, or (close) ends well.
    """
    backup = None
    try:
        backup = TestBackup(world, ack=ack, journal=journal)
        work(backup)
    except Failed as error:
        return error
    finally:
        if backup is not None and close:
            backup.close()
        elif backup is not None:
            backup.abandon()
    return None
