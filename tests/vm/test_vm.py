# SPDX-License-Identifier: LGPL-2.1-or-later
"""The probe and the DRBD engine on real DRBD devices, in a virtual machine.

One boot of Debian's kernel with its in-tree DRBD 8.4 (tests/vm). What runs
inside brings two resources through their states and writes down what it sees;
each test here asserts one fact of it.

The probe's 0 can't be had there: it needs protocol D, which no stock kernel
has. Nor can an ack. tests/devices/test_probe.py and test_drbd.py show these with
stand-ins; those for the tools of 8.4 are held against the real ones here.
"""

from __future__ import annotations

import errno
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass

import pytest

from remus_native import DeviceNotReady, DrbdDisk, NotProtocolD
from support.drbd_tools import (
    NOT_DRBD,
    NOT_PROTOCOL_D,
    NOT_READY,
    UNKNOWN,
    Reply,
    State,
    Utils84,
)
from support.ioctl_node import OPEN, IoctlNode
from support.paths import ROOT
from vm import image, packages, qemu

CACHE = ROOT / "build" / "vm"
PROGRAM = CACHE / "drbd_disk"

# The limits of download and boot are shorter; this one is for the first test.
pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

SHELLS = {"/usr/bin/dash": "dash", "/busybox/sh": "busybox"}


@dataclass(frozen=True)
class Guest:
    """What was seen in the guest, by state and by what was asked."""

    probes: dict[tuple[str, str, str], qemu.Record]  # state, device, shell
    disks: dict[tuple[str, str], qemu.Record]  # state, device
    tools: dict[tuple[str, str], qemu.Record]  # state, call
    facts: list[qemu.Record]
    console: str


def read(records: list[qemu.Record], console: str) -> Guest:
    probes, disks, tools, facts = {}, {}, {}, []
    for record in records:
        words = record.command.split()
        if record.kind == "probe":
            probes[record.state, words[-1], SHELLS[words[-3]]] = record
        elif record.kind == "disk":
            disks[record.state, words[-1]] = record
        elif record.kind == "tool":
            tools[record.state, record.command] = record
        else:
            facts.append(record)
    return Guest(probes, disks, tools, facts, console)


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Guest | qemu.GuestFailed:
    """The guest, once it has done all it had to do; or how it failed."""
    if platform.machine() != "x86_64":
        pytest.skip(f"the guest is x86_64, this machine {platform.machine()}")
    if shutil.which(qemu.QEMU) is None:
        pytest.skip(f"{qemu.QEMU} is not installed")
    try:
        unpacked = packages.unpacked(CACHE)
    except packages.Unavailable as reason:
        pytest.skip(f"no packages for the guest: {reason}")
    subprocess.run(
        ["make", "--silent", str(PROGRAM.relative_to(ROOT))],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS")},
        check=True,
    )
    folder = tmp_path_factory.mktemp("vm")
    initramfs = folder / "initramfs"
    image.write_initramfs(unpacked, PROGRAM, initramfs)
    (kernel,) = (unpacked / "kernel").glob("vmlinuz-*")
    try:
        return read(*qemu.boot(kernel, initramfs, folder))
    except qemu.GuestFailed as failure:
        return failure


@pytest.fixture
def guest(booted: Guest | qemu.GuestFailed) -> Guest:
    if isinstance(booted, qemu.GuestFailed):
        pytest.fail(f"no facts: {booted}", pytrace=False)
    print(booted.console)  # shown by pytest if the test fails
    return booted


def test_the_guest_comes_to_its_end(booted: Guest | qemu.GuestFailed) -> None:
    if isinstance(booted, qemu.GuestFailed):
        pytest.fail(f"{booted}\nconsole:\n{booted.console}", pytrace=False)
    assert "FAILED" not in booted.console


# ------------------------------------------------------------------ the probe

