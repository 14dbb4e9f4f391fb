# SPDX-License-Identifier: LGPL-2.1-or-later
"""hotplug/block-drbd-probe: what it is given, and tools that fail or hang."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from support.drbd_tools import (
    NOT_DRBD,
    NOT_PROTOCOL_D,
    READY,
    UNKNOWN,
    Reply,
    State,
    Tools,
    Utils84,
)
from support.paths import PROBE
from support.probe import SYSTEM_PATH, World, in_every_world, make_node, probe

# ------------------------------------------------------ without a drbdadm


real_drbdadm = shutil.which("drbdadm", path=SYSTEM_PATH)
without_drbdadm = pytest.mark.skipif(
    real_drbdadm is not None, reason=f"{real_drbdadm} would be found"
)


@without_drbdadm
@pytest.mark.parametrize("device", ["/dev/drbd8191", "/dev/drbd/by-res/x/0"])
def test_no_drbdadm(device: str) -> None:
    verdict = probe(device)
    assert verdict.code == UNKNOWN
    assert "looks like a DRBD device" in verdict.says
    assert "drbdadm is not installed" in verdict.says


@without_drbdadm
def test_no_drbdadm_but_plain_file(tmp_path: Path) -> None:
    image = tmp_path / "cdrom.iso"
    image.touch()
    assert probe(image).code == NOT_DRBD
    assert probe("cdrom.iso", cwd=tmp_path).code == NOT_DRBD
    assert probe(tmp_path).code == NOT_DRBD
    assert probe("/dev/null").code == NOT_DRBD


@pytest.mark.parametrize(
    ("name", "target", "code"),
    [
        ("drbd12", None, UNKNOWN),
        ("drbd12.img", None, NOT_DRBD),
        ("drbd", None, NOT_DRBD),
        ("disk", "/dev/drbd8191", UNKNOWN),
    ],
)
def test_looks_like_drbd(
    tools: Tools, tmp_path: Path, name: str, target: str | None, code: int
) -> None:
    """Without a list of devices, the name decides for what is no node."""
    tools["drbdadm sh-dev all"] = Utils84.bad_configuration
    if target is None:
        (tmp_path / name).touch()
    else:
        (tmp_path / name).symlink_to(target)
    verdict = probe(tmp_path / name, tools)
    assert verdict.code == code
    assert ("looks like a DRBD device" in verdict.says) == (code == UNKNOWN)


@without_drbdadm
def test_no_drbdadm_and_no_file(tmp_path: Path) -> None:
    verdict = probe(tmp_path / "none")
    assert verdict.code == UNKNOWN
    assert "no such file" in verdict.says


@pytest.mark.parametrize(
    "reply",
    [
        Reply(err="no resources defined!\n", code=1),
        Reply(
            err="Can not open '/etc/drbd.conf': No such file or directory\n",
            code=10,
        ),
    ],
)
def test_no_resources(tools: Tools, tmp_path: Path, reply: Reply) -> None:
    """drbd-utils is often installed where nobody uses it."""
    tools["drbdadm sh-dev all"] = reply
    image = tmp_path / "disk.img"
    image.touch()
    assert probe(image, tools).code == NOT_DRBD
    verdict = probe("/dev/drbd0", tools)
    assert verdict.code == UNKNOWN
    assert reply.err.strip() in verdict.says


@pytest.mark.parametrize("args", [[], [""], ["/dev/drbd0", "/dev/drbd1"]])
def test_usage(args: list[str]) -> None:
    done = subprocess.run(
        [str(PROBE), *args],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == UNKNOWN
    assert "usage: block-drbd-probe DEVICE" in done.stderr


def test_empty_environment(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.touch()
    done = subprocess.run([str(PROBE), str(image)], env={}, check=False)
    assert done.returncode == NOT_DRBD


# ----------------------------------------------------------- kinds of nodes


def test_other_block_device(tools: Tools, tmp_path: Path) -> None:
    # Neither a name nor a minor number like that of a DRBD device is enough.
    tools.update(Utils84().replies(State()))
    device = make_node(tmp_path / "drbd0", 7, 0)
    verdict = probe(device, tools)
    assert verdict.code == NOT_DRBD
    assert "of another kind" in verdict.says
    tools["drbdadm sh-dev all"] = Utils84.bad_configuration
    assert probe(device, tools).code == NOT_DRBD


def test_node_is_known_by_its_number(tools: Tools, tmp_path: Path) -> None:
    """A node by a name that no configuration has, as udev may make it."""
    listed = make_node(tmp_path / "listed", 147, 4000)
    other = make_node(tmp_path / "other", 147, 4001)
    same = make_node(tmp_path / "any name", 147, 4000)
    tools.update(Utils84().replies(State()))
    tools["drbdadm sh-dev all"] = f"{other}\n{listed}\n"
    tools["drbdadm sh-dev r0"] = f"{listed}\n"
    tools["drbdadm sh-dev r1"] = f"{other}\n"
    tools[f"drbdsetup {listed} show"] = Utils84().show(State())
    assert probe(same, tools).code == READY


def test_drbd_node_without_resource(tools: Tools, tmp_path: Path) -> None:
    # It is DRBD, the kernel says so; what it does, drbdadm does not know.
    tools.update(Utils84().replies(State()))
    verdict = probe(make_node(tmp_path / "disk", 147, 4002), tools)
    assert verdict.code == UNKNOWN
    assert "no resource" in verdict.says
    tools["drbdadm sh-dev all"] = Utils84.bad_configuration
    assert probe(tmp_path / "disk", tools).code == UNKNOWN


@in_every_world
def test_links(world: World, tools: Tools, tmp_path: Path) -> None:
    """/dev/drbd/by-res/r0/0 -> ../../../drbd0 and the like, spaces too."""
    device = tmp_path / "drbd of guest 1"
    device.touch()
    (tmp_path / "by-res" / "r 0").mkdir(parents=True)
    link = tmp_path / "by-res" / "r 0" / "0"
    link.symlink_to("../../drbd of guest 1")
    chain = tmp_path / "chain"
    chain.symlink_to(link)
    for call, reply in world.replies(State()).items():
        if isinstance(reply, str) and "sh-dev" in call:
            reply = reply.replace(world.device, str(device))
        tools[call.replace(world.device, str(device))] = reply
    for path in (device, link, chain):
        assert probe(path, tools).code == READY, path
    assert probe("by-res/r 0/0", tools, cwd=tmp_path).code == READY


def test_dangling_and_looping_links(tools: Tools, tmp_path: Path) -> None:
    tools.update(Utils84().replies(State()))
    dangling = tmp_path / "dangling"
    dangling.symlink_to("nowhere")
    assert probe(dangling, tools).code == NOT_DRBD
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    assert probe(loop, tools).code == UNKNOWN
    # A link to a node that is gone is still a link to a listed device.
    by_res = tmp_path / "by-res"
    by_res.symlink_to("/dev/drbd0")
    assert probe(by_res, tools).code == READY


# ------------------------------------------------------------ no open, no hang


class OpenWatch:
    """Counts the opens of a file, through inotify."""

    IN_OPEN = 0x20

    def __init__(self, path: Path) -> None:
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.fd = self.libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            pytest.skip("no inotify: " + os.strerror(ctypes.get_errno()))
        watch = self.libc.inotify_add_watch(self.fd, os.fsencode(path), self.IN_OPEN)
        assert watch >= 0, os.strerror(ctypes.get_errno())

    def opened(self) -> bool:
        try:
            return bool(os.read(self.fd, 4096))
        except BlockingIOError:
            return False

    def close(self) -> None:
        os.close(self.fd)


@pytest.mark.parametrize("kind", ["node", "file", "fifo"])
@pytest.mark.parametrize("by_link", [False, True])
def test_device_is_never_opened(
    tools: Tools, tmp_path: Path, kind: str, by_link: bool
) -> None:
    device = tmp_path / "drbd0"
    if kind == "node":
        make_node(device, 147, 4003)
    elif kind == "fifo":
        os.mkfifo(device)  # opening it for reading would also hang
    else:
        device.touch()
    path = device
    if by_link:
        path = tmp_path / "link"
        path.symlink_to(device)
    tools.update(Utils84().replies(State()))
    tools["drbdadm sh-dev all"] = tools["drbdadm sh-dev r0"] = f"{device}\n"
    with contextlib.closing(OpenWatch(device)) as watch:
        assert probe(path, tools).code == READY
        tools["drbdadm sh-dev all"] = "/dev/drbd4004\n"
        assert probe(path, tools).code in (NOT_DRBD, UNKNOWN)
        assert not watch.opened()
        if kind == "file":  # the watch does see what it watches for
            device.read_bytes()
            assert watch.opened()


@pytest.mark.parametrize(
    "hang",
    [
        pytest.param("exec sleep 60", id="waits"),
        pytest.param("trap '' TERM; sleep 60; sleep 60", id="ignores-term"),
    ],
)
def test_tool_that_hangs(tools: Tools, tmp_path: Path, hang: str) -> None:
    tools.script("drbdadm", hang + "\n")
    verdict = probe("/dev/drbd0", tools, limit_s=1)
    assert verdict.code == UNKNOWN
    assert "no answer within 1 s" in verdict.says


def test_slow_tools_share_one_limit(tools: Tools) -> None:
    """Each answer comes in time, all together do not."""
    tools.update(Utils84().replies(State()))
    tools.write()
    for tool in ("drbdadm", "drbdsetup"):
        body = (tools.path / tool).read_text()
        tools.script(tool, "sleep 0.4\n" + body)
    tools.replies.clear()  # keep what was written
    verdict = probe("/dev/drbd0", tools, limit_s=1)
    assert verdict.code == UNKNOWN
    assert "no answer within 1 s" in verdict.says


@pytest.mark.parametrize("shell", ["dash", "bash", "busybox"])
@in_every_world
def test_shells(world: World, tools: Tools, shell: str) -> None:
    """/bin/sh is another one on each distribution."""
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"{shell} is not installed")
    if shell == "busybox":  # takes the applet from the name it is called by
        link = tools.path.parent / "sh"
        link.symlink_to(path)
        path = str(link)
    tools.update(world.replies(State()))
    assert probe(world.device, tools, shell=path).code == READY
    tools.update(world.replies(State("A")))
    assert probe(world.device, tools, shell=path).code == NOT_PROTOCOL_D


def test_shellcheck() -> None:
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    for dialect in ("sh", "dash"):
        done = subprocess.run(
            [shellcheck, "-s", dialect, str(PROBE)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
