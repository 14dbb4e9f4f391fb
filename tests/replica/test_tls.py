# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who may connect: TLS with the shared key, and everybody who has none."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
import subprocess
import threading
import time

import pytest

from remus_native import (
    Backup,
    ConfigError,
    Primary,
    RemusError,
    ReplicationLost,
    State,
    Volume,
)
from support import formats
from support.formats import HELLO
from support.pair import MIB, SMALL, checkpoint, next_checkpoint
from support.tls_pair import IDENTITY, KEY, Proxy, Tls, key_file
from support.waiting import until


def gone(sock: socket.socket) -> bytes:
    """What still comes until the other side closes; fails if it does not."""
    data = b""
    try:
        while some := sock.recv(65536):
            data += some
    except ConnectionResetError:
        pass
    return data


# ---- with the key -------------------------------------------------------------


def test_a_failover_with_tls(tls):
    primary = tls.primary()
    primary.wait_protected(30)
    assert primary.status().security.startswith("TLS1.3 ECDHE-PSK")
    assert tls.backup.status().security.startswith("TLS1.3 ECDHE-PSK")
    primary.pwrite(0, os.urandom(MIB), 0)
    epoch = checkpoint(primary)
    primary.pwrite(0, bytes(4096), 0)
    primary.close()
    assert tls.backup.promote() == epoch
    ours = (tls.folder / "p.img").read_bytes()
    assert (tls.folder / "b.img").read_bytes()[4096:] == ours[4096:]


def test_a_lost_link_comes_back_with_tls(tls):
    primary = tls.primary()
    primary.wait_protected(30)
    for round in range(5):
        primary.pwrite(0, os.urandom(100_000), round * 1000)
        primary.commit(next_checkpoint(primary))
        tls.backup.close()
        until(lambda: not primary.status().connected)
        primary.pwrite(0, os.urandom(5000), 500_000 + round)
        tls.backup = Backup(
            "guest0", state_dir=tls.folder / "b",
            volumes=[Volume("xvda", tls.folder / "b.img")], psk_file=tls.key,
            **{**SMALL, "journal_bytes": 4 * MIB},
        )  # fmt: skip
        tls.opened.append(tls.backup)
        tls.backup.serve(f"tcp:127.0.0.1:{tls.port}")
    epoch = next_checkpoint(primary)
    primary.commit(epoch)
    primary.close()
    assert tls.backup.promote() == epoch
    assert (tls.folder / "b.img").read_bytes() == (tls.folder / "p.img").read_bytes()


def test_what_goes_over_the_wire_is_not_the_data(tls):
    proxy = Proxy(tls.port)
    primary = tls.primary(port=proxy.port)
    primary.wait_protected(30)
    secret = b"a secret of the guest, 32 bytes!" * 64
    primary.pwrite(0, secret, 0)
    checkpoint(primary)
    assert len(proxy.sent) > len(secret)
    assert secret[:16] not in proxy.sent


def test_tls_on_a_unix_socket(tmp_path):
    made = key_file(tmp_path)
    for side in "pb":
        (tmp_path / side).mkdir()
        (tmp_path / f"{side}.img").write_bytes(bytes(65536))
    backup = Backup("guest0", state_dir=tmp_path / "b", psk_file=made,
                    volumes=[Volume("xvda", tmp_path / "b.img")], **SMALL)  # fmt: skip
    primary = Primary("guest0", state_dir=tmp_path / "p", psk_file=made,
                      volumes=[Volume("xvda", tmp_path / "p.img")],
                      address=f"unix:{tmp_path}/sock")  # fmt: skip
    try:
        backup.serve(f"unix:{tmp_path}/sock")
        primary.wait_protected(30)
        assert primary.status().security.startswith("TLS1.3")
    finally:
        primary.close()
        backup.close()


