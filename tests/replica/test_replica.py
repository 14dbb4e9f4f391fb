# SPDX-License-Identifier: LGPL-2.1-or-later
"""Primary and backup in one process: what each side promises."""

from __future__ import annotations

import contextlib
import errno
import random
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from remus_native import (
    Backup,
    CheckpointTimeout,
    ConfigError,
    DeviceNotReady,
    PhaseError,
    Primary,
    ReplicaResource,
    ReplicationLost,
    State,
    StateError,
    Volume,
)
from support.backup_process import BackupProcess
from support.pair import checkpoint


def until_lost(primary):
    while True:
        checkpoint(primary)


def test_what_was_there_before_is_carried(make_pair, tmp_path):
    """Also if it came there while nobody looked: the sides compare."""
    pair = make_pair([1 << 20], journal_bytes=4 << 20)
    pair.close()
    data = random.Random(1).randbytes(1 << 20)
    (tmp_path / "primary.xvda").write_bytes(data)
    pair.open_backup()
    pair.open_primary()
    assert pair.backup.status().state is State.PROTECTED
    pair.close()
    assert pair.image("backup", 0) == data


def test_promote_to_each_prepared_checkpoint_by_number_and_tag(make_pair):
    pair = make_pair([65536])
    epochs = []
    for i in range(4):
        pair.primary.pwrite(0, bytes([65 + i]) * 4096, 4096 * i)
        epochs.append(checkpoint(pair.primary, f"cp{i}", commit=i < 1))
    pair.primary.pwrite(0, b"never", 0)
    pair.primary.close()
    listed = pair.backup.checkpoints()
    assert [cp.epoch for cp in listed] == epochs
    assert [cp.tag for cp in listed] == [b"cp0", b"cp1", b"cp2", b"cp3"]
    assert [cp.committed for cp in listed] == [True, False, False, False]
    with pytest.raises(StateError, match=f"checkpoints are {epochs[0]} "):
        pair.backup.promote(epochs[0] - 1)
    with pytest.raises(StateError, match="0 checkpoints carry the tag"):
        pair.backup.promote(tag="cp9")
    assert pair.backup.promote(tag="cp2") == epochs[2]
    want = b"".join(bytes([65 + i]) * 4096 for i in range(3)) + bytes(65536 - 3 * 4096)
    assert pair.image("backup", 0) == want
    assert pair.backup.promote() == epochs[2]
    with pytest.raises(StateError, match="no other one is possible"):
        pair.backup.promote(epochs[3])


def test_a_tag_that_names_two_is_refused(make_pair):
    pair = make_pair([65536])
    for _ in range(2):
        pair.primary.pwrite(0, b"x", 0)
        checkpoint(pair.primary, "same", commit=False)
    pair.primary.close()
    with pytest.raises(StateError, match="2 checkpoints carry the tag"):
        pair.backup.promote(tag="same")


def test_default_promote_is_the_last_committed(make_pair):
    pair = make_pair([65536])
    pair.primary.pwrite(0, b"committed", 0)
    epoch = checkpoint(pair.primary)
    pair.primary.pwrite(0, b"prepared!", 0)
    checkpoint(pair.primary, commit=False)
    pair.primary.close()
    assert pair.backup.promote() == epoch
    assert pair.image("backup", 0)[:9] == b"committed"


def test_promote_asks_for_force_while_the_primary_is_connected(make_pair):
    pair = make_pair([65536])
    epoch = checkpoint(pair.primary)
    with pytest.raises(StateError) as caught:
        pair.backup.promote()
    assert caught.value.errno == errno.EBUSY
    assert pair.backup.promote(force=True) == epoch
    with pytest.raises(ReplicationLost):
        until_lost(pair.primary)
    assert pair.primary.status().state is State.UNPROTECTED
    pair.primary.pwrite(0, b"the guest goes on", 0)


def test_a_promote_that_is_refused_costs_nothing(make_pair):
    """Not even with force: the name is looked up before the link is cut."""
    pair = make_pair([65536])
    checkpoint(pair.primary)
    for wrong in ({"checkpoint": 10**6}, {"tag": "typo"}):
        with pytest.raises(StateError, match=r"checkpoint|tag"):
            pair.backup.promote(force=True, **wrong)
    assert pair.primary.status().state is State.PROTECTED
    checkpoint(pair.primary)


