# SPDX-License-Identifier: LGPL-2.1-or-later
"""A resource file in a folder and the processes that serve it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from remus_native import Primary
from remus_native.cli import main
from remus_native.control import NotRunning, call, is_running
from remus_native.resource_file import load
from support.pair import MIB
from support.waiting import DEADLINE_S, wait_for


class Host:
    """A resource file in a folder, and the processes that serve it."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.stack = stack
        self.file = folder / "guest0.toml"
        self.file.write_text(
            f'name = "guest0"\naddress = "unix:{folder}/sock"\n'
            f'[primary]\nstate = "{folder}/p"\n[backup]\nstate = "{folder}/b"\n'
            '[limits]\njournal = "1MiB"\nsegment = "64KiB"\n'
            f'[[volume]]\nname = "root"\nsize = "1MiB"\nmode = "0640"\n'
            f'primary = "{folder}/p0"\nbackup = "{folder}/b0"\n'
            f'[[volume]]\nname = "data"\nprimary = "{folder}/p1"\n'
            f'backup = "{folder}/b1"\n'
        )
        for name in ("p0", "p1"):
            with (folder / name).open("wb") as image:
                image.truncate(MIB)

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "remus_native", *arguments, str(self.file)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )
        self.stack.callback(end, process)
        return process

    def start_backup(self) -> subprocess.Popen[str]:
        process = self.start("backup", "--create")
        wait_for("backup", lambda: process.poll() is not None or self.runs("b"))
        return process

    def runs(self, side: str) -> bool:
        return is_running(str(self.folder / side))

    def open_primary(self, *, wait: bool = True) -> Primary:
        """The other side in this process, on the same file."""
        resource = load(self.file)
        os.makedirs(resource.primary.state, exist_ok=True)
        primary = Primary(
            resource.name,
            state_dir=resource.primary.state,
            volumes=resource.volumes_of("primary"),
            address=resource.address,
        )
        self.stack.callback(primary.close)
        if wait:
            primary.wait_protected(timeout_s=30)
        return primary

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """A command in a process of its own: code, output, errors."""
        process = self.start(*arguments[:1], *arguments[1:])
        out, err = process.communicate(timeout=DEADLINE_S)
        return process.returncode, out, err

    def commit(self, number: int) -> int:
        return main(["commit", str(self.file), str(number)])

    def same(self) -> bool:
        return all(
            (self.folder / f"p{i}").read_bytes() == (self.folder / f"b{i}").read_bytes()
            for i in range(2)
        )


def end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.kill()
    process.communicate()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with ExitStack() as stack:
        yield Host(tmp_path, stack)


def start_primary(host: Host) -> subprocess.Popen[str]:
    primary = host.start("primary")
    host.stack.callback(
        subprocess.run,
        ["umount", "-l", f"{host.folder}/p/mount"],
        capture_output=True,
        check=False,
    )
    wait_for(
        "Protected",
        lambda: (
            primary.poll() is not None
            or (
                host.runs("p")
                and call(str(host.folder / "p"), "status")["state"] == "Protected"
            )
        ),
    )
    assert primary.poll() is None, primary.communicate()
    return primary


def mounted(host: Host) -> bool:
    with open("/proc/self/mounts", encoding="utf-8") as mounts:
        return f" {host.folder}/p/mount " in mounts.read()


def with_fence(host: Host, script: str, timeout: str = "10s") -> Path:
    """The resource gets a fence command; where it notes how it was called."""
    command, notes = host.folder / "fence", host.folder / "notes"
    command.write_text(f'#!/bin/sh\nenv | grep ^REMUS_ >> "{notes}"\n{script}\n')
    command.chmod(0o755)
    fence = f'fence = ["{command}"]\n[primary]'
    text = host.file.read_text().replace("[primary]", fence)
    text = text.replace("[limits]", f'[limits]\nfence_timeout = "{timeout}"')
    host.file.write_text(text)
    return notes


def status(host: Host, side: str) -> dict:
    return call(str(host.folder / side), "status")


def is_now(host: Host, side: str, role: str, state: str) -> bool:
    try:
        now = status(host, side)
    except NotRunning:  # it switches roles just now
        return False
    return (now["role"], now["state"]) == (role, state)


def node(host: Host, side: str = "p") -> Path:
    return host.folder / side / "mount/root"


def mounts_of(host: Host, *sides: str) -> None:
    for side in sides:
        host.stack.callback(
            subprocess.run,
            ["umount", "-l", f"{host.folder}/{side}/mount"],
            capture_output=True,
            check=False,
        )


def a_checkpoint(host: Host) -> int:
    """One that a primary took and committed, before it ended."""
    primary = host.open_primary()
    primary.pwrite("root", b"x" * 1000, 0)
    epoch = primary.postsuspend()
    primary.preresume(epoch, 30)
    primary.commit(epoch)
    primary.close()
    return epoch


def a_lost_checkpoint(host: Host) -> int:
    """The same, and the backup knows of the end."""
    epoch = a_checkpoint(host)
    wait_for("its end", lambda: not status(host, "b")["connected"])
    return epoch


def a_lost_primary(host: Host) -> subprocess.Popen[str]:
    backup = host.start_backup()
    a_lost_checkpoint(host)
    return backup
