# SPDX-License-Identifier: LGPL-2.1-or-later
"""A backup on a simulated disk, and the plain Python model beside it."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from remus_native._core import ffi, lib

from remus_native._binding import last_error

NEVER = 2**64 - 1
SEGMENT = 65536
SEGMENTS = 6
SIZES = {b"xvda": 256 * 1024, b"xvdb": 128 * 1024 + 512}
PATHS = {b"xvda": b"/disk/a", b"xvdb": b"/disk/b"}
NAMES = list(SIZES)
LOSSES = {
    "lose": lib.REMUS_SIM_LOSE,
    "keep": lib.REMUS_SIM_KEEP,
    "tear": lib.REMUS_SIM_TEAR,
    "reorder": lib.REMUS_SIM_REORDER,
}


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

    def crash(self, loss: str, seed: int) -> None:
        """The process is gone; with "kill" the machine is not."""
        if loss == "kill":
            lib.remus_sim_kill(self.raw)
        else:
            lib.remus_sim_crash(self.raw, LOSSES[loss], seed)

    def read(self, name: bytes) -> bytes:
        buf = ffi.new("unsigned char[]", SIZES[name])
        check(lib.remus_sim_read(self.raw, PATHS[name], buf, SIZES[name], 0))
        return bytes(ffi.buffer(buf))

    def disks(self) -> tuple[bytes, ...]:
        return tuple(self.read(name) for name in NAMES)

    def poke(self, name: bytes, data: bytes, offset: int) -> None:
        check(lib.remus_sim_poke(self.raw, PATHS[name], data, len(data), offset))


class TestBackup:
    """The backup, driven record by record."""

    __test__ = False

    def __init__(self, world: World, *, ack: str = "durable") -> None:
        keep = [ffi.new("char[]", text) for text in (b"guest0", b"/state")]
        volumes = ffi.new("struct remus_volume[]", len(NAMES))
        for raw, name in zip(volumes, NAMES, strict=True):
            keep += [ffi.new("char[]", name), ffi.new("char[]", PATHS[name])]
            raw.name, raw.path, raw.size = keep[-2], keep[-1], SIZES[name]
        config = ffi.new("struct remus_backup_config *")
        config.resource, config.state_dir = keep[0], keep[1]
        config.volumes, config.volume_count = volumes, len(NAMES)
        config.ack = (
            lib.REMUS_ACK_DURABLE if ack == "durable" else lib.REMUS_ACK_MEMORY
        )
        config.journal_bytes = SEGMENT * SEGMENTS
        config.segment_bytes = SEGMENT
        out = ffi.new("remus_backup **")
        check(lib.remus_test_backup_open(config, world.raw, out))
        self.raw = out[0]
        self._epoch = ffi.new("uint64_t *")

    def abandon(self) -> None:
        """The process dies: nothing is done any more."""
        if self.raw is not None:
            lib.remus_test_backup_abandon(self.raw)
            self.raw = None

    def begin(self) -> None:
        check(lib.remus_test_backup_begin(self.raw))

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
        check(lib.remus_test_backup_commit(self.raw, epoch))

    def commit_durably(self, epoch: int) -> None:
        check(lib.remus_backup_commit(self.raw, epoch))

    def apply(self) -> None:
        check(lib.remus_test_backup_apply(self.raw))

    def checkpoint(self) -> None:
        check(lib.remus_test_backup_checkpoint(self.raw))

    def checkpoints(self) -> list[tuple[int, bytes, bool]]:
        out = ffi.new("struct remus_checkpoint[]", 1024)
        count = check(lib.remus_backup_checkpoints(self.raw, out, 1024))
        return [
            (
                cp.epoch,
                bytes(ffi.buffer(cp.tag, cp.tag_len)),
                bool(cp.flags & lib.REMUS_CP_COMMITTED),
            )
            for cp in out[0:count]
        ]

    def promote(self, epoch: int | None = None) -> int:
        by = lib.REMUS_PROMOTE_DEFAULT if epoch is None else lib.REMUS_PROMOTE_EPOCH
        check(
            lib.remus_backup_promote(
                self.raw, by, epoch or 0, ffi.NULL, 0, 0, self._epoch
            )
        )
        return self._epoch[0]

    def state(self) -> str:
        status = ffi.new("struct remus_status *")
        check(lib.remus_backup_status(self.raw, status))
        return ffi.string(lib.remus_state_name(status.state)).decode()


@dataclass
class Model:
    """What the primary's disks held at each barrier, and what was promised."""

    now: list[bytearray] = field(
        default_factory=lambda: [bytearray(size) for size in SIZES.values()]
    )
    at: dict[int, tuple[bytes, ...]] = field(default_factory=dict)
    tags: dict[int, bytes] = field(default_factory=dict)
    acked: list[int] = field(default_factory=list)
    commit_given: int = 0
    commit_durable: int = 0
    started: bool = False

    def snapshot(self) -> tuple[bytes, ...]:
        return tuple(bytes(disk) for disk in self.now)


class Workload:
    """A fixed sequence of steps, the same for every crash point.

    Each step first tells the model what a success will promise, so that a
    crash in the middle finds the model ready for either outcome.
    """

    def __init__(self, seed: int = 7, epochs: int = 70) -> None:
        self.seed = seed
        self.epochs = epochs

    def run(self, backup: TestBackup, model: Model) -> None:
        rng = random.Random(self.seed)
        # The engine's own first checkpoint, of disks that are all zeroes.
        model.at[1] = model.snapshot()
        model.tags[1] = b""
        backup.begin()
        model.started = True
        model.acked.append(1)
        model.commit_given = model.commit_durable = 1
        for i in range(self.epochs):
            for _ in range(rng.randrange(0, 7) if i % 5 else 0):
                self.change(rng, backup, model)
            self.close(backup, model, b"" if i % 3 else f"cp{i}".encode())
            if i % 2 == 1:
                epoch = model.acked[-rng.randrange(1, 3)]
                model.commit_given = max(model.commit_given, epoch)
                backup.commit(epoch)
            if i % 4 == 3:
                backup.apply()
                model.commit_durable = model.commit_given
            if i % 4 == 1 or i % 6 == 5:
                backup.checkpoint()

    @staticmethod
    def change(rng: random.Random, backup: TestBackup, model: Model) -> None:
        volume = rng.randrange(len(NAMES))
        size = SIZES[NAMES[volume]]
        length = rng.choice([1, 17, 512, 4096, 5000, 12000])
        # A narrow window: epochs overwrite one another.
        offset = rng.randrange(min(40000, size - length))
        if rng.random() < 0.2:
            model.now[volume][offset : offset + length] = bytes(length)
            backup.zero(volume, offset, length)
        else:
            data = rng.randbytes(length)
            model.now[volume][offset : offset + length] = data
            backup.write(volume, data, offset)

    @staticmethod
    def close(backup: TestBackup, model: Model, tag: bytes) -> None:
        # The number is not known before the barrier is in.
        epoch = max(model.at) + 1
        model.at[epoch] = model.snapshot()
        model.tags[epoch] = tag
        assert backup.barrier(tag) == epoch
        model.acked.append(epoch)


def run_until_failure(
    world: World, work: Callable[[TestBackup], None], *, ack: str = "durable"
) -> Failed | None:
    """Open a backup and work until done or until the world stops."""
    backup = None
    try:
        backup = TestBackup(world, ack=ack)
        work(backup)
    except Failed as error:
        return error
    finally:
        if backup is not None:
            backup.abandon()
    return None