def test_a_promoted_backup_refuses_every_primary(make_pair):
    pair = make_pair([65536])
    checkpoint(pair.primary)
    pair.primary.close()
    pair.backup.promote()
    pair.backup.close()
    (pair.folder / "backup.xvda").write_bytes(b"guest's own".ljust(65536, b"."))
    pair.open_backup()
    primary = pair.open_primary(wait=False)
    with pytest.raises(CheckpointTimeout, match="promoted"):
        primary.wait_protected(timeout_s=1.5)
    assert pair.image("backup", 0).startswith(b"guest's own.")
    assert pair.backup.status().state is State.PROMOTED


def test_loss_is_an_error_and_the_guest_goes_on(make_pair):
    pair = make_pair([65536])
    pair.primary.pwrite(0, b"safe", 0)
    safe = checkpoint(pair.primary)
    pair.backup.close()
    with pytest.raises(ReplicationLost) as caught:
        until_lost(pair.primary)
    assert "guest0" in str(caught.value)
    assert isinstance(caught.value, ConnectionError)
    pair.primary.pwrite(0, b"unprotected", 0)
    assert pair.primary.pread(0, 11, 0) == b"unprotected"
    pair.primary.preresume(safe, timeout_s=1)  # was acked before the loss
    status = pair.primary.status()
    assert status.state is State.UNPROTECTED
    assert status.reason


def test_commit_by_backup_ignores_the_primary(make_pair):
    pair = make_pair([65536], commit_by="backup")
    before = pair.backup.status().committed_epoch
    pair.primary.pwrite(0, b"one", 0)
    one = checkpoint(pair.primary)
    pair.primary.pwrite(0, b"two", 0)
    two = checkpoint(pair.primary)
    assert pair.backup.status().committed_epoch == before
    pair.backup.commit(one)
    pair.primary.close()
    assert [cp.epoch for cp in pair.backup.checkpoints()] == [one, two]
    assert pair.backup.promote() == one
    assert pair.image("backup", 0)[:3] == b"one"


def test_commit_given_on_the_backup(make_pair):
    pair = make_pair([65536])
    pair.primary.pwrite(0, b"one", 0)
    one = checkpoint(pair.primary, commit=False)
    pair.primary.pwrite(0, b"two", 0)
    checkpoint(pair.primary, commit=False)
    with pytest.raises(StateError, match="not prepared here"):
        pair.backup.commit(one + 100)
    pair.backup.commit(one)
    pair.backup.commit(one)
    pair.primary.close()
    assert pair.backup.promote() == one
    assert pair.image("backup", 0)[:3] == b"one"


def test_backup_restart_keeps_what_was_acked(make_pair):
    pair = make_pair([65536, 65536])
    epochs = []
    for i in range(3):
        pair.primary.pwrite(0, bytes([i + 1]) * 1000, i * 500)
        pair.primary.pwrite(1, bytes([i + 1]) * 1000, i * 700)
        epochs.append(checkpoint(pair.primary, i, commit=i == 0))
    pair.primary.close()
    pair.backup.close()
    backup = pair.open_backup()
    assert [cp.epoch for cp in backup.checkpoints()] == epochs
    assert backup.promote(epochs[1]) == epochs[1]
    want = bytearray(65536)
    for i in range(2):
        want[i * 700 : i * 700 + 1000] = bytes([i + 1]) * 1000
    assert pair.image("backup", 1) == bytes(want)


def test_epoch_numbers_are_never_used_twice(make_pair):
    pair = make_pair([65536])
    first = checkpoint(pair.primary)
    pair.close()
    pair.open_backup()
    pair.open_primary()
    assert checkpoint(pair.primary) > first