IS_OTHER = "not a DRBD device and not a remus-native disk"
PROTOCOL = "uses protocol {}; Remus needs a driver with protocol D"
NOT_UP = ("resource r0 is not up", "Device minor not allocated", "run drbdadm up r0")
NO_LIST = "looks like a DRBD device, but drbdadm"

VERDICTS: dict[tuple[str, str], tuple[int, tuple[str, ...]]] = {
    # Not DRBD, whatever the tools say.
    ("no-module", "/dev/ram2"): (NOT_DRBD, (IS_OTHER, "a block device")),
    ("no-module", "/tmp/image"): (NOT_DRBD, (IS_OTHER, "a plain file")),
    ("protocol-A", "/dev/ram2"): (NOT_DRBD, (IS_OTHER, "a block device")),
    # The disk below a DRBD device is none itself.
    ("protocol-A", "/dev/ram0"): (NOT_DRBD, (IS_OTHER, "a block device")),
    ("protocol-A", "/tmp/image"): (NOT_DRBD, (IS_OTHER, "a plain file")),
    ("protocol-A", "/dev/nothing"): (NOT_DRBD, (IS_OTHER, "no such file")),
    ("protocol-A", "/dev/console"): (NOT_DRBD, (IS_OTHER, "neither a file")),
    ("protocol-A", "/tmp"): (NOT_DRBD, (IS_OTHER, "neither a file")),
    ("bad-configuration", "/dev/ram2"): (NOT_DRBD, (IS_OTHER,)),
    ("no-helper", "/dev/ram2"): (NOT_DRBD, (IS_OTHER,)),
    ("no-drbdadm", "/dev/ram2"): (NOT_DRBD, (IS_OTHER,)),
    # Named like a minor, but neither configured nor there.
    ("protocol-A", "/dev/drbd7"): (NOT_DRBD, (IS_OTHER, "no such file")),
    # Connected, and not protocol D: on both sides, by every name.
    ("secondary", "/dev/drbd0"): (NOT_PROTOCOL_D, (PROTOCOL.format("A"),)),
    ("protocol-A", "/dev/drbd0"): (NOT_PROTOCOL_D, (PROTOCOL.format("A"),)),
    ("protocol-A", "/dev/drbd1"): (NOT_PROTOCOL_D, (PROTOCOL.format("A"),)),
    ("protocol-A", "/dev/vdisk"): (
        NOT_PROTOCOL_D,
        ("resource r0", PROTOCOL.format("A")),
    ),
    ("protocol-C", "/dev/drbd0"): (NOT_PROTOCOL_D, (PROTOCOL.format("C"),)),
    ("protocol-C", "/dev/drbd1"): (NOT_PROTOCOL_D, (PROTOCOL.format("C"),)),
    # StandAlone shows no protocol, so the state is all that can be said ...
    ("standalone", "/dev/drbd0"): (
        NOT_READY,
        ("r0 is StandAlone, not Connected", "run drbdadm connect r0"),
    ),
    # ... the side that waits for it still shows it.
    ("standalone", "/dev/drbd1"): (NOT_PROTOCOL_D, (PROTOCOL.format("A"),)),
    ("never-up", "/dev/drbd0"): (NOT_READY, NOT_UP),
    ("down", "/dev/drbd0"): (NOT_READY, NOT_UP),
    # Nobody can tell.
    ("no-module", "/dev/drbd0"): (UNKNOWN, (NO_LIST, "run modprobe drbd")),
    ("no-module", "/tmp/drbd0"): (UNKNOWN, (NO_LIST, "run modprobe drbd")),
    ("protocol-A", "/tmp/drbd7"): (
        UNKNOWN,
        ("a DRBD device, but no resource of this host has it", "drbd.conf"),
    ),
    ("bad-configuration", "/dev/drbd0"): (
        UNKNOWN,
        (NO_LIST, "/etc/drbd.conf:39: Parse error", "; look at drbd.conf"),
    ),
    ("bad-configuration", "/dev/drbd7"): (
        UNKNOWN,
        (NO_LIST, "/etc/drbd.conf:39: Parse error", "; look at drbd.conf"),
    ),
    ("no-helper", "/dev/drbd0"): (UNKNOWN, (NO_LIST, "drbdadm-84: No such file")),
    ("no-drbdadm", "/dev/drbd0"): (UNKNOWN, ("install drbd-utils",)),
}


