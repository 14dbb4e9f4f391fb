# SPDX-License-Identifier: LGPL-2.1-or-later
"""`remus-native run --qmp`: a real QEMU with its disk on a replica's node."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from remus_native import QmpGuest
from remus_native.control import call
from support.host import Host, mounted, start_primary
from support.waiting import DEADLINE_S, wait_for

QEMU = shutil.which("qemu-system-x86_64")


@pytest.mark.fuse
@pytest.mark.skipif(QEMU is None, reason="qemu-system-x86_64 is not installed")
def test_checkpoints_of_a_real_qemu(host: Host, tmp_path: Path) -> None:
    host.start_backup()
    start_primary(host)
    wait_for("mount", lambda: mounted(host))
    node = host.folder / "p/mount/root"
    qmp = tmp_path / "qmp"
    with subprocess.Popen(
        [str(QEMU), "-accel", "tcg", "-m", "16", "-nodefaults", "-display", "none",
         "-drive", f"file={node},format=raw,cache=none,if=virtio",
         "-qmp", f"unix:{qmp},server=on,wait=off"],
        stdin=subprocess.DEVNULL,
    ) as qemu:  # fmt: skip
        try:
            wait_for("QMP socket", qmp.exists)
            run = host.start(
                "run", "--interval", "20ms", "--count", "10", "--qmp", str(qmp)
            )
            out, err = run.communicate(timeout=DEADLINE_S)
            assert run.returncode == 0, err
            assert "checkpoints" in out
            with QmpGuest(qmp) as guest:
                assert guest.execute("query-status")["running"]
        finally:
            qemu.send_signal(signal.SIGTERM)
            try:
                qemu.wait(timeout=10)
            except subprocess.TimeoutExpired:
                qemu.kill()
    status = call(str(host.folder / "p"), "status")
    assert status["committed_epoch"] == status["prepared_epoch"]
    assert status["epochs"] >= 11