def test_many_writers_agree_on_both_sides(make_pair):
    size = 1 << 18
    pair = make_pair([size, size], journal_bytes=4 << 20)
    stop = threading.Event()

    def write(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(300):
            volume, length = rng.randrange(2), rng.randrange(1, 9000)
            offset = rng.randrange(min(20000, size - length))
            if rng.random() < 0.1:
                pair.primary.discard(volume, offset, length)
            else:
                pair.primary.pwrite(volume, rng.randbytes(length), offset)

    def checkpoints() -> None:
        while not stop.is_set():
            checkpoint(pair.primary)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(4)]
    taker = threading.Thread(target=checkpoints)
    for thread in (*threads, taker):
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    taker.join()
    last = checkpoint(pair.primary)
    pair.primary.close()
    assert pair.backup.promote() == last
    for i in range(2):
        assert pair.image("backup", i) == pair.image("primary", i)


def test_lack_of_journal_space_slows_writes_and_checkpoints_free_it(make_pair):
    pair = make_pair([4 << 20], journal_bytes=512 << 10)
    done = threading.Event()
    data = random.Random(3).randbytes(4 << 20)

    def write() -> None:
        for at in range(0, 4 << 20, 65536):
            pair.primary.pwrite(0, data[at : at + 65536], at)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        checkpoint(pair.primary)
    writer.join()
    last = checkpoint(pair.primary)
    assert pair.primary.status().stalls > 0
    pair.primary.close()
    assert pair.backup.promote() == last
    assert pair.image("backup", 0) == data


def test_an_epoch_that_never_fits_ends_in_a_named_state(make_pair):
    pair = make_pair([4 << 20], journal_bytes=512 << 10, stall_ms=300)
    pair.primary.session_begin()  # else the engine would make room
    for at in range(0, 4 << 20, 65536):
        pair.primary.pwrite(0, b"\xaa" * 65536, at)
    status = pair.primary.status()
    assert status.state is State.UNPROTECTED
    assert "does not fit into the backup's journal" in status.reason
    with pytest.raises(ReplicationLost, match="does not fit"):
        pair.primary.postsuspend()


def test_phases_of_the_device(make_pair):
    pair = make_pair([65536])
    device = ReplicaResource(pair.primary, name="xvda")
    with pytest.raises(PhaseError):
        device.postsuspend()
    device.setup()
    with pytest.raises(PhaseError):
        device.preresume()
    with pytest.raises(PhaseError):
        device.commit()
    epoch = device.postsuspend("7")
    device.preresume(5)
    second = device.postsuspend()
    device.commit()
    assert second == epoch + 1
    device.preresume(5)
    device.commit()
    device.commit()
    device.teardown()
    with pytest.raises(PhaseError):
        device.postsuspend()


def test_setup_says_why_a_resource_is_not_ready(tmp_path):
    (tmp_path / "disk").write_bytes(bytes(65536))
    with Primary(
        "guest0",
        state_dir=tmp_path,
        volumes=[Volume("xvda", tmp_path / "disk")],
        address=f"unix:{tmp_path}/nobody",
    ) as primary:
        device = ReplicaResource(primary, setup_timeout_s=0.2)
        with pytest.raises(DeviceNotReady, match="Connecting"):
            device.setup()


def test_only_one_process_or_handle_has_a_side(make_pair):
    pair = make_pair([65536])
    with pytest.raises(StateError) as caught:
        Backup(
            "guest0",
            state_dir=pair.folder / "backup",
            volumes=pair.volumes("backup"),
        )
    assert caught.value.errno == errno.EBUSY
    other = pair.folder / "other"
    other.mkdir()
    with pytest.raises(StateError, match="in use by another"):
        Primary(
            "guest1",
            state_dir=other,
            volumes=pair.volumes("primary"),
            address=pair.address,
        )


def test_a_second_primary_is_refused_while_one_is_connected(make_pair):
    pair = make_pair([65536])
    other = pair.folder / "other"
    other.mkdir()
    (other / "disk").write_bytes(bytes(65536))
    with Primary(
        "guest0",
        state_dir=other,
        volumes=[Volume("xvda", other / "disk")],
        address=pair.address,
    ) as second:
        with pytest.raises(CheckpointTimeout, match="another primary is connected"):
            second.wait_protected(timeout_s=1)
        checkpoint(pair.primary)


