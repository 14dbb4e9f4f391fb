# SPDX-License-Identifier: LGPL-2.1-or-later
"""A second decoder of docs/formats.md, written from that page alone."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

PAGE = 4096
HEADER = struct.Struct("<IBBHIIQQQQQII")
SEGMENT = struct.Struct("<IIQIIQQQQIIII8xI")
SUPER = struct.Struct("<IIQIIQQQQQQQQQQ16sQII32s312sI")

WRITE, ZERO, BARRIER, ACK, COMMIT = 3, 4, 5, 6, 7


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


@dataclass(frozen=True)
class Segment:
    seq: int
    salt: int
    prev_salt: int
    session: int
    first_number: int
    prev_number: int
    epoch: int
    flags: int
    size: int
    volumes: int


def segment(data: bytes, resource: str) -> Segment:
    (magic, version, seq, salt, prev_salt, session, first, prev, epoch, flags,
     size, name_crc, volumes, crc) = SEGMENT.unpack(data[: SEGMENT.size])  # fmt: skip
    if magic != int.from_bytes(b"REMJ", "little") or version != 1:
        raise Invalid("magic")
    if crc != crc32c(data[:80]) or name_crc != crc32c(resource.encode()):
        raise Invalid("crc")
    if size != len(data):
        raise Invalid("size")
    return Segment(
        seq, salt, prev_salt, session, first, prev, epoch, flags, size, volumes
    )


def volumes_crc(volumes: list[tuple[str, int]]) -> int:
    """What a segment says of the volumes that it was written for."""
    crc = 0
    for name, size in volumes:
        crc = crc32c(struct.pack("<64sQ", name.encode(), size), crc)
    return crc or 1


def records(data: bytes, head: Segment) -> Iterator[Record]:
    """The valid records of one segment file."""
    at = PAGE
    while at + HEADER.size <= len(data):
        try:
            rec = record(data[at:])
        except Invalid:
            return
        if rec.salt != head.salt or rec.session != head.session:
            return
        yield rec
        at += HEADER.size + len(rec.payload)
        if rec.type in (BARRIER, COMMIT):
            at = -(-at // PAGE) * PAGE


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
        self.last_barrier = state["number"]
        self.head: Segment | None = None
        self.expected = 0
        self.open: tuple[int, list[Record]] | None = None

    def begin(self, head: Segment) -> bool:
        before, self.head = self.head, head
        if head.flags & 1:
            self.open = None
            if before and head.prev_number != self.last_barrier:
                return False
        elif before and (head.session, head.first_number) != (
            before.session,
            self.expected,
        ):
            return False
        self.expected = head.first_number
        return not before or head.prev_salt == before.salt

    def take(self, rec: Record) -> bool:
        newest = max(self.found.closed, default=self.applied)
        if rec.type == COMMIT:
            if rec.number + 1 != self.expected or rec.epoch > newest:
                return False
            self.found.committed = max(self.found.committed, rec.epoch)
            return True
        counted = rec.type == BARRIER or (
            rec.type in (WRITE, ZERO) and not rec.flags & 1
        )
        well_formed = {
            WRITE: len(rec.payload) > 0,
            ZERO: rec.range > 0 and not rec.payload,
            BARRIER: len(rec.payload) <= 32,
        }
        if not counted or rec.number != self.expected or not well_formed[rec.type]:
            return False
        if self.open is None:
            if self.found.closed and rec.epoch <= newest:
                return False
            self.open = (rec.epoch, [])
        epoch, recs = self.open
        if rec.epoch != epoch:
            return False
        self.expected += 1
        if rec.type != BARRIER:
            recs.append(rec)
            return True
        if epoch > self.applied:
            if (rec.offset, rec.range) != (len(recs), running_crc(recs)):
                return False
            self.found.closed[epoch] = recs
        self.last_barrier = rec.number
        self.open = None
        return True


def recover(state: dict[str, int], files: list[bytes], resource: str) -> Recovered:
    """What the superblock and the segment files say together."""
    log = _Log(state)
    if state["role"] not in (2, 3, 4, 8):
        return log.found
    for seq in range(state["tail"], state["tail"] + len(files)):
        data = files[seq % len(files)]
        try:
            head = segment(data, resource)
        except Invalid:
            break
        if head.seq != seq or not log.begin(head):
            break
        for rec in records(data, head):
            if not log.take(rec):
                break
    return log.found


def running_crc(recs: list[Record]) -> int:
    return crc32c(b"".join(rec.wire_crc.to_bytes(4, "little") for rec in recs))


def measured(payload: bytes) -> list[tuple[int, int, int]]:
    """What epochs came to: number, ranges, bytes overwritten."""
    return list(struct.iter_unpack("<QQQ", payload))


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
    """The valid slot with the higher sequence."""
    best: dict[str, int] = {}
    for slot in (data[:PAGE], data[PAGE : 2 * PAGE]):
        fields = SUPER.unpack(slot[: SUPER.size])
        if fields[0] != int.from_bytes(b"REMB", "little"):
            continue
        if fields[-1] != crc32c(slot[:480]) or fields[4] != crc32c(resource.encode()):
            continue
        if fields[2] > best.get("sequence", -1):
            names = (
                "sequence role name_crc applied base target last_epoch tail "
                "number segment_bytes segments heard bytes"
            )
            best = dict(zip(names.split(), fields[2:15], strict=True))
            best["next_number"] = fields[16]
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


def hello(
    resource: str,
    volumes: list[tuple[str, int]],
    *,
    version: int = 3,
    generation: bytes = b"g" * 16,
) -> bytes:
    """The payload of a HELLO."""
    fixed = struct.pack("<IBBHQ16s64sH6x", version, 0, 0, len(volumes), 1, generation,
                        resource.encode(), 0)  # fmt: skip
    return fixed + b"".join(
        struct.pack("<64sQ", name.encode(), size) for name, size in volumes
    )
