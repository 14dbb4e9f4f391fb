# SPDX-License-Identifier: LGPL-2.1-or-later
"""Calls that can't block keep the GIL; calls that can let others run.

Another thread waits for the GIL and counts each time it gets it. Without a
call that gives it up that is never, for the switch interval is made very long.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from remus_native._build import KEEP_GIL

SCRIPT = """
import os, sys, tempfile, threading, time
from remus_native import Backup, CheckpointDevices, Primary, ReplicaResource, Volume
from remus_native._binding import ffi, lib, sized

folder = tempfile.mkdtemp(dir=sys.argv[1])
volumes = {}
for side in ("p", "b"):
    with open(f"{folder}/{side}.img", "wb") as image:
        image.truncate(1 << 20)
    volumes[side] = [Volume("xvda", f"{folder}/{side}.img")]
for side in ("p", "b"):
    os.mkdir(f"{folder}/{side}")
backup = Backup("g", state_dir=f"{folder}/b", volumes=volumes["b"],
                journal_bytes=1 << 20, segment_bytes=65536)
backup.serve(f"unix:{folder}/s")
primary = Primary("g", state_dir=f"{folder}/p", volumes=volumes["p"],
                  address=f"unix:{folder}/s", idle_ms=3_600_000)
primary.wait_protected(60)
device = ReplicaResource(primary)
layer = CheckpointDevices([device])
layer.setup()
number = ffi.new("uint64_t *")
status = sized("status")
count = 0
stop = False
sys.setswitchinterval(30)

def others():
    global count
    while not stop:
        count += 1
        time.sleep(0)

raw = primary._raw

def cycle(postsuspend, preresume, commit):
    "Which of a checkpoint's calls gave the GIL up."
    given = set()
    for name, call in (("postsuspend", postsuspend), ("commit", commit)):
        before = count
        call()
        if count != before:
            given.add(name)
        if call is postsuspend:
            preresume()
    return given

def gives_up(call, times):
    for _ in range(times):
        before = count
        call()
        if count != before:
            return True
    return False

thread = threading.Thread(target=others)
thread.start()
while not count:
    time.sleep(0.001)
for name, call, times in (
    ("remus_version", lambda: lib.remus_version(), 100),
    ("remus_state_name", lambda: lib.remus_state_name(0), 100),
    ("remus_last_error", lambda: lib.remus_last_error(), 100),
    ("status", lambda: lib.remus_primary_status(raw, status), 100_000),
    ("flush", lambda: lib.remus_primary_flush(raw, 0), 100_000),
):
    print(f"{name}: {'given up' if gives_up(call, times) else 'kept'}")
for who, calls in {
    "a primary": (
        lambda: lib.remus_primary_postsuspend(raw, ffi.NULL, 0, number),
        lambda: primary.preresume(number[0], 60),
        lambda: lib.remus_primary_commit(raw, number[0]),
    ),
    "a group": (layer.postsuspend, lambda: layer.preresume(60), layer.commit),
}.items():
    given = set()
    for _ in range(20):
        given |= cycle(*calls)
    for name in ("postsuspend", "commit"):
        print(f"{name} of {who}: {'given up' if name in given else 'kept'}")
stop = True
thread.join()
layer.teardown()
primary.close()
backup.close()
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path_factory.mktemp("gil"))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(line.split(": ") for line in done.stdout.splitlines())


@pytest.mark.parametrize(
    "call",
    [
        "remus_version",
        "remus_state_name",
        "remus_last_error",
        "postsuspend of a primary",
        "commit of a primary",
        "postsuspend of a group",
        "commit of a group",
    ],
)
def test_what_can_not_block_keeps_the_gil(said, call):
    assert said[call] == "kept"


@pytest.mark.parametrize("call", ["status", "flush"])
def test_what_can_block_gives_it_up(said, call):
    assert said[call] == "given up"


def test_only_what_can_not_block_is_listed():
    """Each by hand: a new one must be thought about."""
    assert set(KEEP_GIL) == {
        "remus_backup_event_fd",
        "remus_backup_events",
        "remus_drbd_is_node",
        "remus_group_epochs",
        "remus_group_fd",
        "remus_group_preresume_begin",
        "remus_group_preresume_finish",
        "remus_group_results",
        "remus_last_error",
        "remus_primary_commit",
        "remus_primary_event_fd",
        "remus_primary_events",
        "remus_primary_postsuspend",
        "remus_primary_preresume_fd",
        "remus_py_commit_held",
        "remus_py_postsuspend_held",
        "remus_state_name",
        "remus_version",
    }