def test_noise_on_the_socket_does_not_disturb(make_pair):
    pair = make_pair([65536])
    for noise in (b"", b"GET / HTTP/1.0\r\n\r\n" * 40, bytes(4096)):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(pair.address[5:])
            with contextlib.suppress(BrokenPipeError):  # refused, as it should
                client.sendall(noise)
        checkpoint(pair.primary)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"address": "tcp:127.0.0.1:7790"}, 'tls = "off"'),
        ({"address": "tcp:192.0.2.1:7790"}, "TCP needs authentication"),
        ({"address": "somewhere"}, "expected unix:/path or tcp"),
        ({"address": "unix:relative"}, "absolute path"),
        ({"ack": "sometimes"}, '"durable", "memory"'),
        ({"tls": "psk"}, "needs a psk_file"),
        ({"tls": "on"}, "not one of None"),
        ({"tls": "off", "psk_file": "/nosuch"}, "remove one of them"),
        ({"psk_identity": "guest0"}, "no psk_file given"),
        ({"queue_bytes": 17}, "multiple of 4096"),
        ({"loss_ms": 300}, "at least 1000"),
        ({"volumes": []}, "no volumes"),
        ({"volumes": [Volume("a/b", "x")]}, "1 to 63 characters"),
        ({"volumes": [Volume("status", "x")]}, "taken by the status file"),
        ({"volumes": [Volume("a", "x"), Volume("a", "y")]}, "two volumes"),
        ({"volumes": [Volume("a", "x"), Volume("b", "x")]}, "its own disk"),
        ({"resource": ""}, "resource name"),
    ],
)
def test_bad_settings_are_named(tmp_path, change, match):
    (tmp_path / "disk").write_bytes(bytes(65536))
    settings = {
        "resource": "guest0",
        "state_dir": tmp_path,
        "volumes": [Volume("xvda", tmp_path / "disk")],
        "address": f"unix:{tmp_path}/sock",
        **change,
    }
    with pytest.raises((ConfigError, StateError), match=match):
        Primary(settings.pop("resource"), **settings)


def test_io_outside_a_volume(make_pair):
    pair = make_pair([65536])
    with pytest.raises(StateError) as caught:
        pair.primary.pwrite(0, b"xx", 65535)
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(StateError):
        pair.primary.pread(0, 2, 65535)
    with pytest.raises(StateError):
        pair.primary.flush(3)
    with pytest.raises(ConfigError, match="no volume 'nosuch'"):
        pair.primary.flush("nosuch")
    with pytest.raises(ConfigError, match="33 bytes"):
        pair.primary.postsuspend(b"x" * 33)


