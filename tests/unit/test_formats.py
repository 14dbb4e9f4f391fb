# SPDX-License-Identifier: LGPL-2.1-or-later
"""docs/formats.md is true: its example and a real backup's files decode."""

from __future__ import annotations

import re

import pytest
from remus_native._core import ffi, lib

from remus_native.replica import Backup, Primary, Volume
from support import formats
from support.paths import ROOT

PAGE = (ROOT / "docs" / "formats.md").read_text()


def hex_blocks() -> list[tuple[int, bytes]]:
    """The ```hex blocks of the page: address of the first byte, bytes."""
    blocks = []
    for text in re.findall(r"```hex\n(.*?)```", PAGE, flags=re.DOTALL):
        lines = [line.split() for line in text.strip().splitlines()]
        data = bytes.fromhex("".join("".join(line[1:]) for line in lines))
        blocks.append((int(lines[0][0], 16), data))
    return blocks


def example_file() -> tuple[bytes, bytes]:
    """The write on the wire, and the segment file put together."""
    (_, wire), *rest, _ = hex_blocks()
    file = bytearray(65536)
    for at, data in rest:
        file[at : at + len(data)] = data
    return wire, bytes(file)


def test_crc_of_the_nine_characters():
    assert formats.crc32c(b"123456789") == 0xE3069283
    assert lib.remus_crc32c(0, b"123456789", 9) == 0xE3069283


@pytest.mark.parametrize("length", [0, 1, 7, 8, 255, 767, 768, 6143, 6144, 20001])
def test_hardware_and_table_agree(length):
    data = bytes((i * 131 + i // 7) & 0xFF for i in range(length))
    for start in (0, 0xDEADBEEF):
        table = lib.remus_crc32c_table(start, data, length)
        assert lib.remus_crc32c(start, data, length) == table
    assert lib.remus_crc32c(0, data, length) == formats.crc32c(data)


def test_the_example_decodes():
    wire, file = example_file()
    head = formats.segment(file, "guest0")
    assert (head.seq, head.salt, head.number, head.kind) == (
        77,
        0x1BADCAFE,
        41,
        formats.START,
    )
    assert (head.prev_end, head.epoch, head.records, head.serial) == (20480, 8, 3, 12)
    assert head.volumes == formats.volumes_crc([("xvda", 1 << 20), ("xvdb", 1 << 20)])
    recs = [rec for rec, _ in formats.records(file, head)]
    assert [rec.type for rec in recs] == [
        formats.WRITE,
        formats.ZERO,
        formats.BARRIER,
        formats.COMMIT,
    ]
    write, zero, barrier, _ = recs
    assert (write.volume, write.offset, write.payload) == (
        1,
        4096,
        b"Remus was here.\n",
    )
    assert (zero.volume, zero.offset, zero.range) == (0, 512, 1024)
    ioctl = bytes(range(0xA0, 0xB0))
    assert barrier.payload == formats.barrier(b"42", session=ioctl, number=7)
    assert (barrier.offset, barrier.range) == (2, formats.running_crc([write, zero]))
    assert [rec.number for rec in recs] == [41, 42, 43, 43]
    assert {rec.epoch for rec in recs} == {9}
    assert formats.record(wire + write.payload).wire_crc == write.wire_crc


def test_the_news_of_an_applied_epoch_decodes():
    *_, (at, data) = hex_blocks()
    assert at == 0
    news = formats.record(data)
    assert (news.type, news.epoch, news.offset, news.number) == (8, 9, 9, 8)
    assert len(data) == 64 + 8 + 24
    assert formats.committed(news.payload) == 9
    assert formats.measured(news.payload) == [(9, 2, 0)]


@pytest.mark.parametrize("at", [0, 5, 17, 41, 57, 63, 70])
def test_a_flipped_bit_is_seen(at):
    _, file = example_file()
    damaged = bytearray(file[4096 : 4096 + 80])
    damaged[at] ^= 4
    with pytest.raises(formats.Invalid):
        formats.record(bytes(damaged))


def test_a_real_backup_writes_what_the_page_says(tmp_path):
    for name in ("p", "b"):
        (tmp_path / name).write_bytes(bytes(1 << 20))
        (tmp_path / f"{name}state").mkdir()
    address = f"unix:{tmp_path}/sock"
    with Backup(
        "guest0",
        state_dir=tmp_path / "bstate",
        volumes=[Volume("xvda", tmp_path / "b")],
        journal_bytes=1 << 20,
        segment_bytes=65536,
    ) as backup:
        backup.serve(address)
        with Primary(
            "guest0",
            state_dir=tmp_path / "pstate",
            volumes=[Volume("xvda", tmp_path / "p")],
            address=address,
        ) as primary:
            primary.wait_protected(timeout_s=20)
            primary.pwrite(0, b"x" * 5000, 777)
            primary.discard(0, 8192, 4096)
            epoch = primary.postsuspend(b"tag")
            primary.preresume(epoch, timeout_s=20)
            files = sorted((tmp_path / "bstate" / "journal").glob("segment.*"))
            data = [file.read_bytes() for file in files]
            found = [rec for file in data for rec in decode_file(file)]
            heads = [formats.segment(file, "guest0") for file in data if file[0]]
    mine = [rec for rec in found if rec.epoch == epoch]
    assert [rec.type for rec in mine] == [
        formats.WRITE,
        formats.ZERO,
        formats.BARRIER,
    ]
    assert mine[0].payload == b"x" * 5000
    assert mine[0].offset == 777
    assert mine[2].payload == formats.barrier(b"tag")
    assert mine[2].range == formats.running_crc(mine[:2])
    state = formats.superblock((tmp_path / "bstate" / "backup.state").read_bytes(),
                               "guest0")  # fmt: skip
    assert state["role"] == 3
    assert state["applied"] < epoch
    assert state["bytes"] == 1 << 20
    ids = [(tmp_path / "bstate" / at / "journal.id").read_bytes()
           for at in (".", "journal")]  # fmt: skip
    assert ids[0] == ids[1] and len(ids[0]) == 32
    assert ids[0][:8] == b"RMJI" + (1).to_bytes(4, "little")
    assert formats.crc32c(ids[0][:28]).to_bytes(4, "little") == ids[0][28:]
    assert {h.volumes for h in heads} == {formats.volumes_crc([("xvda", 1 << 20)])}


def decode_file(data: bytes) -> list[formats.Record]:
    try:
        head = formats.segment(data, "guest0")
    except formats.Invalid:
        return []
    return [rec for rec, _ in formats.records(data, head)]


def test_names_of_states():
    assert ffi.string(lib.remus_state_name(lib.REMUS_STATE_PROTECTED)) == b"Protected"
    assert ffi.string(lib.remus_state_name(99)) == b"?"
