# SPDX-License-Identifier: LGPL-2.1-or-later
"""Recovery as docs/formats.md tells it, rule by rule.

The journal guards itself in several ways at once, and a crash rarely gets
past all but one of them.  So each rule is tried alone: a journal that is good
is changed in one place, with every CRC right, and ends right there.  And a
second reader of the journal, written from the page, finds what ours finds
after many crashes.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass

import formats
import pytest
from crash_model import (
    SEGMENT,
    SEGMENTS,
    Model,
    TestBackup,
    Workload,
    World,
    run_until_failure,
)

PATH = b"/state/journal/segment.%04d"


def files_of(world: World) -> list[bytes]:
    return [world.read_file(PATH % i, SEGMENT) for i in range(SEGMENTS)]


def state_of(world: World) -> dict[str, int]:
    return formats.superblock(world.read_file(b"/state/backup.state", 8192), "guest0")


# ---- a second reader -----------------------------------------------------------


def second_opinion(world: World, model: Model) -> int:
    """Both readers agree, down to the bytes; how many checkpoints there are."""
    backup = TestBackup(world.clone())
    offered = [n for n, _, _ in backup.checkpoints()]
    tags = [tag for _, tag, _ in backup.checkpoints()]
    backup.abandon()
    model.name_pending(list(zip(offered, tags, [False] * len(tags), strict=True)))
    found = formats.recover(state_of(world), files_of(world), "guest0")
    later = [n for n in found.closed if n > found.committed]
    assert [found.committed, *later] == offered
    for target in offered:
        disks = [bytearray(disk) for disk in world.disks()]
        found.write_to(disks, target)
        assert tuple(bytes(disk) for disk in disks) == model.at[target]
    return len(offered)


@pytest.mark.parametrize("end", ["lose", "tear", "reorder", "kill"])
def test_a_reader_written_from_the_page_finds_the_same(end):
    work = Workload()
    world, model = World(), Model()
    assert run_until_failure(world, lambda b: work.run(b, model)) is None
    total, seen = world.ops, 0
    rng = random.Random(end)
    for k in sorted(rng.sample(range(100, total), 15)):
        world, model = World(), Model()
        world.stop_after(k)
        run_until_failure(world, lambda b, m=model: work.run(b, m))
        world.crash(end, k)
        seen = max(seen, second_opinion(world, model))
    assert seen > 2


# ---- one rule at a time ------------------------------------------------------------


@dataclass
class Place:
    """A record in a segment file."""

    file: int
    at: int
    rec: formats.Record


class Journal:
    """Prepared epochs over several segments; one commit; a second session."""

    def __init__(self) -> None:
        self.world, self.model = World(), Model()
        backup = TestBackup(self.world)
        self.model.begin(backup)
        first = self.model.acked
        for i in range(8):
            self.one_epoch(backup, i)
            if i == 3:
                self.model.commit(backup, first + 2, durably=True)
        self.model.reconnect(backup)
        for i in range(2):
            self.one_epoch(backup, 8 + i)
        self.epochs = [n for n, _, _ in backup.checkpoints()]
        backup.abandon()
        self.world.crash("lose")
        self.places = [*self.look()]

    def one_epoch(self, backup: TestBackup, i: int) -> None:
        for at in range(3):
            self.model.write(backup, at % 2, bytes([i + 1]) * 7000, at * 9000 + i)
        self.model.zero(backup, 0, 50000 + 100 * i, 512)
        self.model.barrier(backup, b"e%d" % i)

    def heads(self) -> list[tuple[int, formats.Segment]]:
        """File and header of each segment in use, in order."""
        files = files_of(self.world)
        tail = state_of(self.world)["tail"]
        out = []
        for seq in range(tail, tail + SEGMENTS):
            try:
                head = formats.segment(files[seq % SEGMENTS], "guest0")
            except formats.Invalid:
                break
            if head.seq != seq:
                break
            out.append((seq % SEGMENTS, head))
        return out

    def look(self) -> list[Place]:
        files = files_of(self.world)
        out = []
        for file, head in self.heads():
            at = 4096
            for rec in formats.records(files[file], head):
                out.append(Place(file, at, rec))
                at += 64 + len(rec.payload)
                if rec.type in (formats.BARRIER, formats.COMMIT):
                    at = -(-at // 4096) * 4096
        return out

    def find(self, kind: int, epoch: int) -> Place:
        return next(
            p for p in self.places if p.rec.type == kind and p.rec.epoch == epoch
        )

    def offers_after(self, change: Callable[[World], None]) -> list[int]:
        twin = self.world.clone()
        change(twin)
        backup = TestBackup(twin)
        offered = [n for n, _, _ in backup.checkpoints()]
        assert backup.status().committed_epoch == offered[0]
        backup.abandon()
        found = formats.recover(state_of(twin), files_of(twin), "guest0")
        later = [n for n in found.closed if n > found.committed]
        assert [found.committed, *later] == offered
        return offered


def patch(world: World, file: int, at: int, length: int, crc_at: int,
          fmt: str, field: int, value: int) -> None:  # fmt: skip
    """Change a field of a header and make its CRC right again."""
    data = bytearray(world.read_file(PATH % file, SEGMENT))
    struct.pack_into(fmt, data, at + field, value)
    crc = formats.crc32c(bytes(data[at : at + crc_at]))
    struct.pack_into("<I", data, at + crc_at, crc)
    world.poke_file(PATH % file, bytes(data[at : at + length]), at)


RECORD_FIELDS = {
    "magic": ("<I", 0),
    "type": ("<B", 4),
    "salt": ("<I", 8),
    "offset": ("<Q", 16),
    "range": ("<Q", 24),
    "epoch": ("<Q", 32),
    "session": ("<Q", 40),
    "number": ("<Q", 48),
}
SEGMENT_FIELDS = {
    "magic": ("<I", 0),
    "version": ("<I", 4),
    "seq": ("<Q", 8),
    "prev_salt": ("<I", 20),
    "session": ("<Q", 24),
    "first_number": ("<Q", 32),
    "prev_number": ("<Q", 40),
    "flags": ("<I", 56),
    "size": ("<I", 60),
    "name": ("<I", 64),
}


@pytest.fixture(scope="module")
def journal() -> Journal:
    made = Journal()
    assert len(made.heads()) >= 4
    assert len(made.epochs) >= 8
    return made


def test_unchanged_it_is_all_there(journal):
    assert journal.offers_after(lambda world: None) == journal.epochs


@pytest.mark.parametrize("field", RECORD_FIELDS)
def test_a_barrier_with_one_wrong_field_ends_the_log(journal, field):
    for epoch in (journal.epochs[2], journal.epochs[-1]):
        place = journal.find(formats.BARRIER, epoch)
        fmt, at = RECORD_FIELDS[field]
        old = struct.unpack_from(fmt, world_bytes(journal, place), at)[0]
        for value in (old + 1, old - 1 if old else 77):
            offered = journal.offers_after(
                lambda w, p=place, f=fmt, a=at, v=value: patch(
                    w, p.file, p.at, 64, 60, f, a, v
                )
            )
            assert offered[-1] == epoch - 1, value


def world_bytes(journal: Journal, place: Place) -> bytes:
    return journal.world.read_file(PATH % place.file, SEGMENT)[place.at :][:64]


@pytest.mark.parametrize("field", ["salt", "session", "number"])
def test_a_commit_with_one_wrong_field_does_not_count(journal, field):
    committed, *prepared = journal.epochs
    place = journal.find(formats.COMMIT, committed)
    fmt, at = RECORD_FIELDS[field]
    old = struct.unpack_from(fmt, world_bytes(journal, place), at)[0]
    offered = journal.offers_after(
        lambda w: patch(w, place.file, place.at, 64, 60, fmt, at, old + 1)
    )
    assert offered[0] < committed
    assert prepared[-1] not in offered


def test_a_commit_of_what_is_not_closed_does_not_count(journal):
    committed, *prepared = journal.epochs
    place = journal.find(formats.COMMIT, committed)
    fmt, at = RECORD_FIELDS["epoch"]
    for epoch in (prepared[-1], prepared[-1] + 100):
        offered = journal.offers_after(
            lambda w, e=epoch: patch(w, place.file, place.at, 64, 60, fmt, at, e)
        )
        assert offered[0] < committed
        assert prepared[-1] not in offered


@pytest.mark.parametrize("kind", [formats.WRITE, formats.ZERO])
@pytest.mark.parametrize("field", ["salt", "session", "number", "epoch", "offset"])
def test_a_write_with_one_wrong_field_never_counts(journal, kind, field):
    """Where the rules for one record let it pass, its barrier does not."""
    epoch = journal.epochs[3]
    place = journal.find(kind, epoch)
    fmt, at = RECORD_FIELDS[field]
    old = struct.unpack_from(fmt, world_bytes(journal, place), at)[0]
    offered = journal.offers_after(
        lambda w: patch(w, place.file, place.at, 64, 60, fmt, at, old + 1)
    )
    assert offered == [n for n in journal.epochs if n < epoch]


def test_a_payload_with_a_flipped_bit_never_counts(journal):
    epoch = journal.epochs[3]
    place = journal.find(formats.WRITE, epoch)
    data = bytes([place.rec.payload[100] ^ 4])
    offered = journal.offers_after(
        lambda w: w.poke_file(PATH % place.file, data, place.at + 64 + 100)
    )
    assert offered == [n for n in journal.epochs if n < epoch]


@pytest.mark.parametrize("field", SEGMENT_FIELDS)
def test_a_segment_with_one_wrong_field_ends_the_log(journal, field):
    fmt, at = SEGMENT_FIELDS[field]
    for file, head in journal.heads()[1:]:
        starts = bool(head.flags & 1)
        # Without the flag prev_number means nothing; with it session and
        # number may be any.
        if (field == "prev_number") != starts and field in (
            "prev_number", "first_number", "session", "flags",
        ):  # fmt: skip
            continue
        if field == "flags" and starts:
            continue
        old = struct.unpack_from(
            fmt, journal.world.read_file(PATH % file, 84), at
        )[0]  # fmt: skip
        offered = journal.offers_after(
            lambda w, f=file, o=old: patch(w, f, 0, 84, 80, fmt, at, o ^ 1)
        )
        first = next(p for p in journal.places if p.file == file).rec
        assert max(offered) < first.epoch + (first.type == formats.COMMIT), file


@pytest.mark.parametrize("which", range(3))
def test_an_epoch_that_is_damaged_is_not_skipped(which):
    """The next segment begins with an epoch of its own: still the log ends."""
    world, model = World(), Model()
    backup = TestBackup(world)
    model.begin(backup)
    for i in range(9):
        # Three epochs to a segment.
        model.write(backup, i % 2, bytes([i + 1]) * 15000, 1000 * i)
        model.barrier(backup, b"")
    epochs = [n for n, _, _ in backup.checkpoints()]
    backup.abandon()
    world.crash("lose")
    journal = Journal.__new__(Journal)
    journal.world = world
    journal.places = journal.look()
    starts = [p for p in journal.places if p.at == 4096][1:]
    assert len(starts) >= 2
    for start in starts:
        # Of the epochs in the segment before; the last one at least.
        epoch = start.rec.epoch - 1 - which % 2
        place = journal.find(formats.WRITE, epoch)
        if which == 2:
            place = journal.find(formats.BARRIER, epoch)
        offered = journal.offers_after(
            lambda w, p=place: w.poke_file(PATH % p.file, b"\xff", p.at + 20)
        )
        assert offered == [n for n in epochs if n < epoch]


@pytest.mark.parametrize("number", [-1, -3])
def test_an_epoch_with_a_number_that_was_used_ends_the_log(journal, number):
    """All its records agree on it, the barrier's CRC too."""
    epoch = journal.epochs[3]
    places = [p for p in journal.places if p.rec.epoch == epoch]
    *records, barrier = [p for p in places if p.rec.type != formats.COMMIT]

    def renumber(world: World) -> None:
        for place in (*records, barrier):
            patch(world, place.file, place.at, 64, 60, "<Q", 32, epoch + number)
        now = [
            formats.record(world.read_file(PATH % p.file, SEGMENT)[p.at :])
            for p in records
        ]
        patch(world, barrier.file, barrier.at, 64, 60, "<Q", 24,
              formats.running_crc(now))  # fmt: skip

    assert journal.offers_after(renumber) == [n for n in journal.epochs if n < epoch]


def test_a_commit_takes_no_other_back(journal):
    committed = journal.epochs[0]
    place = journal.find(formats.COMMIT, committed)
    applied = state_of(journal.world)["applied"]
    for epoch in (0, applied):
        offered = journal.offers_after(
            lambda w, e=epoch: patch(w, place.file, place.at, 64, 60, "<Q", 32, e)
        )
        assert offered == [*range(applied, committed), *journal.epochs]
