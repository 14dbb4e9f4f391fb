# SPDX-License-Identifier: LGPL-2.1-or-later
"""Recovery as docs/formats.md tells it, rule by rule.

The journal guards itself in several ways at once, and a crash rarely gets
past all but one of them.  So each rule is tried alone: a journal that is good
is changed in one place, with every CRC right, and ends right there.  And a
second reader of the journal, written from the page, finds what ours finds
after many crashes.
"""

from __future__ import annotations

import errno
import random
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from support import formats
from support.crash_model import (
    SEGMENT,
    SEGMENTS,
    Failed,
    Model,
    TestBackup,
    Workload,
    World,
    run_until_failure,
)

PATH = b"/state/journal/segment.%04d"


RING = 16  # segments where records are changed


def files_of(world: World, ring: int = SEGMENTS) -> list[bytes]:
    return [world.read_file(PATH % i, SEGMENT) for i in range(ring)]


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
    """Prepared epochs over several segments; one commit; so many sessions, of
    which each but the first has two epochs."""

    def __init__(self, sessions: int = 1) -> None:
        self.world, self.model = World(), Model()
        backup = TestBackup(self.world, segments=RING)
        self.model.begin(backup)
        first = self.model.acked
        for i in range(10):
            self.one_epoch(backup, i)
            if i == 3:
                self.model.commit(backup, first + 2, durably=True)
        for _ in range(1, sessions):
            self.model.reconnect(backup)
            for i in range(2):
                self.one_epoch(backup, 10 + i)
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
        files = files_of(self.world, RING)
        tail = state_of(self.world)["tail"]
        out = []
        for seq in range(tail, tail + RING):
            try:
                head = formats.segment(files[seq % RING], "guest0")
            except formats.Invalid:
                break
            if head.seq != seq:
                break
            out.append((seq % RING, head))
        return out

    def look(self) -> list[Place]:
        files = files_of(self.world, RING)
        out = []
        for file, head in self.heads():
            at = 4096
            for rec, end in formats.records(files[file], head):
                out.append(Place(file, at, rec))
                at = end
        return out

    def find(self, kind: int, epoch: int) -> Place:
        return next(
            p for p in self.places if p.rec.type == kind and p.rec.epoch == epoch
        )

    def offers_after(self, change: Callable[[World], None]) -> list[int]:
        """What is offered of a copy with this change; []: it is refused."""
        twin = self.world.clone()
        change(twin)
        try:
            name = twin.read_file(b"/state/journal.id", 32)[8:24]
            files = files_of(twin, RING)
            found = formats.recover(state_of(twin), files, "guest0", name)
        except formats.Refused:
            with pytest.raises(Failed) as caught:
                TestBackup(twin, segments=RING)
            assert caught.value.errno in (errno.EBADMSG, errno.EPROTONOSUPPORT)
            assert re.search("damaged|older than|release", str(caught.value))
            return []
        backup = TestBackup(twin, segments=RING)
        offered = [n for n, _, _ in backup.checkpoints()]
        assert backup.status().committed_epoch == offered[0]
        backup.abandon()
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
    "salt": ("<I", 16),
    "prev_salt": ("<I", 20),
    "prev_end": ("<Q", 24),
    "kind": ("<I", 32),
    "flags": ("<I", 36),
    "session": ("<Q", 40),
    "number": ("<Q", 48),
    "epoch": ("<Q", 56),
    "records": ("<Q", 64),
    "run": ("<I", 72),
    "size": ("<I", 76),
    "journal": ("<Q", 88),
    "name": ("<I", 104),
}


@pytest.fixture(scope="module")
def journal() -> Journal:
    made = Journal()
    assert len(made.heads()) >= 4
    assert len(made.epochs) >= 8
    return made


@pytest.fixture(scope="module")
def restarted() -> Journal:
    """The same, and two more sessions behind."""
    made = Journal(sessions=3)
    assert [h.kind for _, h in made.heads()][-2:] == [formats.START] * 2
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


