# SPDX-License-Identifier: LGPL-2.1-or-later
"""``remus-native doctor`` and ``--check``: real files, ports and processes."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from remus_native import doctor
from remus_native.cli import main
from support.host import Host, with_fence
from support.waiting import wait_for

NAMES = {
    "file", "key", "connect", "listen", "clock", "images", "space", "journal",
    "fence", "hardening", "kernel", "mount",
}  # fmt: skip


@pytest.fixture
def sick(host: Host, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the doctor: its exit code, and the findings of one name."""
    for name in ("b0", "b1"):
        with (host.folder / name).open("wb") as image:
            image.truncate(1 << 20)

    def run(name: str, *more: str) -> tuple[int, list[dict[str, Any]]]:
        capsys.readouterr()
        only = ["--only", name] if name != "file" else []
        code = main(["doctor", "--json", *only, *more, str(host.file)])
        answer = json.loads(capsys.readouterr().out)
        found = answer["findings"]
        assert all(one["level"] in ("ok", "warning", "error") for one in found)
        assert all(one["fix"] for one in found if one["level"] != "ok"), found
        assert code in (0, 1, 2)
        assert (code != 0) == (answer["counts"]["error"] > 0)
        return code, [one for one in found if one["name"] == name]

    return run


def edit(host: Host, old: str, new: str) -> None:
    text = host.file.read_text()
    assert old in text
    host.file.write_text(text.replace(old, new))


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def over_tcp(host: Host, port: int) -> None:
    edit(host, f'address = "unix:{host.folder}/sock"',
         f'address = "tcp:127.0.0.1:{port}"\n'
         'address_swapped = "tcp:127.0.0.1:1"\ntls = "off"')  # fmt: skip


