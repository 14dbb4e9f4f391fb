# SPDX-License-Identifier: LGPL-2.1-or-later
"""Running hotplug/block-drbd-probe as xl would."""

from __future__ import annotations

import os
import stat
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.drbd_tools import (
    READY,
    Fork83,
    Tools,
    Utils9,
    Utils84,
)
from support.paths import PROBE

# What the probe appends to PATH, so where a real drbdadm would be found.
SYSTEM_PATH = "/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"

CHANGES_NOTHING = {
    "sh-dev",
    "sh-resource",
    "cstate",
    "role",
    "dstate",
    "status",
    "show",
}


@dataclass(frozen=True)
class Verdict:
    code: int
    says: str


def probe(
    device: object,
    tools: Tools | None = None,
    *,
    shell: str | None = None,
    limit_s: int | None = None,
    cwd: Path | None = None,
) -> Verdict:
    """Run the probe as xl would and check what holds for every answer."""
    env = {"PATH": "/usr/bin:/bin"}
    if tools is not None:
        if tools.replies:
            tools.write()
        env["PATH"] = f"{tools.path}:{env['PATH']}"
    if limit_s is not None:
        env["REMUS_PROBE_LIMIT_S"] = str(limit_s)
    command = [str(PROBE), str(device)]
    started = time.monotonic()
    done = subprocess.run(
        [shell, *command] if shell else command,
        env=env,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert time.monotonic() - started < 10
    assert done.stdout == ""
    if done.returncode == READY:
        assert done.stderr == ""
    else:
        assert done.stderr.count("\n") == 1 and done.stderr.endswith("\n")
        name = "".join(c if c.isprintable() else " " for c in str(device))
        assert done.stderr.startswith(f"block-drbd-probe: {name}: ")
    if tools is not None:
        for call in tools.calls():
            # The verb, or the 8.3 way: the device, then the verb.
            verb = call[2] if call[1].startswith("/") else call[1]
            assert verb in CHANGES_NOTHING, call
    return Verdict(done.returncode, done.stderr)


World = Utils84 | Utils9 | Fork83
WORLDS = [
    pytest.param(Utils84(), id="utils-today-on-8.4"),
    pytest.param(Utils9(), id="utils-today-on-9"),
    pytest.param(Fork83(), id="fork-8.3"),
]
in_every_world = pytest.mark.parametrize("world", WORLDS)


def make_node(path: Path, major: int, minor: int) -> Path:
    try:
        os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(major, minor))
    except PermissionError:
        pytest.skip("making device nodes is not allowed here")
    return path