def change_header(journal: Journal, file: int, field: str) -> list[int]:
    fmt, at = SEGMENT_FIELDS[field]
    header = journal.world.read_file(PATH % file, 128)
    old = struct.unpack_from(fmt, header, at)[0]
    return journal.offers_after(lambda w: patch(w, file, 0, 128, 124, fmt, at, old ^ 2))


@pytest.mark.parametrize("field", SEGMENT_FIELDS)
def test_a_segment_with_one_wrong_field_ends_the_log(journal, field):
    """One that continues; what can't be of this release is refused."""
    for file, head in journal.heads()[1:]:
        assert head.kind == formats.CONTINUE
        offered = change_header(journal, file, field)
        if field in ("version", "kind", "flags"):
            assert not offered
            continue
        first = next(p for p in journal.places if p.file == file).rec
        assert offered and max(offered) < first.epoch + (first.type == formats.COMMIT)


def test_a_segment_with_a_flipped_bit_ends_the_log(journal):
    """Also where no rule looks at the field: its CRC says that it is damaged."""
    file, head = journal.heads()[1]
    assert head.kind == formats.CONTINUE
    first = next(p for p in journal.places if p.file == file).rec
    header = journal.world.read_file(PATH % file, 128)
    for at in range(128):
        data = bytes([header[at] ^ 1 << at % 8])
        offered = journal.offers_after(
            lambda w, at=at, data=data: w.poke_file(PATH % file, data, at)
        )
        assert offered, at
        assert max(offered) < first.epoch + (first.type == formats.COMMIT), at


@pytest.mark.parametrize("field", SEGMENT_FIELDS)
def test_a_start_with_one_wrong_field_is_never_taken_for_another(restarted, field):
    """It names what was synced: what does not fit to that is refused."""
    (before, _), (file, _) = restarted.heads()[-2:]
    offered = change_header(restarted, file, field)
    if field in ("magic", "size", "name", "journal"):
        # It is no header: the log ends before it, as if it never was.
        assert offered == restarted.epochs[:-2]
    elif field in ("seq", "salt", "session", "number"):
        # Nothing in it is of that number, session or salt, or it is elsewhere.
        assert offered in ([], restarted.epochs[:-2])
    else:
        assert not offered
    # Its loss, if another start is behind it, can't go unnoticed.
    assert not change_header(restarted, before, "magic")


@pytest.mark.parametrize("kind", [formats.WRITE, formats.ZERO, formats.BARRIER])
def test_damage_before_the_end_that_a_start_names_is_refused(restarted, kind):
    for epoch in restarted.epochs[:-2]:
        if epoch == restarted.epochs[0]:
            continue
        place = restarted.find(kind, epoch)
        for at in (0, 17, 41, 60):
            old = world_bytes(restarted, place)[at]
            assert not restarted.offers_after(
                lambda w, p=place, a=at, o=old: w.poke_file(
                    PATH % p.file, bytes([o ^ 8]), p.at + a
                )
            )


@pytest.mark.parametrize("field", ["applied", "tail", "tail_salt"])
def test_a_tail_that_is_not_there_is_refused(restarted, field):
    at = {"applied": 24, "tail": 56, "tail_salt": 64}[field]

    def change(world: World) -> None:
        data = bytearray(world.read_file(b"/state/backup.state", 8192))
        for slot in (0, 4096):
            data[slot + at] ^= 1
            crc = formats.crc32c(bytes(data[slot : slot + 4092]))
            struct.pack_into("<I", data, slot + 4092, crc)
        world.poke_file(b"/state/backup.state", bytes(data), 0)

    offered = restarted.offers_after(change)
    assert bool(offered) == (field == "applied")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (24, 1 << 40),
        (48, 0),
        (48, 1 << 63),
        (56, 1 << 63),
        (72, 1 << 63),
        (80, 1 << 40),
    ],
    ids=["applied", "last", "last-huge", "tail", "number", "committed"],
)
def test_a_superblock_whose_numbers_can_not_be_is_none(field, value):
    """Applied and committed are not beyond the last epoch, no number is where
    sums of it would overflow: else it was damaged, whatever its CRC says."""
    world = Journal().world
    data = bytearray(world.read_file(b"/state/backup.state", 8192))
    for slot in (0, 4096):
        struct.pack_into("<Q", data, slot + field, value)
        crc = formats.crc32c(bytes(data[slot : slot + 4092]))
        struct.pack_into("<I", data, slot + 4092, crc)
    world.poke_file(b"/state/backup.state", bytes(data), 0)
    with pytest.raises(Failed, match="no valid superblock") as failed:
        TestBackup(world, segments=RING)
    assert failed.value.errno == errno.EBADMSG