def test_tcp_on_the_loopback(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for side in ("p", "b"):
        (tmp_path / side).mkdir()
        (tmp_path / f"{side}.img").write_bytes(bytes(65536))
    address = f"tcp:127.0.0.1:{port}"
    with Backup(
        "guest0",
        state_dir=tmp_path / "b",
        volumes=[Volume("xvda", tmp_path / "b.img")],
        journal_bytes=1 << 20,
        segment_bytes=65536,
        ack="memory",
    ) as backup:
        with pytest.raises(StateError, match="TCP needs authentication"):
            backup.serve(address)
        backup.serve(address, tls="off")
        with Primary(
            "guest0",
            state_dir=tmp_path / "p",
            volumes=[Volume("xvda", tmp_path / "p.img")],
            address=address,
            tls="off",
            ack="memory",
        ) as primary:
            primary.wait_protected(timeout_s=20)
            primary.pwrite(0, b"over tcp", 0)
            checkpoint(primary)
        backup.promote()
    assert (tmp_path / "b.img").read_bytes()[:8] == b"over tcp"


def test_a_backup_for_other_disks_is_refused(make_pair, tmp_path):
    pair = make_pair([65536])
    pair.primary.close()
    (tmp_path / "primary.xvda").write_bytes(bytes(131072))
    pair.sizes = [131072]
    primary = pair.open_primary(wait=False)
    with pytest.raises(CheckpointTimeout, match="make them equal"):
        primary.wait_protected(timeout_s=1)


def test_changed_journal_limits_are_taken_at_the_next_start(make_pair):
    pair = make_pair([65536])
    pair.primary.pwrite(0, b"stays", 0)
    epoch = checkpoint(pair.primary)
    pair.close()
    pair.options["journal_bytes"] = 2 << 20
    backup = pair.open_backup()
    assert backup.status().journal_limit == 2 << 20
    assert backup.promote() == epoch
    assert pair.image("backup", 0)[:5] == b"stays"


def test_64_volumes(make_pair):
    pair = make_pair([4096 * (1 + i % 3) for i in range(64)])
    for i in range(64):
        pair.primary.pwrite(i, bytes([i + 1]) * 512, 512)
    epoch = checkpoint(pair.primary)
    pair.primary.close()
    assert pair.backup.promote() == epoch
    for i in range(64):
        image = pair.image("backup", i)
        assert image == pair.image("primary", i)
        assert image[512:1024] == bytes([i + 1]) * 512


@pytest.mark.fuse  # loop devices need root, as mounts do
def test_block_devices(tmp_path):
    size = 1 << 20
    with contextlib.ExitStack() as stack:
        loops = {}
        for side in ("p", "b"):
            (tmp_path / side).mkdir()
            image = tmp_path / f"{side}.img"
            image.write_bytes(random.Random(side).randbytes(size))
            loops[side] = subprocess.check_output(
                ["losetup", "-f", "--show", image], text=True
            ).strip()
            stack.callback(subprocess.run, ["losetup", "-d", loops[side]], check=True)
        address = f"unix:{tmp_path}/sock"
        with Backup(
            "guest0",
            state_dir=tmp_path / "b",
            volumes=[Volume("xvda", loops["b"])],
            journal_bytes=1 << 20,
            segment_bytes=65536,
        ) as backup:
            backup.serve(address)
            with Primary(
                "guest0",
                state_dir=tmp_path / "p",
                volumes=[Volume("xvda", loops["p"], size)],
                address=address,
            ) as primary:
                primary.wait_protected(timeout_s=20)
                assert primary.size("xvda") == size
                primary.pwrite("xvda", b"across sectors", 508)
                primary.discard("xvda", 65536, 65536)
                primary.flush("xvda")
                epoch = checkpoint(primary)
            assert backup.promote() == epoch
        sides = [Path(loop).read_bytes() for loop in loops.values()]
    assert sides[0] == sides[1]
    assert sides[0][508:522] == b"across sectors"
    assert sides[0][65536:131072] == bytes(65536)


def test_a_stopped_backup_is_noticed_and_the_guest_goes_on(tmp_path):
    """No socket closes: only the silence tells."""
    for name in ("p", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}.img").write_bytes(bytes(1 << 20))
    address = f"unix:{tmp_path}/sock"
    backup = BackupProcess(address, tmp_path / "b", {"xvda": tmp_path / "b.img"})
    with contextlib.ExitStack() as stack:
        stack.callback(backup.kill)
        primary = stack.enter_context(
            Primary(
                "guest0",
                state_dir=tmp_path / "p",
                volumes=[Volume("xvda", tmp_path / "p.img")],
                address=address,
                loss_ms=1000,
            )
        )
        primary.wait_protected(timeout_s=20)
        primary.pwrite(0, b"safe", 0)
        safe = checkpoint(primary, "safe")
        backup.pause()
        primary.pwrite(0, b"lost", 0)
        epoch = primary.postsuspend()
        start = time.monotonic()
        with pytest.raises(CheckpointTimeout):
            primary.preresume(epoch, timeout_s=0.2)
        with pytest.raises(ReplicationLost, match="nothing from it for"):
            primary.preresume(epoch, timeout_s=20)
        assert 0.5 < time.monotonic() - start < 5
        for i in range(64):
            primary.pwrite(0, bytes([i]) * 16384, i * 16384)
        assert primary.status().state is State.UNPROTECTED
        # What arrives late does not make it protected again.
        backup.go_on()
        with pytest.raises(ReplicationLost):
            primary.postsuspend()
        primary.preresume(safe)