@pytest.mark.skipif(not shutil.which("psktool"), reason="psktool is missing")
def test_a_key_that_psktool_made(tmp_path):
    path = tmp_path / "made"
    subprocess.run(["psktool", "-u", IDENTITY, "-p", str(path), "-s", "32"],
                   check=True, capture_output=True)  # fmt: skip
    path.chmod(0o600)
    made = Tls.__new__(Tls)
    (tmp_path / "sides").mkdir()
    made.__init__(tmp_path / "sides")
    made.key.write_bytes(path.read_bytes())  # read again at each serve and open
    made.backup.close()
    made.backup = Backup(
        "guest0", state_dir=tmp_path / "sides/b", psk_file=path,
        volumes=[Volume("xvda", tmp_path / "sides/b.img")],
        **{**SMALL, "journal_bytes": 4 * MIB},
    )  # fmt: skip
    made.opened.append(made.backup)
    try:
        made.backup.serve(f"tcp:127.0.0.1:{made.port}")
        made.primary(psk_file=path).wait_protected(30)
    finally:
        made.close()


# ---- key files -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "mode", "words"),
    [
        (["guest0:" + KEY], 0o640, "0600"),
        (["guest0:" + KEY], 0o604, "0600"),
        (["guest0:xyz"], 0o600, "line 1"),
        (["guest0:abc"], 0o600, "line 1"),
        (["guest0"], 0o600, "line 1"),
        (["guest0:00"], 0o600, "bytes"),
        (["other:" + KEY], 0o600, "guest0"),
        ([""], 0o600, "guest0"),
    ],
)
def test_a_wrong_key_file_is_refused_at_the_start(tmp_path, lines, mode, words):
    (tmp_path / "p").mkdir()
    (tmp_path / "p.img").write_bytes(bytes(65536))
    bad = key_file(tmp_path, "bad", *lines, mode=mode)
    with pytest.raises(RemusError) as caught:
        Primary("guest0", state_dir=tmp_path / "p", psk_file=bad,
                volumes=[Volume("xvda", tmp_path / "p.img")],
                address="tcp:127.0.0.1:1")  # fmt: skip
    assert "bad" in str(caught.value) and words in str(caught.value)
    assert KEY not in str(caught.value)


def test_tcp_needs_tls_or_its_refusal_in_words(tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p.img").write_bytes(bytes(65536))
    common = {"state_dir": tmp_path / "p", "address": "tcp:127.0.0.1:1",
              "volumes": [Volume("xvda", tmp_path / "p.img")]}  # fmt: skip
    with pytest.raises(RemusError, match="tls"):
        Primary("guest0", **common)
    with pytest.raises(ConfigError):
        Primary("guest0", psk_file=key_file(tmp_path), tls="off", **common)
    Primary("guest0", tls="off", **common).close()


# ---- without it -----------------------------------------------------------------


def test_a_wrong_key(tls):
    wrong = key_file(tls.folder, "wrong", f"{IDENTITY}:{'00' * 32}")
    primary = tls.primary(psk_file=wrong)
    until(lambda: tls.refused("key") >= 3)
    status = primary.status()
    assert status.state is State.CONNECTING and not status.connected
    assert "key" in status.reason
    # One source, one entry, however often.
    assert len(tls.backup.refusals()) == 1
    assert tls.backup.refusals()[0].source == "127.0.0.1"


def test_an_unknown_identity(tls):
    other = key_file(tls.folder, "other", f"somebody:{KEY}")
    tls.primary(psk_file=other, psk_identity="somebody")
    until(lambda: tls.refused("key"))


def test_a_primary_without_tls(tls):
    primary = tls.primary(psk_file=None, tls="off")
    until(lambda: tls.refused("tls"))
    assert not primary.status().connected


def test_a_backup_without_tls(tmp_path):
    """A primary that has a key takes no backup that can't prove it."""
    made = Tls(tmp_path)
    try:
        made.backup.close()
        made.backup = Backup(
            "guest0", state_dir=tmp_path / "b",
            volumes=[Volume("xvda", tmp_path / "b.img")],
            **{**SMALL, "journal_bytes": 4 * MIB},
        )  # fmt: skip
        made.opened.append(made.backup)
        made.backup.serve(f"tcp:127.0.0.1:{made.port}", tls="off")
        primary = made.primary()
        until(lambda: "no connection" not in primary.status().reason)
        assert primary.status().state is State.CONNECTING
        assert not made.backup.status().connected
    finally:
        made.close()


def test_a_plain_hello(tls):
    with tls.connect() as sock:
        hello = formats.hello("guest0", [("xvda", MIB)])
        sock.sendall(formats.encode(HELLO, hello, session=7))
        gone(sock)
    until(lambda: tls.refused("tls"))
    assert not tls.backup.status().connected


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.0\r\n\r\n",
        os.urandom(5000),
        b"\x16\x03\x01\xff\xff" + bytes(70_000),  # a record beyond every limit
        struct.pack(">BHH", 22, 0x0301, 4) + b"\x01\xff\xff\xff" * 5000,
    ],
)
def test_garbage(tls, data):
    with tls.connect() as sock:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(data)
        gone(sock)
    until(lambda: tls.backup.status().refused >= 1)


