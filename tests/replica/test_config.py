# SPDX-License-Identifier: LGPL-2.1-or-later
"""Both sides from one value, blocking calls for asyncio, reads into buffers."""

from __future__ import annotations

import array
import asyncio
import dataclasses
import errno
import inspect
import time

import pytest
from remus_native._core import lib

from remus_native import (
    Backup,
    BackupConfig,
    CheckpointTimeout,
    ConfigError,
    Primary,
    PrimaryConfig,
    State,
    StateError,
    Volume,
)
from remus_native.resource_file import parse
from support.pair import MIB, Pair, checkpoint
from support.paths import ROOT
from support.waiting import until

#: The keyword of `Primary` and `Backup`, where the config has another name.
KEYWORDS = {
    "name": "resource",
    "state": "state_dir",
    "journal": "journal_dir",
    "idle_interval_ms": "idle_ms",
    "session_grace_ms": "grace_ms",
    "stale_after_ms": "stale_ms",
}


@pytest.fixture
def folder(tmp_path):
    for side in ("primary", "backup"):
        (tmp_path / side).mkdir()
        (tmp_path / f"{side}.xvda").write_bytes(bytes(MIB))
    return tmp_path


def configs(folder) -> tuple[PrimaryConfig, BackupConfig]:
    primary = PrimaryConfig(
        name="guest0",
        state=folder / "primary",
        volumes=(Volume("xvda", folder / "primary.xvda"),),
        address=f"unix:{folder}/sock",
        idle_interval_ms=3_600_000,
    )
    backup = BackupConfig(
        name="guest0",
        state=folder / "backup",
        volumes=(Volume("xvda", folder / "backup.xvda"),),
        address=f"unix:{folder}/sock",
        journal_bytes=MIB,
        segment_bytes=65536,
    )
    return primary, backup


def test_both_sides_from_one_value(folder):
    of_primary, of_backup = configs(folder)
    with Backup.of(of_backup) as backup:
        backup.serve()
        with Primary.of(of_primary) as primary:
            primary.wait_protected(30)
            primary.pwrite("xvda", b"x" * 512, 0)
            epoch = primary.postsuspend()
            primary.preresume(epoch, 30)
            primary.commit(epoch)
            assert primary.config is of_primary
        assert backup.promote(epoch) == epoch
        assert backup.config is of_backup
    assert (folder / "backup.xvda").read_bytes() == (
        folder / "primary.xvda"
    ).read_bytes()


def test_a_config_can_not_be_changed(folder):
    of_primary, of_backup = configs(folder)
    with pytest.raises(dataclasses.FrozenInstanceError):
        of_primary.ack = "memory"  # type: ignore[misc]
    assert hash(of_backup) == hash(dataclasses.replace(of_backup))


def test_serve_wants_an_address(folder):
    config = dataclasses.replace(configs(folder)[1], address=None)
    with Backup.of(config) as backup, pytest.raises(ConfigError, match="no address"):
        backup.serve()


@pytest.mark.parametrize(
    ("side", "config", "besides"),
    [
        (Primary, PrimaryConfig, set()),
        (Backup, BackupConfig, {"address", "tls", "loss_ms"}),
    ],
)
def test_the_keyword_form_takes_the_same(side, config, besides):
    """And each keyword reaches its field, with the same default."""
    fields = {field.name: field for field in dataclasses.fields(config)}
    keywords = inspect.signature(side).parameters
    named = {KEYWORDS.get(name, name): field for name, field in fields.items()}
    assert set(named) - besides == set(keywords)
    for name, parameter in keywords.items():
        default = named[name].default
        if parameter.default is inspect.Parameter.empty:
            assert default is dataclasses.MISSING
        else:
            assert parameter.default == default


def test_the_file_gives_configs_with_its_values():
    text = (ROOT / "docs/example.toml").read_text()
    resource = parse(text)
    primary, backup = resource.primary_config(), resource.backup_config()
    assert (primary.name, primary.state) == (resource.name, resource.primary.state)
    assert primary.queue_bytes == resource.limits.queue
    assert backup.journal == resource.backup.journal
    assert backup.stale_after_ms == resource.limits.stale_ms
    assert [v.path for v in backup.volumes] == [v.backup for v in resource.volumes]


# ---- choices that are none -------------------------------------------------------


