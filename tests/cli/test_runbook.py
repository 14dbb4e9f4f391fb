# SPDX-License-Identifier: LGPL-2.1-or-later
"""The runbook of docs/operations.md: its commands are run as they stand there.

Two hosts are two names (UTS namespaces) and two folders; `systemctl` does
what the unit in docs says, `scp` copies from one folder to the other.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from remus_native import role_of
from remus_native.control import is_running
from remus_native.shared.mounts import detach, unguard
from support.keeping import Kept, kill
from support.pair import MIB
from support.paths import ROOT
from support.tls_pair import free_port
from support.waiting import DEADLINE_S, wait_for

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

PAGE = (ROOT / "docs" / "operations.md").read_text()
UNIT = (ROOT / "docs" / "remus@.service").read_text()
LINE = re.compile(r"(alpha|beta)# (.+)")
FILE = """
name = "guest0"
address = "tcp:127.0.0.1:{beta}"
address_swapped = "tcp:127.0.0.1:{alpha}"
tls = "psk"
psk_file = "/etc/remus/guest0.psk"
fence = "none"
run_dir = "/run/remus-native"
[primary]
host = "alpha"
state = "ALPHA/var/lib/remus/guest0"
mount = "ALPHA/run/remus/guest0"
[backup]
host = "beta"
state = "BETA/var/lib/remus/guest0"
mount = "BETA/run/remus/guest0"
[limits]
journal = "4MiB"
segment = "256KiB"
loss = "1s"
[[volume]]
name = "root"
size = "1MiB"
primary = "ALPHA/var/lib/images/guest0-root.img"
backup = "BETA/var/lib/images/guest0-root.img"
"""


def blocks(title: str) -> list[list[tuple[str, str]]]:
    """The commands of a section, block by block: host and words."""
    section = re.search(rf"^### {title}\n(.*?)(?=^##)", PAGE, re.M | re.S)
    assert section, title
    found = []
    for block in re.findall(r"```console\n(.*?)```", section[1], re.S):
        lines = [LINE.fullmatch(line) for line in block.splitlines()]
        assert all(lines), block
        found.append([(one[1], one[2]) for one in lines if one])
    assert found
    return found


class Lab:
    """Hosts alpha and beta, each below a folder of its own."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.stack = folder, stack
        self.units: dict[str, subprocess.Popen[bytes]] = {}
        self.jobs: list[subprocess.Popen[bytes]] = []
        stack.callback(self.end)
        text = FILE.format(alpha=free_port(), beta=free_port())
        key = f"guest0:{'5a' * 32}\n"
        for host in ("alpha", "beta"):
            for name in ("etc/remus", "var/lib/images", "run"):
                (self.root(host) / name).mkdir(parents=True)
            self.file(host).write_text(self.below(host, text))
            psk = self.root(host) / "etc/remus/guest0.psk"
            psk.write_text(key)
            psk.chmod(0o600)
            with self.image(host).open("wb") as image:
                image.truncate(MIB)
            mount = str(self.mount(host))
            stack.callback(unguard, mount)
            stack.callback(detach, mount)

    def root(self, host: str) -> Path:
        return self.folder / host

    def file(self, host: str) -> Path:
        return self.root(host) / "etc/remus/guest0.toml"

    def image(self, host: str) -> Path:
        return self.root(host) / "var/lib/images/guest0-root.img"

    def mount(self, host: str) -> Path:
        return self.root(host) / "run/remus/guest0"

    def state(self, host: str) -> Path:
        return self.root(host) / "var/lib/remus/guest0"

    def below(self, host: str, text: str) -> str:
        """Paths as they are on ``host``."""
        text = re.sub(r"(?<![\w/])/(etc|var|run)/", rf"{self.root(host)}/\1/", text)
        for name in ("alpha", "beta"):
            text = text.replace(name.upper(), str(self.root(name)))
        return text.replace("truncate -s 8G", "truncate -s 1M")

    # -- commands -----------------------------------------------------------------

    def words(self, host: str, command: str) -> list[str]:
        named = f'hostname {host} && exec "$@"'
        words = shlex.split(self.below(host, command))
        if Path(words[0]).name == "remus-native":
            words = [sys.executable, "-m", "remus_native", *words[1:]]
        return ["unshare", "--uts", "sh", "-c", named, "sh", *words]

    def start(self, host: str, command: str) -> subprocess.Popen[bytes]:
        log = (self.folder / f"{host}.log").open("ab")
        with log:
            return subprocess.Popen(
                self.words(host, command),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def do(self, host: str, command: str) -> None:
        words = command.split()
        if words[0] == "systemctl":
            self.systemctl(host, words[1])
        elif words[0] == "scp":
            for path in words[1:-1]:
                other, _, name = path.partition(":")
                target = self.below(host, words[-1])
                shutil.copy(self.below(other, name), target)
                if name.endswith(".toml"):  # a path of one host is the other's
                    text = Path(target, Path(name).name).read_text()
                    there, here = str(self.root(other)), str(self.root(host))
                    text = text.replace(f"{there}/etc", f"{here}/etc")
                    text = text.replace(f"{there}/run/remus-n", f"{here}/run/remus-n")
                    Path(target, Path(name).name).write_text(text)
        elif words[-1] == "&":
            self.jobs.append(self.start(host, command[:-1]))
        elif words[:2] == ["remus-native", "status"]:
            self.wait_protected(host, command)
        else:
            code, said = self.run(host, command)
            assert code == 0, (command, said)

    def wait_protected(self, host: str, command: str) -> None:
        end = time.monotonic() + DEADLINE_S
        while (told := self.run(host, command))[0]:
            assert time.monotonic() < end, f"{told[1]}\n{self.said()}"

    def run(self, host: str, command: str) -> tuple[int, str]:
        done = subprocess.run(
            self.words(host, command), capture_output=True, text=True, check=False,
            timeout=DEADLINE_S, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    def systemctl(self, host: str, verb: str) -> None:
        """As the unit has it; a reboot stops it, empties /run, and starts it."""
        if verb == "restart":
            self.systemctl(host, "stop")
            self.systemctl(host, "start")
        elif verb == "reboot":
            self.systemctl(host, "stop")
            unguard(str(self.mount(host)))
            shutil.rmtree(self.root(host) / "run")
            (self.root(host) / "run").mkdir()
            self.systemctl(host, "start")
        elif verb == "stop":
            if unit := self.units.pop(host, None):
                unit.send_signal(signal.SIGTERM)
                assert unit.wait(DEADLINE_S) == 0
        else:
            assert verb in ("start", "enable"), verb
            command = re.search(r"^ExecStart=(.*)$", UNIT, re.M)
            assert command
            unit = self.start(host, command[1].replace("%i", "guest0"))
            self.units[host] = unit
            state = str(self.state(host))
            wait_for(host, lambda: unit.poll() is not None or is_running(state))
            assert unit.poll() is None, self.said()

    def said(self) -> str:
        return "\n".join(log.read_text() for log in self.folder.glob("*.log"))

    def kill(self, host: str) -> None:
        """The host is gone, with all that was on it."""
        unit = self.units.pop(host)
        os.kill(unit.pid, signal.SIGSTOP)
        for pid in Kept.children(unit.pid):
            kill(pid)
        unit.kill()
        unit.wait(DEADLINE_S)
        detach(str(self.mount(host)))
        unguard(str(self.mount(host)))
        shutil.rmtree(self.root(host))
        for name in ("etc/remus", "var/lib/images", "run"):
            (self.root(host) / name).mkdir(parents=True)

    def end(self) -> None:
        for host in list(self.units):
            unit = self.units.pop(host)
            unit.send_signal(signal.SIGTERM)
            try:
                unit.wait(20)
            except subprocess.TimeoutExpired:
                for pid in Kept.children(unit.pid):
                    kill(pid)
                unit.kill()
                unit.wait()
        for job in self.jobs:
            if job.poll() is None:
                job.terminate()
                job.wait(DEADLINE_S)

    # -- the guest ---------------------------------------------------------------------

    def write(self, host: str, text: bytes) -> None:
        wait_for("its node", lambda: (self.mount(host) / "root").exists())
        with (self.mount(host) / "root").open("r+b", buffering=0) as disk:
            disk.write(text.ljust(4096, b"."))

    def holds(self, host: str, text: bytes) -> None:
        data = text.ljust(4096, b".")
        wait_for(
            f"{text!r} on {host}",
            lambda: self.image(host).read_bytes() == data.ljust(MIB, b"\0"),
        )

    def roles(self) -> tuple[str | None, str | None]:
        return role_of("guest0", self.state("alpha")), role_of(
            "guest0", self.state("beta")
        )


@pytest.fixture
def lab() -> Iterator[Lab]:
    with ExitStack() as stack:
        # In memory, as /run is.
        folder = tempfile.mkdtemp(prefix="remus-runbook-", dir="/dev/shm")
        stack.callback(shutil.rmtree, folder)
        made = Lab(Path(folder), stack)
        for host in ("beta", "alpha"):
            made.systemctl(host, "start")
        made.do("alpha", "remus-native status /etc/remus/guest0.toml")
        yield made


def follow(lab: Lab, *parts: list[tuple[str, str]]) -> None:
    for part in parts:
        for host, command in part:
            lab.do(host, command)


def test_upgrade(lab: Lab) -> None:
    (part,) = blocks("Upgrade")
    with (lab.mount("alpha") / "root").open("r+b", buffering=0) as disk:
        disk.write(b"before".ljust(4096, b"."))
        before = Kept.children(lab.units["alpha"].pid)
        follow(lab, part)
        wait_for(
            "another server", lambda: Kept.children(lab.units["alpha"].pid) != before
        )
        disk.seek(0)
        assert disk.read(6) == b"before"  # the guest's file was never closed
        disk.seek(0)
        disk.write(b"after".ljust(4096, b"."))
    lab.holds("beta", b"after")


def test_rebooting_the_backups_host(lab: Lab) -> None:
    with (lab.mount("alpha") / "root").open("r+b", buffering=0) as disk:
        follow(lab, *blocks("Rebooting the backup's host"))
        disk.write(b"on".ljust(4096, b"."))
    lab.holds("beta", b"on")


def test_rebooting_the_primarys_host(lab: Lab) -> None:
    lab.write("alpha", b"before")
    swap, reboot = blocks("Rebooting the primary's host")
    follow(lab, swap)
    assert lab.roles() == ("backup", "primary")
    lab.holds("beta", b"before")
    with (lab.mount("beta") / "root").open("r+b", buffering=0) as disk:
        follow(lab, reboot)
        disk.write(b"there".ljust(4096, b"."))
    lab.holds("alpha", b"there")
    lab.do("alpha", "remus-native swap /etc/remus/guest0.toml")
    lab.do("alpha", "remus-native status /etc/remus/guest0.toml")
    assert lab.roles() == ("primary", "backup")


def test_rebooting_both_hosts(lab: Lab) -> None:
    lab.write("alpha", b"before")
    follow(lab, *blocks("Rebooting both hosts"))
    assert lab.roles() == ("primary", "backup")
    lab.holds("beta", b"before")
    lab.write("alpha", b"after")
    lab.holds("beta", b"after")


def test_replacing_a_disk(lab: Lab) -> None:
    with (lab.mount("alpha") / "root").open("r+b", buffering=0) as disk:
        disk.write(b"kept".ljust(4096, b"."))
        follow(lab, *blocks("Replacing a disk"))
    lab.holds("beta", b"kept")


def test_replacing_a_host(lab: Lab) -> None:
    lab.write("alpha", b"kept")
    lab.holds("beta", b"kept")
    lab.kill("alpha")
    (part,) = blocks("Replacing a host")
    follow(lab, part)
    assert lab.roles() == ("backup", "primary")
    lab.holds("alpha", b"kept")
    lab.write("beta", b"goes on")
    lab.holds("alpha", b"goes on")


def test_rotating_a_key(lab: Lab) -> None:
    add, prove, drop = blocks("Rotating a key")
    with (lab.mount("alpha") / "root").open("r+b", buffering=0) as disk:
        for i, part in enumerate((add, prove, drop)):
            follow(lab, part)
            disk.seek(0)
            disk.write((b"step %d" % i).ljust(4096, b"."))
    lab.holds("beta", b"step 2")
    for host in ("alpha", "beta"):
        key = (lab.root(host) / "etc/remus/guest0.psk").read_text()
        assert re.fullmatch(r"guest0\+2:[0-9a-f]{64}\n", key)
    lab.systemctl("beta", "restart")
    lab.do("alpha", "remus-native status /etc/remus/guest0.toml")


def test_every_section_is_run() -> None:
    runbook = re.search(r"^## Runbook\n(.*?)(?=^## )", PAGE, re.M | re.S)
    assert runbook
    titles = re.findall(r"^### (.*)$", runbook[1], re.M)
    tests = {name for name in globals() if name.startswith("test_")}
    for title in titles:
        name = re.sub(r"[^a-z ]", "", title.lower()).replace(" ", "_")
        assert f"test_{name}" in tests, title
