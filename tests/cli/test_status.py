# SPDX-License-Identifier: LGPL-2.1-or-later
"""``remus-native status``: facts of real processes, one resource or all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from remus_native.cli import main
from support import schema
from support.host import Host, a_lost_primary, node, start_primary
from support.waiting import DEADLINE_S, wait_for


@pytest.fixture
def told(host: Host, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs status: the exit code and what it says, as the schema has it."""

    def run(*more: str, code: int | None = None) -> dict[str, Any]:
        capsys.readouterr()
        got = main(["status", "--json", *more, str(host.file)])
        assert code is None or got == code
        answer: dict[str, Any] = json.loads(capsys.readouterr().out)
        schema.check(answer, "status")
        return answer

    return run


def test_the_schema_would_find_a_fault(told: Any) -> None:
    answer = told(code=4)
    for fault in (
        {"here": "somewhere"},
        {"errors": None},
        {"more": 1},
        {"primary": {}},
    ):
        with pytest.raises(AssertionError):
            schema.check({**answer, **fault}, "status")
    del answer["here"]
    with pytest.raises(AssertionError):
        schema.check(answer, "status")


@pytest.mark.fuse
def test_facts_of_both_sides(
    host: Host, told: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    host.start_backup()
    primary = start_primary(host)
    answer = told(code=0)
    assert answer["here"] == "both" and answer["errors"] == {}
    for side, pid in (("primary", primary.pid), ("backup", None)):
        one = answer[side]
        assert pid in (None, one["pid"])
        assert one["version"] == "0.1.0" and one["link_s"] < DEADLINE_S
        assert one["started"] <= time.time()
        assert one["address"] == f"unix:{host.folder}/sock"
        # Nothing was written since: it is as new as can be.
        assert one["age_s"] < 5 and one["lag"]["epochs"] == 0
    assert answer["primary"]["mount"] == f"{host.folder}/p/mount"
    assert answer["primary"]["open_for_writing"] == []
    with node(host).open("r+b", buffering=0):
        writers = told(code=0)["primary"]["open_for_writing"]
        assert [(one["volume"], one["pid"]) for one in writers] == [
            ("root", os.getpid())
        ]
        assert main(["status", str(host.file)]) == 0
        shown = capsys.readouterr().out
    assert f"1 open for writing: {writers[0]['command']} (pid {os.getpid()})" in shown
    assert "lag " in shown and "newest checkpoint " in shown
    with node(host).open("rb", buffering=0):  # a reader is no writer
        assert told(code=0)["primary"]["open_for_writing"] == []


@pytest.mark.fuse
def test_a_loop_device_is_named(host: Host, told: Any) -> None:
    host.start_backup()
    start_primary(host)
    made = subprocess.run(
        ["losetup", "--find", "--show", node(host)], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if made.returncode:
        pytest.skip(f"allowed: no loop device to be had: {made.stderr.strip()}")
    device = made.stdout.strip()
    host.stack.callback(subprocess.run, ["losetup", "-d", device], check=False)
    writers = told()["primary"]["open_for_writing"]
    assert {"volume": "root", "pid": None, "command": Path(device).name} in writers


def test_what_the_backup_lacks(host: Host, told: Any) -> None:
    backup = host.start_backup()
    primary = host.open_primary()
    epoch = primary.postsuspend()
    primary.preresume(epoch, 30)
    answer = told("--side", "backup", code=0)
    # Prepared, and nobody has committed it.
    assert answer["backup"]["lag"]["epochs"] == 1
    assert answer["backup"]["lag"]["bytes"] > 0
    primary.commit(epoch)
    primary.close()
    wait_for("the end", lambda: not told()["backup"]["connected"])
    first = told()["backup"]["age_s"]
    wait_for("time", lambda: told()["backup"]["age_s"] >= first + 0.5)
    backup.kill()
    backup.wait()
    # The superblock knows it, a little older at the most.
    stopped = told(code=4)
    assert stopped["here"] == "backup" and not stopped["backup"]["running"]
    assert first <= stopped["backup"]["age_s"] < first + DEADLINE_S


def test_the_age_counts_from_the_first_write_that_no_checkpoint_has(
    host: Host, told: Any
) -> None:
    host.start_backup()
    primary = host.open_primary()
    primary.preresume(primary.postsuspend(), 30)  # the engine takes none from now on

    def age() -> float:
        return float(told("--side", "backup")["backup"]["age_s"])

    wait_for("quiet", lambda: age() < 0.5)
    primary.pwrite("root", b"x" * 4096, 0)
    wait_for("its age", lambda: age() >= 0.8)
    assert told("--side", "backup")["backup"]["open_bytes"] == 4096
    primary.preresume(primary.postsuspend(), 30)
    wait_for("quiet", lambda: age() < 0.5)
    assert primary.status().open_bytes == 0


def test_nothing_is_left_to_promote(host: Host, told: Any) -> None:
    backup = a_lost_primary(host)
    assert main(["promote", str(host.file)]) == 0
    answer = told("--side", "backup", code=0)
    assert answer["backup"]["state"] == "Promoted"
    assert answer["backup"]["age_s"] is None
    backup.kill()
    backup.wait()
    assert told("--side", "backup", code=4)["backup"]["age_s"] is None


def test_one_refused_side_does_not_end_it(
    host: Host, told: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    backup = a_lost_primary(host)
    backup.terminate()
    assert backup.wait(DEADLINE_S) == 0
    for file in (host.folder / "b" / "journal").iterdir():
        if file.name.startswith("segment"):
            file.unlink()
    (host.folder / "b" / "backup.state").write_bytes(b"\0" * 8192)
    host.open_primary(wait=False)
    answer = told(code=1)
    assert set(answer["errors"]) == {"backup"}
    assert main(["status", str(host.file)]) == 1
    shown = capsys.readouterr()
    assert "guest0 primary: not running" in shown.out
    assert "backup of guest0: " in shown.err


def test_a_side_that_does_not_answer(host: Host, told: Any) -> None:
    backup = host.start_backup()
    backup.send_signal(signal.SIGSTOP)
    try:
        answer = told(code=1)
    finally:
        backup.send_signal(signal.SIGCONT)
    assert set(answer["errors"]) == {"backup"} and answer["here"] == "nothing"


@pytest.fixture
def etc(host: Host, tmp_path: Path) -> Path:
    """A directory of two resource files, of which one's backup runs."""
    folder = tmp_path / "etc"
    folder.mkdir()
    (folder / "a.toml").write_text(host.file.read_text())
    other = host.file.read_text().replace("guest0", "guest1")
    (folder / "b.toml").write_text(other.replace(f"{host.folder}/", f"{folder}/"))
    (folder / "notes.txt").write_text("no resource file")
    return folder


def test_all(host: Host, etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["status", "--all", "--directory", str(etc)]
    assert main(words) == 4
    host.start_backup()
    assert main(words) == 3  # Inconsistent comes before what does not run
    shown = capsys.readouterr().out
    assert "guest0 backup: Inconsistent" in shown
    assert "guest1 backup: not running on this host" in shown
    assert main([*words, "--json"]) == 3
    answer = json.loads(capsys.readouterr().out)
    schema.check(answer, "status")
    assert [one["resource"] for one in answer["resources"]] == ["guest0", "guest1"]
    # A file that is wrong hides no other.
    (etc / "a0.toml").write_text("nane = 1\n")
    assert main([*words, "--json"]) == 2
    told = capsys.readouterr()
    assert len(json.loads(told.out)["resources"]) == 2 and "a0.toml" in told.err


def test_all_or_one(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["status"], ["status", "--all", str(host.file)], ["events"]):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 2
        assert "FILE" in capsys.readouterr().err
    assert main(["status", "--all", "--directory", str(host.folder / "none")]) == 4


def test_watch_goes_on_until_it_is_interrupted(host: Host) -> None:
    host.start_backup()
    watching = subprocess.Popen(
        [sys.executable, "-m", "remus_native", "status", "--json", str(host.file),
         "--watch", "50ms"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert watching.stdout is not None
        for _ in range(3):
            answer = json.loads(watching.stdout.readline())
            schema.check(answer, "status")
            assert answer["backup"]["state"] == "Inconsistent"
        watching.send_signal(signal.SIGINT)
        watching.communicate(timeout=DEADLINE_S)
        assert watching.returncode == 3  # that of the last look
    finally:
        watching.kill()
        watching.wait()
