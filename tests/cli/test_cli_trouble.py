# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command when things are not as they should be: lost files, stopped or
dying processes, people who give up, users other than root."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from remus_native.cli import main
from remus_native.control import call
from remus_native.shared.mounts import detach
from support.host import Host, a_checkpoint
from support.waiting import DEADLINE_S, wait_for

NOBODY = 65534


def test_a_lost_image_is_not_made_anew(host: Host) -> None:
    backup = host.start_backup()
    epoch = a_checkpoint(host)
    backup.terminate()
    assert backup.wait(DEADLINE_S) == 0
    image = host.folder / "b0"
    image.rename(host.folder / "aside")
    code, _, said = host.run("backup", "--create")
    assert code == 2
    assert "mount or restore it" in said
    assert not image.exists()
    (host.folder / "aside").rename(image)
    host.start_backup()
    assert main(["promote", "--checkpoint", str(epoch), str(host.file)]) == 0
    assert host.same()


def test_a_promote_that_was_given_up_is_not_carried_out(host: Host) -> None:
    backup = host.start_backup()
    a_checkpoint(host)
    backup.send_signal(signal.SIGSTOP)
    promote = host.start("promote")
    # It is connected, and its request is in the stopped process's socket.
    wait_for("its wait", lambda: _reads(promote.pid))
    promote.send_signal(signal.SIGINT)
    _, said = promote.communicate(timeout=DEADLINE_S)
    assert promote.returncode == 130
    assert "interrupted" in said
    backup.send_signal(signal.SIGCONT)
    # Requests are answered in order: after this one that one is through.
    assert main(["commit", str(host.file), "999999"]) == 1
    assert call(str(host.folder / "b"), "status")["state"] == "Standby"


def _reads(pid: int) -> bool:
    """Whether a thread of it waits for an answer on a socket."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            if "unix_stream" in (task / "wchan").read_text():
                return True
            if (task / "syscall").read_text().split()[0] in ("45", "0", "7"):
                return len(os.listdir(f"/proc/{pid}/fd")) > 3
    return False


def test_status_tells_which_side_does_not_answer(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    backup = host.start_backup()
    backup.send_signal(signal.SIGSTOP)
    try:
        assert main(["status", str(host.file)]) == 1
        shown = capsys.readouterr()
        assert "guest0 primary: not running" in shown.out
        assert "backup of guest0: its process does not answer" in shown.err
    finally:
        backup.send_signal(signal.SIGCONT)


def test_a_promoted_backup_that_was_restarted_tells_a_primary(host: Host) -> None:
    backup = host.start_backup()
    a_checkpoint(host)
    assert main(["promote", str(host.file)]) == 0
    backup.terminate()
    assert backup.wait(DEADLINE_S) == 0
    host.start_backup()
    primary = host.open_primary(wait=False)
    wait_for("the refusal", lambda: "promoted" in primary.status().reason)


@pytest.mark.fuse
def test_run_tells_that_its_primary_has_ended(host: Host) -> None:
    host.start_backup()
    mount = host.folder / "p" / "mount"
    host.stack.callback(detach, str(mount))
    primary = host.start("primary")
    wait_for("the primary", lambda: host.runs("p"))
    wait_for(
        "protection",
        lambda: call(str(host.folder / "p"), "status")["state"] == "Protected",
    )
    run = host.start("run", "--interval", "10ms")
    wait_for(
        "checkpoints",
        lambda: call(str(host.folder / "p"), "status")["committed_epoch"] > 5,
    )
    primary.terminate()
    _, said = run.communicate(timeout=DEADLINE_S)
    assert run.returncode == 4
    assert f"the primary that served {mount} has ended" in said
    assert "start it again (remus-native primary" in said


@pytest.mark.fuse
def test_another_user_reaches_its_node(host: Host) -> None:
    """As QEMU does where it does not run as root; the directories are ours."""
    host.file.write_text(
        host.file.read_text().replace(
            'mode = "0640"', f'mode = "0600"\nowner = {NOBODY}'
        )
    )
    # What pytest made is for root only; what the command makes is its own.
    for path in (host.folder, *host.folder.parents):
        if path == Path("/tmp") or path == Path("/"):
            break
        path.chmod(path.stat().st_mode | 0o011)
    host.start_backup()
    host.stack.callback(detach, str(host.folder / "p" / "mount"))
    host.start("primary")
    node = host.folder / "p" / "mount" / "root"
    wait_for("nodes", lambda: node.exists())
    script = (
        "import os, sys\n"
        "fd = os.open(sys.argv[1], os.O_RDWR)\n"
        "os.pwrite(fd, b'guest' * 100, 0)\n"
        "assert os.pread(fd, 5, 0) == b'guest'\n"
        "try: os.listdir(os.path.dirname(os.path.dirname(sys.argv[1])))\n"
        "except PermissionError: print('private')\n"
    )
    python = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else None
    done = subprocess.run(
        [python or sys.executable, "-c", script, str(node)],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd="/",
        check=False,
    )
    assert done.stdout == "private\n", done.stderr
    if shutil.which("qemu-io"):
        done = subprocess.run(
            ["qemu-io", "-f", "raw", "-n", "-c", "write -P 7 4096 4096",
             "-c", "read -P 7 4096 4096", str(node)],
            user=NOBODY, group=NOBODY, extra_groups=[], stdin=subprocess.DEVNULL,
            capture_output=True, text=True, cwd="/", check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    other = host.folder / "p" / "mount" / "data"
    assert other.stat().st_uid == 0
    with pytest.raises(OSError, match="not permitted"):
        (host.folder / "p" / "mount" / "new").touch()
    with pytest.raises(OSError, match="not permitted"):
        node.unlink()
