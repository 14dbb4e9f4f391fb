# SPDX-License-Identifier: LGPL-2.1-or-later
"""A second decoder of docs/formats.md, written from that page alone."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from dataclasses import dataclass

PAGE = 4096
HEADER = struct.Struct("<IBBHIIQQQQQII")
SEGMENT = struct.Struct("<IIQIIQIIQQQQIIQ16sII12xI")
SUPER = struct.Struct("<IIQIIQQQQQIIQQQQQQ16sII32s16sQQQQ16sQ16s248x312sQQ")

HELLO, REPLY, RESYNC, ERROR, BYE = 1, 2, 9, 11, 12
WRITE, ZERO, BARRIER, ACK, COMMIT, TOLD = 3, 4, 5, 6, 7, 17
MARKS = (BARRIER, COMMIT, TOLD)
LARGE = 65536
START, CONTINUE = 1, 2


def _table() -> list[int]:
    rows = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        rows.append(value)
    return rows


_TABLE = _table()


def crc32c(data: bytes, crc: int = 0) -> int:
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


@dataclass(frozen=True)
class Record:
    type: int
    flags: int
    volume: int
    salt: int
    offset: int
    range: int
    epoch: int
    session: int
    number: int
    payload: bytes
    wire_crc: int  # header CRC as it is with salt 0


class Invalid(Exception):
    """These bytes are not what the page describes."""


def record(data: bytes) -> Record:
    if len(data) < HEADER.size:
        raise Invalid("short")
    head = data[: HEADER.size]
    (magic, kind, flags, volume, salt, length, offset, span, epoch, session,
     number, payload_crc, header_crc) = HEADER.unpack(head)  # fmt: skip
    if magic != int.from_bytes(b"REMS", "little") or header_crc != crc32c(head[:60]):
        raise Invalid("header")
    payload = data[HEADER.size : HEADER.size + length]
    if len(payload) != length or payload_crc != (crc32c(payload) if length else 0):
        raise Invalid("payload")
    wire = head[:8] + bytes(4) + head[12:60]
    return Record(
        kind, flags, volume, salt, offset, span, epoch, session, number, payload,
        crc32c(wire),
    )  # fmt: skip


class Refused(Exception):
    """A start must refuse this: it is damaged, or the superblock too old."""


@dataclass(frozen=True)
class Segment:
    seq: int
    salt: int
    prev_salt: int
    prev_end: int
    kind: int
    flags: int
    session: int
    number: int
    epoch: int
    records: int
    run: int
    size: int
    serial: int
    journal: bytes
    volumes: int


def segment(data: bytes, resource: str, journal: bytes | None = None) -> Segment:
    (magic, version, seq, salt, prev_salt, prev_end, kind, flags, session, number,
     epoch, records, run, size, serial, ident, name_crc, volumes,
     crc) = SEGMENT.unpack(data[: SEGMENT.size])  # fmt: skip
    if magic != int.from_bytes(b"REMJ", "little") or crc != crc32c(data[:124]):
        raise Invalid("magic or crc")
    if name_crc != crc32c(resource.encode()) or ident != (journal or ident):
        raise Invalid("another journal")
    if version != 2 or kind not in (START, CONTINUE) or flags > 1:
        raise Refused("version, kind or flags")
    if size != len(data) or not salt or prev_end > size:
        raise Invalid("size")
    return Segment(
        seq, salt, prev_salt, prev_end, kind, flags, session, number, epoch, records,
        run, size, serial, ident, volumes,
    )  # fmt: skip


def volumes_crc(volumes: list[tuple[str, int]]) -> int:
    """What a segment says of the volumes that it was written for."""
    crc = 0
    for name, size in volumes:
        crc = crc32c(struct.pack("<64sQ", name.encode(), size), crc)
    return crc or 1


def place(at: int, length: int) -> int:
    """Where a record's header stands behind what ends at `at`."""
    if length < LARGE:
        return at
    return -(-(at + HEADER.size) // PAGE) * PAGE - HEADER.size


def records(
    data: bytes, head: Segment, limit: int | None = None
) -> Iterator[tuple[Record, int]]:
    """The valid records of one segment file, and where what follows begins."""
    end, limit = PAGE, len(data) if limit is None else limit
    while True:
        for at in (end, place(end, LARGE)):
            try:
                rec = record(data[at:limit])
            except Invalid:
                continue
            fits = len(rec.payload) <= min(len(data) // 4 // PAGE * PAGE, 1 << 20)
            ours = (rec.salt, rec.session) == (head.salt, head.session)
            if ours and fits and at == place(end, len(rec.payload)):
                break
        else:
            return
        end = at + HEADER.size + len(rec.payload)
        if rec.type in MARKS:
            end = -(-end // PAGE) * PAGE
        yield rec, end


@dataclass
class Recovered:
    """What a journal holds beyond the disks."""

    committed: int
    #: Closed epochs after `applied` and their records, oldest first.
    closed: dict[int, list[Record]]

    def write_to(self, disks: list[bytearray], target: int) -> None:
        """Bring disks that hold `applied` to this checkpoint."""
        for number, recs in self.closed.items():
            for rec in recs if number <= target else []:
                data = rec.payload if rec.type == WRITE else bytes(rec.range)
                disks[rec.volume][rec.offset : rec.offset + len(data)] = data


class _Log:
    """The rules under *Recovery*, one record after the other."""

    def __init__(self, state: dict[str, int]) -> None:
        self.applied = state["applied"]
        self.found = Recovered(self.applied, {})
        #: Progress: next number; epoch, its records and their CRCs; is it open?
        self.number = self.epoch = self.records = self.run = 0
        self.open = False
        self.recs: list[Record] = []
        self.end = 0
        #: Where the newest mark ended, and the progress there.
        self.mark: tuple[int, int, tuple[int, int, int, bool]] | None = None

    def at(self) -> tuple[int, int, int, bool]:
        return self.epoch, self.records, self.run, self.open

    def begin(self, head: Segment) -> None:
        self.number, self.epoch = head.number, head.epoch
        self.records, self.run = head.records, head.run
        self.open = bool(head.flags & 1) and head.kind == CONTINUE
        if not self.open:
            self.recs = []

    def take(self, rec: Record) -> bool:
        newest = max(self.found.closed, default=self.applied)
        if rec.type in (COMMIT, TOLD):
            if rec.number + 1 != self.number or rec.epoch > newest:
                return False
            if rec.type == COMMIT:
                self.found.committed = max(self.found.committed, rec.epoch)
            return True
        counted = rec.type == BARRIER or (
            rec.type in (WRITE, ZERO) and not rec.flags & 1
        )
        well_formed = {
            WRITE: len(rec.payload) > 0,
            ZERO: rec.range > 0 and not rec.payload,
            BARRIER: 24 <= len(rec.payload) <= 56,
        }
        if not counted or rec.number != self.number or not well_formed[rec.type]:
            return False
        if rec.epoch != self.epoch if self.open else rec.epoch <= self.epoch:
            return False
        if not self.open:
            self.recs, count, run = [], 0, 0
        else:
            count, run = self.records, self.run
        if rec.type == BARRIER:
            if (rec.offset, rec.range) != (count, run):
                return False
            if rec.epoch > self.applied:
                self.found.closed[rec.epoch] = self.recs
        else:
            self.recs.append(rec)
            count, run = count + 1, crc32c(rec.wire_crc.to_bytes(4, "little"), run)
        self.epoch, self.records, self.run = rec.epoch, count, run
        self.open = rec.type != BARRIER
        self.number += 1
        return True

    def scan(self, data: bytes, head: Segment, limit: int) -> None:
        self.begin(head)
        self.end = PAGE
        for rec, end in records(data, head, limit):
            if not self.take(rec):
                return
            self.end = end
            if rec.type in MARKS:
                self.mark = (head.seq, end, self.at())

    def follows(self, head: Segment, before: Segment) -> bool:
        says = (head.epoch, head.records, head.run, bool(head.flags & 1))
        if head.kind == CONTINUE:
            return (head.prev_end, head.number) == (self.end, self.number) and (
                says == self.at()
            )
        if self.mark != (before.seq, head.prev_end, says) or head.number < self.number:
            raise Refused("what a start names can't be read")
        return True


def recover(
    state: dict[str, int],
    files: list[bytes],
    resource: str,
    journal: bytes | None = None,
) -> Recovered:
    """What the superblock and the segment files say together."""
    log, heads, headers = _Log(state), {}, []
    for file, data in enumerate(files):
        try:
            head = segment(data, resource, journal)
        except Invalid:
            continue
        headers.append(head)
        if head.seq % len(files) == file:
            heads[head.seq] = head
        if head.serial > state["serial"]:
            raise Refused("the superblock is too old")
    tail = state["tail"]
    if state["role"] not in (2, 3, 4, 8) or not state["tail_salt"]:
        return log.found
    if tail not in heads or heads[tail].salt != state["tail_salt"]:
        raise Refused("the tail is not there")
    seq, now = tail, heads[tail]
    while True:
        more = heads.get(seq + 1) if seq + 1 < tail + len(files) else None
        if more and more.prev_salt != now.salt:
            more = None
        start = more is not None and more.kind == START
        limit = more.prev_end if more and start else len(files[0])
        log.scan(files[seq % len(files)], now, limit)
        if more is None or not log.follows(more, now):
            break
        seq, now = seq + 1, more
    for head in headers:
        if head.kind == START and head.prev_salt and seq < head.seq < tail + len(files):
            raise Refused("a start that was not reached")
    newest = max(log.found.closed, default=log.applied)
    if state["committed"] > newest:
        raise Refused("what was committed is not there")
    log.found.committed = max(log.found.committed, state["committed"])
    return log.found


def running_crc(recs: list[Record]) -> int:
    return crc32c(b"".join(rec.wire_crc.to_bytes(4, "little") for rec in recs))


def measured(payload: bytes) -> list[tuple[int, int, int]]:
    """What epochs came to: number, ranges, bytes overwritten."""
    return list(struct.iter_unpack("<QQQ", payload[8:]))


def committed(payload: bytes) -> int:
    """What the backup took as committed, by its progress."""
    return int.from_bytes(payload[:8], "little")


EPOCHS = struct.Struct("<IIQ8IQQ16s64sI")
SAMPLE = struct.Struct("<QQQQQQQQQiI")
SERIES = ("barrier", "ack", "commit", "pause", "bytes", "extents", "coalesced")


@dataclass(frozen=True)
class Epochs:
    """A file of epoch statistics; samples as (epoch, ..., result, flags)."""

    name: str
    pid: int
    created: int
    boot: str
    added: int
    failed: int
    closed: int
    samples: list[tuple[int, ...]]
    series: dict[str, tuple[int, int, int, int, dict[int, int]]]


def bucket_low(bucket: int) -> int:
    if bucket < 128:
        return bucket
    return (64 + bucket % 64) << (bucket // 64 - 1)


def epochs(data: bytes) -> Epochs:
    """A file that nobody writes to any more."""
    (magic, version, size, slots, slot, count, buckets, ring, first, each, bits,
     created, pid, boot, name, crc) = EPOCHS.unpack(data[: EPOCHS.size])  # fmt: skip
    if magic != int.from_bytes(b"REME", "little") or version != 1:
        raise Invalid("magic")
    if crc != crc32c(data[:144]) or size != len(data) or bits != 6:
        raise Invalid("header")
    if (slots, slot, count, buckets) != (4096, 80, 7, 3776):
        raise Invalid("sizes")
    added, failed, closed = struct.unpack_from("<QQQ", data, 192)
    samples = []
    for position in range(max(0, added - slots), added):
        fields = SAMPLE.unpack_from(data, ring + position % slots * slot)
        if fields[0] == 2 * position + 2:
            samples.append(fields[1:])
    series = {}
    for index, title in enumerate(SERIES):
        at = first + index * each
        sequence, n, least, most, low, high = struct.unpack_from("<6Q", data, at)
        if sequence % 2:
            raise Invalid("series")
        counts = struct.unpack_from(f"<{buckets}Q", data, at + 64)
        filled = {bucket_low(b): c for b, c in enumerate(counts) if c}
        series[title] = (n, least, most, low + (high << 64), filled)
    if any(data[first + count * each :]):
        raise Invalid("tail")
    return Epochs(
        name.rstrip(b"\0").decode(), pid, created, boot.hex(), added, failed, closed,
        samples, series,
    )  # fmt: skip


def superblock(data: bytes, resource: str) -> dict[str, int]:
    """The valid slot with the higher serial."""
    best: dict[str, int] = {}
    for slot in (data[:PAGE], data[PAGE : 2 * PAGE]):
        fields = SUPER.unpack(slot[: SUPER.size])
        crc = int.from_bytes(slot[4092:4096], "little")
        if fields[:2] != (int.from_bytes(b"REMB", "little"), 3):
            continue
        if crc != crc32c(slot[:4092]) or fields[4] != crc32c(resource.encode()):
            continue
        if fields[2] > best.get("serial", -1):
            names = (
                "serial role name_crc applied base target last_epoch tail "
                "tail_salt flags next_number committed told segment_bytes segments "
                "bytes"
            )
            best = dict(zip(names.split(), fields[2:18], strict=True))
    if not best:
        raise Invalid("no valid slot")
    return best


def encode(
    kind: int,
    payload: bytes = b"",
    *,
    flags: int = 0,
    volume: int = 0,
    offset: int = 0,
    span: int = 0,
    epoch: int = 0,
    session: int = 0,
    number: int = 0,
) -> bytes:
    """A record as it goes over the wire."""
    head = HEADER.pack(
        int.from_bytes(b"REMS", "little"), kind, flags, volume, 0, len(payload),
        offset, span, epoch, session, number,
        crc32c(payload) if payload else 0, 0,
    )[:60]  # fmt: skip
    return head + crc32c(head).to_bytes(4, "little") + payload


#: Each knows of more than one session more than the one before.
_sessions = itertools.count(16, 16)


def barrier(tag: bytes = b"", *, session: bytes = bytes(16), number: int = 0) -> bytes:
    """The payload of a BARRIER: the ioctl that took it, and its tag."""
    return struct.pack("<16sQ", session, number) + tag


def hello(
    resource: str,
    volumes: list[tuple[str, int]],
    *,
    version: int = 5,
    generation: bytes = b"g" * 16,
    flags: int = 0,
    session: bytes = bytes(16),
    number: int = 0,
) -> bytes:
    """The payload of a HELLO of a primary that knows of all its sessions."""
    fixed = struct.pack(
        "<IBBHQ16s64sH2xI16sQQQ", version, 0, 0, len(volumes), 1, generation,
        resource.encode(), 0, flags, session, number, next(_sessions), 0,
    )  # fmt: skip
    return fixed + b"".join(
        struct.pack("<64sQ", name.encode(), size) for name, size in volumes
    )