def test_a_header_of_a_later_superblock_is_refused(journal):
    for file, head in journal.heads():
        assert not journal.offers_after(
            lambda w, f=file, h=head: patch(w, f, 0, 128, 124, "<Q", 80, h.serial + 99)
        )


def test_what_comes_back_behind_a_named_end_does_not_count():
    """A page that was lost, and is there again after the next start."""
    world, model = World(), Model()
    backup = TestBackup(world, segments=RING)
    model.begin(backup)
    for i in range(4):
        model.write(backup, 0, bytes([i + 1]) * 700, 1000 * i)
        model.barrier(backup, b"")
    backup.abandon()
    world.crash("lose")
    journal = Journal.__new__(Journal)
    journal.world, journal.epochs = world, []
    journal.places = journal.look()
    last = journal.find(formats.WRITE, model.acked)
    page = world.read_file(PATH % last.file, SEGMENT)[last.at : last.at + 4096]
    world.poke_file(PATH % last.file, bytes(4096), last.at)
    backup = TestBackup(world, segments=RING)
    model.acked -= 1
    model.resume(backup)
    model.begin(backup)
    model.write(backup, 1, b"another life", 0)
    epoch = model.barrier(backup, b"")
    backup.abandon()
    world.crash("lose")
    world.poke_file(PATH % last.file, page, last.at)
    epochs = journal.offers_after(lambda w: None)
    assert epochs[-1] == epoch
    backup = TestBackup(world, segments=RING)
    backup.promote(epoch)
    backup.abandon()
    assert world.disks() == model.at[epoch]


@pytest.mark.parametrize("which", range(3))
def test_an_epoch_that_is_damaged_is_not_skipped(which):
    """The next segment begins with an epoch of its own: still the log ends."""
    world, model = World(), Model()
    backup = TestBackup(world, segments=RING)
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


def test_a_large_payload_begins_at_a_page():
    """Whatever is before it; both readers find it, and what follows."""
    world = World()
    world.create(b"/disk/big", 4 << 20)
    paths = {b"big": b"/disk/big"}
    rng = random.Random(5)
    want = bytearray(4 << 20)
    backup = TestBackup(world, paths=paths, segment=1 << 20, segments=8)
    backup.begin()
    for length in (65535, 65536, 70001, 1, 4032, 262144, 131072, 4000, 65536):
        data = rng.randbytes(length)
        at = rng.randrange(len(want) - length)
        backup.write(0, data, at)
        want[at : at + length] = data
        if length % 2:
            epoch = backup.barrier()
    epoch = backup.barrier()
    backup.abandon()
    world.crash("lose")
    state = state_of(world)
    files = [world.read_file(PATH % i, 1 << 20) for i in range(8)]
    found = formats.recover(state, files, "guest0")
    large = 0
    for data in files:
        try:
            head = formats.segment(data, "guest0")
        except formats.Invalid:
            continue
        at = 4096
        for rec, end in formats.records(data, head):
            payload = formats.place(at, len(rec.payload)) + 64
            if len(rec.payload) >= 65536:
                assert payload % 4096 == 0
                large += 1
            assert data[payload:][: len(rec.payload)] == rec.payload
            at = end
    assert large == 5
    disks = [bytearray(4 << 20)]
    found.write_to(disks, epoch)
    assert disks[0] == want
    backup = TestBackup(world, paths=paths, segment=1 << 20, segments=8)
    assert backup.promote(epoch) == epoch
    backup.abandon()
    assert world.read_file(b"/disk/big", 4 << 20) == want