# Each with the tools of Debian, one of a kind with those of busybox too.
PROBES = [(*asked, "dash") for asked in VERDICTS] + [
    ("protocol-A", "/dev/drbd0", "busybox"),
    ("protocol-A", "/dev/vdisk", "busybox"),
    ("protocol-A", "/dev/ram2", "busybox"),
    ("protocol-A", "/tmp/image", "busybox"),
    ("standalone", "/dev/drbd0", "busybox"),
    ("protocol-C", "/dev/drbd0", "busybox"),
    ("bad-configuration", "/dev/drbd0", "busybox"),
    ("down", "/dev/drbd0", "busybox"),
]


@pytest.mark.parametrize(
    ("state", "device", "shell"), PROBES, ids=["-".join(asked) for asked in PROBES]
)
def test_the_probe(guest: Guest, state: str, device: str, shell: str) -> None:
    code, words = VERDICTS[state, device]
    record = guest.probes[state, device, shell]
    assert record.code == code, record
    assert record.out == ""
    assert record.err.startswith(f"block-drbd-probe: {device}: ")
    assert record.err.count("\n") == 1 and record.err.endswith("\n")
    for part in words:
        assert part in record.err, record


# ------------------------------------------------------------- the C core

NO_IOCTL = "the driver has no checkpoint ioctls: a module with protocol D is needed"
TAKEN = {  # by a driver without the ioctls: nothing was sent, nothing is safe
    "open": 0,
    "is_node": 0,
    "postsuspend": -errno.ENOTTY,
    "preresume": -errno.ENOTTY,
    "commit": 0,
}
SECONDARY = {"open": -errno.EMEDIUMTYPE}
GONE = {"open": -errno.ENOENT}
UNCONFIGURED = {"open": -errno.ENXIO}

ANSWERS: dict[tuple[str, str], tuple[dict[str, int], str]] = {
    ("protocol-A", "/dev/drbd0"): (TAKEN, NO_IOCTL),
    ("protocol-C", "/dev/drbd0"): (TAKEN, NO_IOCTL),
    ("standalone", "/dev/drbd0"): (TAKEN, NO_IOCTL),
    ("protocol-A", "/dev/ram2"): (TAKEN, NO_IOCTL),
    ("secondary", "/dev/drbd0"): (SECONDARY, "Secondary here, make it Primary"),
    ("protocol-A", "/dev/drbd1"): (SECONDARY, "Secondary here, make it Primary"),
    ("protocol-A", "/tmp/image"): (
        {"open": -errno.ENOTTY},
        "neither a block device nor a file of a replica's node",
    ),
    ("no-module", "/tmp/drbd0"): (UNCONFIGURED, "not configured, run drbdadm up"),
    ("protocol-A", "/tmp/drbd7"): (UNCONFIGURED, "not configured, run drbdadm up"),
    ("down", "/tmp/drbd0-kept"): (UNCONFIGURED, "not configured, run drbdadm up"),
    ("never-up", "/dev/drbd0"): (GONE, "No such file or directory: run drbdadm up"),
    ("protocol-A", "/dev/drbd7"): (GONE, "No such file or directory: run drbdadm up"),
    ("down", "/dev/drbd0"): (GONE, "No such file or directory: run drbdadm up"),
}


def calls_of(record: qemu.Record) -> dict[str, tuple[int, str]]:
    """What the C program said: for each call its result and the text."""
    said = {}
    for line in record.out.splitlines():
        call, rc, *text = line.split(" ", 2)
        said[call] = (int(rc), "".join(text))
    return said


