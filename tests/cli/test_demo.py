# SPDX-License-Identifier: LGPL-2.1-or-later
"""The demo: that it proves, that it can fail, that nothing is left behind."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from remus_native import demo
from remus_native.demo._account import (
    Account,
    NotingGuest,
    Outcome,
    ProofFailed,
    create_database,
    insert_rows,
    payload,
    prove_database,
)

SEED = 7
DEADLINE_S = 100.0


def run_demo(folder: Path, *arguments: str) -> tuple[int, str]:
    """The command in a process of its own, with its temporary folder in ours."""
    process = start_demo(folder, *arguments)
    said, _ = process.communicate(timeout=DEADLINE_S)
    return process.returncode, said


def start_demo(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "remus_native", "demo", *arguments],
        env={**os.environ, "TMPDIR": str(folder)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def mounts() -> set[str]:
    return set(Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines())


def loops(folder: Path) -> list[str]:
    """Loop devices whose file is under ``folder``."""
    found = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        name = backing.read_text(encoding="utf-8").strip()
        if name.startswith(str(folder)):
            found.append(f"{backing.parts[3]}: {name}")
    return found


def processes(folder: Path) -> list[str]:
    """Processes that have a path under ``folder`` among their arguments."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if any(word.startswith(str(folder)) for word in words):
            found.append(" ".join(words))
    return found


@pytest.fixture
def folder(short_folder: Path) -> Iterator[Path]:
    """Where the demo makes its folder; afterwards nothing of it may be left."""
    before = mounts()
    yield short_folder
    assert list(short_folder.iterdir()) == []
    assert loops(short_folder) == [] and processes(short_folder) == []
    assert {line for line in mounts() - before if str(short_folder) in line} == set()


@pytest.fixture
def short_folder(tmp_path: Path) -> Iterator[Path]:
    """The socket's path has 107 bytes at most; pytest's folders can be long."""
    short = Path(tempfile.mkdtemp(prefix="remus-test-"))
    try:
        yield short
    finally:
        if not any(short.iterdir()):
            short.rmdir()


def check_account(said: str, *, fsck: str) -> None:
    for name in ("checkpoints taken", "pause median", "pause p99", "time to promote"):
        assert re.search(rf"^  {name}  +\d", said, flags=re.M), said
    for name in ("bytes replicated", "bytes coalesced"):
        assert re.search(rf"^  {name} +[\d.]+ \w*B$", said, flags=re.M), said
    assert f"fsck               {fsck}" in said
    assert "integrity_check    ok" in said
    noted = re.search(r"rows noted +(\d+) committed", said)
    proved = re.search(r"rows proved +(\d+), each", said)
    assert noted and proved and int(proved[1]) >= int(noted[1]) > 0
    # The checkpoint by its number, and the tag that the demo gave it.
    promoted = re.search(r"promoted to +(checkpoint \d+ \(tag \d+\))", said)
    assert promoted
    last = said.splitlines()[-1]
    assert last.startswith(f"PROVED: every row of {promoted[1]} survived ")
    assert f"(seed {SEED})" in said


# ---- the whole play ----------------------------------------------------------


@pytest.mark.fuse
def test_the_demo_on_a_disk_proves(folder: Path) -> None:
    if demo.missing():
        pytest.skip(f"allowed: needs {', '.join(demo.missing())}")
    code, said = run_demo(
        folder, "--seconds", "1.5", "--seed", str(SEED), "--size", "64MiB"
    )
    assert code == 0, said
    check_account(said, fsck="clean")


def test_the_demo_in_process_proves(folder: Path) -> None:
    code, said = run_demo(folder, "--seconds", "1", "--seed", str(SEED), "--in-process")
    assert code == 0, said
    check_account(said, fsck="not part of this play")
    assert "needs" not in said


def test_without_root_it_says_what_it_needs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from remus_native.cli import main

    monkeypatch.setattr(demo, "missing", lambda: ["root", "/dev/fuse"])
    monkeypatch.setattr(demo.tempfile, "tempdir", str(folder))
    code = main(["demo", "--seconds", "0.3", "--seed", str(SEED)])
    said = capsys.readouterr().out
    assert code == 0, said
    assert "The demo on a real disk needs root, /dev/fuse." in said
    assert "in-process" in said and "plain files" in said
    assert "PROVED" in said


def test_a_failed_proof_ends_non_zero(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from remus_native.cli import main

    monkeypatch.setattr(demo.tempfile, "tempdir", str(folder))
    # As if more rows had been committed before each checkpoint.
    monkeypatch.setattr(Account, "noted", lambda self, number: 10**9)
    code = main(["demo", "--seconds", "0.3", "--seed", str(SEED), "--in-process"])
    shown = capsys.readouterr()
    assert code == 1
    assert "1000000000 rows were committed before the checkpoint" in shown.err
    assert shown.out.splitlines()[-1] == f"FAILED (seed {SEED})"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "mode", [pytest.param([], marks=pytest.mark.fuse), ["--in-process"]]
)
def test_an_interrupted_demo_leaves_nothing(
    folder: Path, number: int, mode: list[str]
) -> None:
    if not mode and demo.missing():
        pytest.skip(f"allowed: needs {', '.join(demo.missing())}")
    process = start_demo(folder, "--seconds", "60", "--seed", str(SEED), *mode)
    try:
        end = time.monotonic() + DEADLINE_S
        # The rows come in: everything is mounted and running.
        while not rows_of(folder):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(number)
        said, _ = process.communicate(timeout=DEADLINE_S)
    finally:
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130, said
    assert "interrupted" in said