def test_silence_and_drips_end_in_time(tls):
    """Nothing at all, and a byte now and then: three seconds for either."""
    start = time.monotonic()
    with tls.connect() as silent, tls.connect() as drip:
        stop = threading.Event()

        def dripping():
            for byte in b"\x16\x03\x01\x02\x00" + bytes(200):
                try:
                    drip.send(bytes([byte]))
                except OSError:
                    return
                if stop.wait(0.1):
                    return

        thread = threading.Thread(target=dripping)
        thread.start()
        try:
            gone(silent)
            assert 2 < time.monotonic() - start < 6
            gone(drip)
            assert time.monotonic() - start < 8
        finally:
            stop.set()
            thread.join()
    until(lambda: tls.refused("silent") >= 1)


def test_a_replayed_handshake(tls):
    """Every byte that a real primary sent, once more."""
    proxy = Proxy(tls.port)
    primary = tls.primary(port=proxy.port)
    primary.wait_protected(30)
    primary.pwrite(0, b"x" * 10000, 0)
    epoch = checkpoint(primary)
    primary.close()
    until(lambda: not tls.backup.status().connected)
    recorded = bytes(proxy.sent)
    before = tls.backup.status()
    with tls.connect() as sock:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(recorded)
        gone(sock)
    until(lambda: tls.backup.status().refused >= 1)
    after = tls.backup.status()
    assert after.records == before.records
    assert after.prepared_epoch == before.prepared_epoch == epoch
    assert not after.connected


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is missing")
def test_a_foreign_client_and_a_downgrade(tls):
    """openssl with the right key: TLS 1.3 is let in, 1.2 is not."""

    def s_client(*options: str) -> str:
        done = subprocess.run(
            ["openssl", "s_client", "-connect", f"127.0.0.1:{tls.port}",
             "-psk_identity", IDENTITY, "-psk", KEY, *options],
            input=b"", capture_output=True, timeout=30, check=False,
        )  # fmt: skip
        return done.stdout.decode("utf-8", "replace")

    old = s_client("-tls1_2", "-cipher", "PSK:@SECLEVEL=0")
    assert "Cipher is (NONE)" in old or "Cipher    : 0000" in old
    until(lambda: tls.refused("tls"))
    new = s_client("-tls1_3", "-ciphersuites", "TLS_AES_128_GCM_SHA256")
    assert "TLSv1.3" in new and "TLS_AES_128_GCM_SHA256" in new
    # Without a ticket there is no 0-RTT data, either.
    assert "Session Ticket arrived" not in new
    for other in ("TLS_AES_256_GCM_SHA384", "TLS_AES_128_CCM_SHA256"):
        known = tls.refused("tls")
        assert "Cipher is (NONE)" in s_client("-tls1_3", "-ciphersuites", other)
        until(lambda known=known: tls.refused("tls") > known)