@pytest.mark.parametrize(
    ("state", "device"), ANSWERS, ids=[f"{s}-{d}" for s, d in ANSWERS]
)
def test_the_c_core(guest: Guest, state: str, device: str) -> None:
    want, words = ANSWERS[state, device]
    record = guest.disks[state, device]
    assert record.code == 0 and record.err == "", record
    said = calls_of(record)
    assert {call: rc for call, (rc, _) in said.items()} == want
    texts = [text for _, text in said.values() if text]
    assert all(text.startswith(f"device {device}: ") for text in texts)
    assert words in texts[0]


@pytest.mark.fuse
@pytest.mark.parametrize(
    ("state", "device", "call", "error"),
    [
        ("protocol-A", "/dev/drbd0", "postsuspend", NotProtocolD),
        ("protocol-A", "/dev/drbd1", "open", DeviceNotReady),
        ("down", "/tmp/drbd0-kept", "open", DeviceNotReady),
    ],
    ids=["primary", "secondary", "unconfigured"],
)
def test_the_name_that_python_gives_it(
    guest: Guest,
    node: IoctlNode,
    state: str,
    device: str,
    call: str,
    error: type[Exception],
) -> None:
    """The real driver's errno, handed to DrbdDisk by a node on this machine."""
    rc, text = calls_of(guest.disks[state, device])[call]
    node.answer(OPEN if call == "open" else 20, rc)
    with pytest.raises(error) as caught, DrbdDisk(node.disk, name=device) as disk:
        disk.postsuspend()
    assert type(caught.value) is error
    assert caught.value.errno == -rc  # type: ignore[attr-defined]
    assert str(caught.value).endswith(text.replace(device, str(node.disk)))


# ------------------------------------------- DRBD itself, and the stand-ins


def test_it_is_the_drbd_that_was_meant(guest: Guest) -> None:
    release, version, *_ = guest.facts
    assert release.out.strip().endswith("-amd64")
    assert version.out.startswith("8.4."), version


def test_asking_changes_nothing(guest: Guest) -> None:
    """Neither state nor counters, by all that was asked in between."""
    before, after = guest.facts[-2:]
    assert before.command == after.command == "cat /proc/drbd"
    assert "cs:Connected ro:Primary/Secondary ds:UpToDate/UpToDate" in before.out
    assert before.out == after.out


UTILS = Utils84()
STAND_INS: dict[str, dict[str, Reply | str]] = {
    "protocol-A": UTILS.replies(State("A")),
    "protocol-C": UTILS.replies(State("C")),
    "standalone": UTILS.replies(State("A", cstate="StandAlone", peer="Unknown")),
    "down": UTILS.replies(State("A")) | UTILS.down(),
}
CALLS = [(state, call) for state, replies in STAND_INS.items() for call in replies]


@pytest.mark.parametrize(
    ("state", "call"), CALLS, ids=[f"{s}-{c}".replace(" ", "_") for s, c in CALLS]
)
def test_the_stand_ins_of_test_probe(guest: Guest, state: str, call: str) -> None:
    reply = STAND_INS[state][call]
    if isinstance(reply, str):
        reply = Reply(reply)
    record = guest.tools[state, call]
    assert record.out == reply.out
    assert record.err == reply.err
    assert record.code == reply.code


@pytest.mark.parametrize(
    ("state", "code", "complaint"),
    [
        ("no-module", 20, "BAD LUCK, equal hashes"),
        ("bad-configuration", 10, "/etc/drbd.conf:39: Parse error"),
        ("no-helper", 20, "failed to exec drbdadm-84"),
    ],
)
def test_the_tools_complaints(
    guest: Guest, state: str, code: int, complaint: str
) -> None:
    record = guest.tools[state, "drbdadm sh-dev all"]
    assert record.code == code and record.out == "", record
    assert complaint in record.err


def test_everything_that_was_asked_is_asserted(guest: Guest) -> None:
    assert set(guest.probes) == set(PROBES)
    assert set(guest.disks) == set(ANSWERS)