def rows_of(folder: Path) -> int:
    for path in folder.glob("remus-demo-*/account"):
        if path.stat().st_size:
            with Account(str(path)) as account:
                return account.rows
    return 0


def test_keep_keeps_the_folder(
    short_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import shutil

    from remus_native.cli import main

    monkeypatch.setattr(demo.tempfile, "tempdir", str(short_folder))
    arguments = ["demo", "--seconds", "0.2", "--seed", "1", "--in-process", "--keep"]
    assert main(arguments) == 0
    kept = re.search(r"^kept: (.*)$", capsys.readouterr().out, flags=re.M)
    assert kept and Path(kept[1]).parent == short_folder
    rows = prove_database(f"{kept[1]}/promoted/rows.db", 1, 0)
    assert rows > 0
    shutil.rmtree(kept[1])


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(demo.shutil, "which", lambda tool, path: None)
    lacks = demo.missing()
    assert lacks[0] == "root"
    assert "e2fsck (apt-get install e2fsprogs)" in lacks


# ---- the proof ---------------------------------------------------------------


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "rows.db"
    db = create_database(str(path))
    rows = 0
    while rows < 200:
        rows = insert_rows(db, SEED, rows)
    db.close()
    return path


def spoil(path: Path, statement: str) -> None:
    db = sqlite3.connect(path)
    db.execute(statement)
    db.commit()
    db.close()


def test_a_whole_database_is_proved(database: Path) -> None:
    assert prove_database(str(database), SEED, 200) >= 200


def test_too_few_rows(database: Path) -> None:
    with pytest.raises(ProofFailed, match="500 rows were committed"):
        prove_database(str(database), SEED, 500)


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("DELETE FROM rows WHERE id = 77", "row 77 is missing"),
        ("UPDATE rows SET payload = x'00' WHERE id = 50", "row 50 has other contents"),
        ("UPDATE rows SET checksum = '' WHERE id = 3", "row 3 has other contents"),
        (
            "UPDATE rows SET (payload, checksum) = "
            "(SELECT payload, checksum FROM rows WHERE id = 9) WHERE id = 8",
            "row 8 has other contents",
        ),
        ("DROP TABLE rows", "no such table"),
    ],
)
def test_a_spoiled_database(database: Path, statement: str, words: str) -> None:
    spoil(database, statement)
    with pytest.raises(ProofFailed, match=words):
        prove_database(str(database), SEED, 0)


def test_a_damaged_page(database: Path) -> None:
    data = bytearray(database.read_bytes())
    data[8192 : 8192 + 64] = bytes(64)
    database.write_bytes(data)
    with pytest.raises(ProofFailed, match=r"integrity_check|malformed"):
        prove_database(str(database), SEED, 0)


def test_rows_depend_on_seed_and_number_alone() -> None:
    assert payload(1, 1) == payload(1, 1)
    assert len({payload(s, n) for s in range(3) for n in range(100)}) == 300
    assert all(64 <= len(payload(1, n)) <= 574 for n in range(1000))


# ---- the account ---------------------------------------------------------------


def test_the_account_is_shared_and_survives(tmp_path: Path) -> None:
    path = str(tmp_path / "account")
    with Account(path) as ours, Account(path) as theirs:
        theirs.rows = 41
        guest = NotingGuest(ours)
        guest.tag(1)
        guest.suspend()
        theirs.rows = 45
        guest.resume()
        assert ours.rows == 45 and ours.noted(1) == 41
        assert ours.taken == 0 and ours.pauses_s() == []
        theirs.took(1, 2_000_000)
        assert ours.taken == 1 and ours.pauses_s() == [0.002]
    with Account(path) as later:
        assert later.noted(1) == 41


def test_the_account_is_bounded(tmp_path: Path) -> None:
    with Account(str(tmp_path / "account")) as account:
        account.note(65535)
        with pytest.raises(ProofFailed, match="room for 65536"):
            account.note(65536)


def test_the_account_can_be_read() -> None:
    text = Outcome(
        interval_s=0.025,
        killed_after_s=8.25,
        taken=3,
        pauses_s=[0.001, 0.002, 0.01],
        bytes_replicated=3 << 20,
        bytes_coalesced=512,
        checkpoint=4,
        tag=3,
        promote_s=0.0123,
        command_s=0.1,
        rows_noted=10,
        rows_proved=12,
        fsck="clean",
        integrity="ok",
    ).text()
    lines = text.splitlines()
    assert len({len(re.match(r"  .*?\S {2,}", line)[0]) for line in lines}) == 1  # type: ignore[index]
    assert "checkpoints taken  3, one every 25 ms" in text
    assert "pause p99          10 ms" in text
    assert "time to promote    12.3 ms (100 ms for the whole command, " in text