@pytest.mark.skipif(not shutil.which("gnutls-cli"), reason="gnutls-cli is missing")
def test_a_key_without_an_ephemeral_exchange(tls):
    """The right key alone: who steals it later could read what was recorded."""

    def client(kx: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            ["gnutls-cli", "-p", str(tls.port), "127.0.0.1", "--pskusername", IDENTITY,
             "--pskkey", KEY, "--priority",
             f"NORMAL:-VERS-ALL:+VERS-TLS1.3:-KX-ALL:+{kx}"],
            input=b"", capture_output=True, timeout=30, check=False,
        )  # fmt: skip

    assert b"Handshake was completed" in client("ECDHE-PSK").stdout
    known = tls.refused("tls")
    assert b"Handshake was completed" not in client("PSK").stdout
    until(lambda: tls.refused("tls") > known)


def test_proven_but_wrong_hello(tls):
    """The key proves who it is, not what it wants."""
    other = Primary(
        "guest1", state_dir=tls.folder / "p", connect_ms=10,
        volumes=[Volume("xvda", tls.folder / "p.img")],
        address=f"tcp:127.0.0.1:{tls.port}", psk_file=tls.key, psk_identity=IDENTITY,
    )  # fmt: skip
    tls.opened.append(other)
    until(lambda: tls.refused("hello"))
    until(lambda: "guest1" in other.status().reason)


# ---- in the middle of a stream ------------------------------------------------


def test_a_cut_stream_is_never_taken_for_its_end(tls):
    """TCP ends in the middle of an epoch, without TLS's word that it does."""
    proxy = Proxy(tls.port)
    primary = tls.primary(port=proxy.port)
    primary.wait_protected(30)
    primary.pwrite(0, b"whole" * 1000, 0)
    epoch = checkpoint(primary)
    until(lambda: tls.backup.status().committed_epoch == epoch)
    image = (tls.folder / "p.img").read_bytes()
    proxy.limit = len(proxy.sent) + 40_000
    primary.pwrite(0, os.urandom(500_000), 0)
    with contextlib.suppress(ReplicationLost):
        primary.preresume(primary.postsuspend(), timeout_s=20)
        pytest.fail("an ack of what did not arrive")
    until(lambda: not tls.backup.status().connected)
    assert "closed" in tls.backup.status().reason
    primary.close()
    assert tls.backup.promote() == epoch
    assert (tls.folder / "b.img").read_bytes() == image


def test_a_bit_that_flips_on_the_way(tls):
    proxy = Proxy(tls.port)
    primary = tls.primary(port=proxy.port)
    primary.wait_protected(30)
    epoch = checkpoint(primary)
    until(lambda: tls.backup.status().committed_epoch == epoch)
    image = (tls.folder / "p.img").read_bytes()
    proxy.flip = True
    primary.pwrite(0, os.urandom(50_000), 0)
    until(lambda: not tls.backup.status().connected)
    assert "TLS: receive" in tls.backup.status().reason
    until(lambda: not primary.status().connected)
    primary.close()
    assert tls.backup.promote() == epoch
    assert (tls.folder / "b.img").read_bytes() == image


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is missing")
def test_changes_of_keys_without_end(tls):
    """A proven peer that asks for new keys again and again is dropped, and the
    next one is served."""
    client = subprocess.Popen(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{tls.port}", "-tls1_3",
         "-ciphersuites", "TLS_AES_128_GCM_SHA256", "-psk_identity", IDENTITY,
         "-psk", KEY],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        stdin = client.stdin.fileno()
        os.write(stdin, b"x\n")  # said something: it is not pending any more

        def asked() -> bool:
            with contextlib.suppress(BrokenPipeError):
                os.write(stdin, b"K\n")
            return client.poll() is not None or tls.refused("hello") > 0

        until(asked)
    finally:
        client.kill()
        client.communicate()
    primary = tls.primary()
    primary.wait_protected(30)
    checkpoint(primary)