def test_a_healthy_host(
    host: Host, sick: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    code, images = sick("images")
    assert code == 0
    assert {(one["side"], one["level"]) for one in images} == {
        ("primary", "ok"), ("backup", "ok"),
    }  # fmt: skip
    assert not (host.folder / "b").exists()  # it makes nothing
    assert main(["doctor", str(host.file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[1] for line in lines[:-1]} == NAMES
    assert lines[-1].startswith("guest0: ") and lines[-1].endswith(", 0 errors")


def test_a_process_that_runs_is_not_disturbed(host: Host, sick: Any) -> None:
    backup = host.start_backup()

    def listens() -> bool:  # a moment later than its process answers
        code, found = sick("connect", "--side", "primary")
        return code == 0 and found[0]["level"] == "ok"

    wait_for("the backup's socket", listens)
    assert sick("images", "--side", "backup")[0] == 0
    assert backup.poll() is None and host.runs("b")
    assert host.open_primary().status().state == "Protected"


def test_a_wrong_size(host: Host, sick: Any) -> None:
    os.truncate(host.folder / "b0", 4096)
    code, found = sick("images")
    assert code == 1
    (wrong,) = [one for one in found if one["level"] == "error"]
    assert wrong["side"] == "backup" and "4096 bytes" in wrong["found"]
    assert "replace the image" in wrong["fix"]


def test_a_wrong_file(host: Host, sick: Any) -> None:
    edit(host, 'name = "guest0"', 'nane = "guest0"')
    code, found = sick("file")
    assert code == 2 and len(found) == 2
    assert main(["doctor", str(host.file)]) == 2


def test_ports(host: Host, sick: Any) -> None:
    port = free_port()
    over_tcp(host, port)
    code, (found,) = sick("listen", "--side", "backup")
    assert code == 0 and "is free" in found["found"]
    # Refused: the host is there, and that is said.
    code, (found,) = sick("connect", "--side", "primary")
    assert (code, found["level"]) == (0, "warning")
    assert "nobody listens" in found["found"]
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        code, (found,) = sick("listen", "--side", "backup")
        assert code == 1 and "ss -ltnp" in found["fix"]
        code, (found,) = sick("connect", "--side", "primary")
        assert (code, found["level"]) == (0, "ok")


def test_an_address_that_is_not_ours(host: Host, sick: Any) -> None:
    over_tcp(host, 7)
    edit(host, "tcp:127.0.0.1:7", "tcp:192.0.2.1:7790")
    code, (found,) = sick("listen", "--side", "backup")
    assert code == 1 and 'listen = "tcp:' in found["fix"]
    edit(host, "tcp:192.0.2.1:7790", "tcp:no.such.host.invalid:7790")
    code, (found,) = sick("connect", "--side", "primary")
    assert code == 1 and "not resolved" in found["found"]


def test_loopback_between_two_hosts(host: Host, sick: Any) -> None:
    over_tcp(host, free_port())
    edit(host, "[primary]", "same_host = false\n[primary]")
    code, (found,) = sick("listen", "--side", "backup")
    assert (code, found["level"]) == (0, "warning")
    assert "only this host" in found["found"]


def test_a_key_that_is_not_there(host: Host, sick: Any) -> None:
    edit(host, "[primary]", f'tls = "psk"\npsk_file = "{host.folder}/k"\n[primary]')
    code, (found,) = sick("key")
    assert code == 1 and str(host.folder / "k") in found["found"]
    (host.folder / "k").write_text("guest0:" + "ab" * 32 + "\n")
    (host.folder / "k").chmod(0o600)
    code, (found,) = sick("key")
    assert code == 0 and "has a key for guest0" in found["found"]


def test_the_fence_is_run_on_demand_only(host: Host, sick: Any) -> None:
    notes = with_fence(host, "exit 0")
    code, (found,) = sick("fence")
    assert code == 0 and "not run" in found["found"] and not notes.exists()
    code, (found,) = sick("fence", "--run-fence")
    assert code == 0 and "succeeded" in found["found"]
    assert notes.read_text().count("REMUS_REASON=check\n") == 1
    (host.folder / "fence").write_text("#!/bin/sh\necho no power switch; exit 3\n")
    code, (found,) = sick("fence", "--run-fence")
    assert code == 1 and "no power switch" in found["found"]
    (host.folder / "fence").chmod(0o644)
    assert sick("fence")[0] == 1


def test_two_hosts_without_a_fence(host: Host, sick: Any) -> None:
    edit(host, "[primary]", "same_host = false\n[primary]")
    code, (found,) = sick("fence")
    assert (code, found["level"]) == (0, "warning")


def test_a_mount_point_in_use(host: Host, sick: Any) -> None:
    mount = host.folder / "p" / "mount"
    mount.mkdir(parents=True)
    code, found = sick("mount", "--side", "primary")
    assert code == 0 and "an empty directory" in found[-1]["found"]
    (mount / "disk.img").touch()
    code, found = sick("mount", "--side", "primary")
    assert code == 1 and "disk.img" in found[-1]["found"]
    (mount / "disk.img").unlink()
    (host.folder / "p").chmod(0o777)
    code, found = sick("mount", "--side", "primary")
    assert (code, found[0]["level"]) == (0, "warning")
    assert "chmod go-w" in found[0]["fix"]


def test_no_room_for_the_journal(host: Host, sick: Any) -> None:
    edit(host, 'journal = "1MiB"', 'journal = "900000GiB"')
    edit(host, 'segment = "64KiB"', 'segment = "15GiB"')
    # A file that asks for more than a segment can have is wrong before that.
    assert sick("file")[0] == 2
    edit(host, 'segment = "15GiB"', 'segment = "3GiB"')
    edit(host, '"900000GiB"', '"190000GiB"')
    code, found = sick("space", "--side", "backup")
    wrong = [one for one in found if one["level"] == "error"]
    assert code == 1 and "journal in" in wrong[0]["found"]


def test_the_journals_sync_is_timed(sick: Any) -> None:
    _, (found,) = sick("journal", "--side", "backup")
    assert "fdatasync of 8.0 KiB takes" in found["found"]


def test_a_map_that_is_on_a_disk(host: Host, sick: Any, tmp_path: Path) -> None:
    edit(host, "[primary]", f'run_dir = "{tmp_path}"\n[primary]')
    code, found = sick("space", "--side", "primary")
    assert code == 1
    assert any("not on a tmpfs" in one["found"] for one in found)


@pytest.mark.parametrize(
    ("command", "side"),
    [
        (["primary"], "primary"),
        (["backup", "--create"], "backup"),
        (["promote"], "backup"),
        (["run"], "primary"),
    ],
)
def test_check_of_a_command_does_nothing_else(
    host: Host,
    command: list[str],
    side: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = main([*command, "--check", str(host.file)])
    out = capsys.readouterr().out
    assert f"{side}: " in out and "guest0: " in out
    other = {"primary": "backup: ", "backup": "primary: "}[side]
    assert not any(line.split(maxsplit=2)[2].startswith(other)
                   for line in out.splitlines()[:-1])  # fmt: skip
    # The backup's images are not there, and are not made.
    assert code == (1 if side == "backup" else 0)
    assert not (host.folder / "b0").exists() and not (host.folder / "p").exists()


def test_a_check_that_fails_hides_no_other(
    host: Host,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(_: object) -> Any:
        raise RuntimeError("no such thing")

    first, *_, last = doctor.CHECKS
    monkeypatch.setattr(doctor, "CHECKS", (broken, first, last))
    main(["doctor", "--json", "--side", "primary", str(host.file)])
    found = json.loads(capsys.readouterr().out)["findings"]
    assert [one["name"] for one in found] == ["file", "broken", "key", "mount"]
    assert found[1]["level"] == "warning" and "no such thing" in found[1]["found"]