def test_a_choice_that_is_none_is_refused(tmp_path):
    class Odd(Primary):
        def _fill(self, c):
            super()._fill(c)
            c.raw.on_loss = 7

    disk = tmp_path / "disk"
    disk.write_bytes(bytes(MIB))
    with pytest.raises(ConfigError, match="on_loss 7 is neither continue nor hold"):
        Odd(
            "guest0",
            state_dir=tmp_path,
            volumes=[Volume("xvda", disk)],
            address=f"unix:{tmp_path}/socket",
        )


def test_unknown_flags_of_an_ask_do_not_cost_the_connection(make_pair):
    pair = make_pair()
    for flags in (4, 256, -1):
        with pair.backup._call() as raw:
            assert lib.remus_backup_ask(raw, flags) == -errno.EINVAL
    checkpoint(pair.primary)
    assert pair.primary.status().state is State.PROTECTED


# ---- reads into buffers --------------------------------------------------------


def test_reads_into_buffers(make_pair):
    primary = make_pair().primary
    data = bytes(range(256)) * 16
    primary.pwrite(0, data, 4096)
    whole = bytearray(8192)
    primary.pread_into("xvda", memoryview(whole)[1024:5120], 4096)
    assert whole == bytes(1024) + data + bytes(3072)
    numbers = array.array("Q", [0] * 512)
    primary.pread_into(0, numbers, 4096)
    assert numbers.tobytes() == data
    primary.pread_into(0, bytearray(), 0)
    for bad in (b"read-only", memoryview(whole)[::2], 7, None):
        with pytest.raises(ConfigError, match="pread_into"):
            primary.pread_into(0, bad, 0)  # type: ignore[arg-type]
    with pytest.raises(StateError):
        primary.pread_into(0, whole, MIB - 4096)
    with pytest.raises(ConfigError):
        primary.pread_into("xvdz", whole, 0)
    assert primary.pread(0, 4096, 4096) == data


# ---- asyncio ---------------------------------------------------------------------


def alive(seconds: float = 0.02):
    """How often other tasks ran, meanwhile."""
    ran = []

    async def tick() -> None:
        while True:
            ran.append(time.monotonic())
            await asyncio.sleep(seconds / 10)

    return ran, tick


def test_wait_protected_is_awaited(tmp_path):
    pair = Pair(tmp_path, [MIB])
    pair.open_primary(wait=False)

    async def play() -> None:
        ran, tick = alive()
        ticking = asyncio.ensure_future(tick())
        with pytest.raises(CheckpointTimeout):
            await pair.primary.wait_protected_async(0.05)
        waiting = asyncio.ensure_future(pair.primary.wait_protected_async())
        await asyncio.sleep(0.05)
        assert not waiting.done() and len(ran) > 5
        pair.open_backup()
        await asyncio.wait_for(waiting, 30)
        assert pair.primary.status().state is State.PROTECTED
        ticking.cancel()

    try:
        asyncio.run(play())
    finally:
        pair.close()


def test_a_cancelled_wait_leaves_nothing(tmp_path):
    pair = Pair(tmp_path, [MIB])
    pair.open_primary(wait=False)

    async def play() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(pair.primary.wait_protected_async(), 0.05)

    try:
        asyncio.run(play())
    finally:
        pair.close()  # would wait for a call that is still in it


def test_promote_and_verify_are_awaited(make_pair):
    pair = make_pair()
    pair.primary.pwrite(0, b"x" * 512, 0)

    async def play() -> int:
        found = await pair.primary.verify_async()
        assert found.equal
        epoch = pair.primary.postsuspend()
        pair.primary.preresume(epoch, 30)
        pair.primary.commit(epoch)
        pair.primary.close()
        with pytest.raises(StateError):
            await pair.backup.promote_async(epoch + 7)
        assert await pair.backup.promote_async(epoch) == epoch
        return epoch

    asyncio.run(play())
    assert pair.image("backup", 0) == pair.image("primary", 0)


def test_a_cancelled_verify_is_ended(make_pair):
    pair = make_pair([8 * MIB])

    async def play() -> None:
        task = asyncio.ensure_future(pair.primary.verify_async(rate=1 << 20))
        while not pair.primary.verification().bytes_done:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(play())
    assert pair.primary.verify().equal  # no other one is under way


def test_a_cancelled_promote_goes_on(make_pair):
    pair = make_pair()
    epoch = pair.primary.postsuspend()
    pair.primary.preresume(epoch, 30)
    pair.primary.commit(epoch)
    pair.primary.close()

    async def play() -> None:
        task = asyncio.ensure_future(pair.backup.promote_async(epoch))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(play())
    until(lambda: pair.backup.status().state is State.PROMOTED)
