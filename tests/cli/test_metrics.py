# SPDX-License-Identifier: LGPL-2.1-or-later
"""``remus-native metrics``: text, file and HTTP, of real processes."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from remus_native.cli import main
from remus_native.watching._metrics import FAMILIES
from support.host import Host
from support.paths import ROOT
from support.waiting import DEADLINE_S, wait_for

MONITORING = ROOT / "docs" / "monitoring"
LABELS = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
LINE = re.compile(r"(\w+)\{([^}]*)\} (\S+)")
# Debian's package of it is a whole monitoring system: not one of ours.
PROMTOOL = "promtool"

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: str) -> Samples:
    """Each sample once, below a TYPE of its own name."""
    found: Samples = {}
    kinds: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            assert name not in kinds
            kinds[name] = kind
        elif not line.startswith("#"):
            match = LINE.fullmatch(line)
            assert match, line
            base = re.sub(r"_(sum|count)$", "", match[1])
            assert match[1] in kinds or kinds[base] == "summary", line
            key = (match[1], frozenset(LABELS.findall(match[2])))
            assert key not in found, line
            found[key] = float(match[3])
    return found


def of(samples: Samples, name: str, **labels: str) -> float:
    (value,) = [
        value
        for (each, have), value in samples.items()
        if each == name and set(labels.items()) <= have
    ]
    return value


def told(host: Host, capsys: pytest.CaptureFixture[str]) -> Samples:
    capsys.readouterr()
    assert main(["metrics", str(host.file)]) == 0
    return parsed(capsys.readouterr().out)


def test_numbers_of_a_backup(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    samples = told(host, capsys)
    assert samples == {
        ("remus_running", frozenset({("resource", "guest0"), ("role", "none")})): 0.0
    }
    backup = host.start_backup()
    primary = host.open_primary()
    primary.pwrite("root", b"x" * 5000, 100)
    epoch = primary.postsuspend()
    primary.preresume(epoch, 30)
    samples = told(host, capsys)
    assert of(samples, "remus_running", role="backup", resource="guest0") == 1
    assert of(samples, "remus_state", role="backup", state="Protected") == 1
    assert sum(v for (name, _), v in samples.items() if name == "remus_state") == 1
    assert of(samples, "remus_connected", role="backup") == 1
    assert of(samples, "remus_prepared_checkpoint", role="backup") == epoch
    assert of(samples, "remus_lag_checkpoints", role="backup") == 1
    assert of(samples, "remus_replicated_bytes_total", kind="written") == 5000
    assert of(samples, "remus_checkpoint_age_seconds", role="backup") < DEADLINE_S
    assert of(samples, "remus_journal_size_bytes", role="backup") == 1 << 20
    backup.send_signal(signal.SIGSTOP)
    try:
        samples = told(host, capsys)
    finally:
        backup.send_signal(signal.SIGCONT)
    assert of(samples, "remus_running", role="backup") == 0 and len(samples) == 1


@pytest.mark.fuse
def test_numbers_of_a_primary(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    from support.host import start_primary

    host.start_backup()
    start_primary(host)
    assert main(["run", "--count", "5", "--interval", "5ms", str(host.file)]) == 0
    samples = told(host, capsys)
    assert of(samples, "remus_running", role="primary") == 1
    by_run = {"taken_by": "run"}
    assert of(samples, "remus_checkpoints_total", result="done", **by_run) == 5
    assert of(samples, "remus_pause_seconds_count", **by_run) == 5
    half = of(samples, "remus_pause_seconds", quantile="0.5", **by_run)
    assert 0 < half < DEADLINE_S
    assert of(samples, "remus_guest_waits", role="primary") == 0
    assert {name for name, _ in samples if not name.endswith(("_sum", "_count"))} == {
        family.name for family in FAMILIES
    }


def test_a_file_is_replaced_whole(
    host: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host.start_backup()
    file = tmp_path / "prom" / "remus.prom"
    words = ["metrics", "--textfile", str(file), str(host.file)]
    assert main(words) == 1
    assert "the metrics were not written" in capsys.readouterr().err
    file.parent.mkdir()
    file.write_text("old")
    assert main(words) == 0
    assert of(parsed(file.read_text()), "remus_running", role="backup") == 1
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert [path.name for path in file.parent.iterdir()] == ["remus.prom"]


def test_a_wrong_file_hides_no_other(
    host: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host.start_backup()
    folder = tmp_path / "etc"
    folder.mkdir()
    shutil.copy(host.file, folder)
    (folder / "wrong.toml").write_text("nane = 1\n")
    assert main(["metrics", "--all", "--directory", str(folder)]) == 2
    shown = capsys.readouterr()
    assert of(parsed(shown.out), "remus_running", role="backup") == 1
    assert "wrong.toml" in shown.err


def test_hostile_names_stay_in_their_quotes() -> None:
    from remus_native.watching._metrics import _escaped

    assert _escaped('a"b\\c\nd', quotes=True) == 'a\\"b\\\\c\\nd'


# ---- HTTP ------------------------------------------------------------------------


@pytest.fixture
def served(host: Host) -> Iterator[str]:
    pytest.importorskip("prometheus_client")
    with ExitStack() as stack:
        process = subprocess.Popen(
            [sys.executable, "-m", "remus_native", "metrics", "--listen",
             "127.0.0.1:0", str(host.file)],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        stack.callback(process.wait)
        stack.callback(process.kill)
        assert process.stderr is not None
        stack.callback(process.stderr.close)
        line = process.stderr.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found, line
        yield found[0]
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == 0


def get(address: str) -> tuple[int, str]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(address, timeout=DEADLINE_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_over_http(host: Host, served: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert get(f"{served}/healthz") == (503, "guest0: nothing runs here\n")
    host.start_backup()
    code, text = get(f"{served}/healthz")
    assert (code, text) == (503, "guest0 backup Inconsistent\n")
    host.open_primary()
    wait_for("health", lambda: get(f"{served}/healthz")[0] == 200)
    assert get(f"{served}/healthz")[1] == "guest0 backup Protected\n"
    code, text = get(f"{served}/metrics")
    assert code == 200
    # The library and our own text say the same of the same.
    ours = told(host, capsys)
    theirs = parsed(text)
    assert set(theirs) == set(ours)
    assert of(theirs, "remus_state", state="Protected") == 1
    assert get(f"{served}/else")[0] == 404


def test_who_says_nothing_is_in_nobodys_way(served: str) -> None:
    host, _, port = served.removeprefix("http://").rpartition(":")
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(socket.create_connection((host, int(port))))
        assert get(f"{served}/healthz")[0] == 503


def test_without_the_extra(
    host: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    assert main(["metrics", "--listen", "127.0.0.1:0", str(host.file)]) == 2
    assert "remus-native[metrics]" in capsys.readouterr().err
    assert main(["metrics", str(host.file)]) == 0  # text needs nothing


# ---- alert rules and dashboard ---------------------------------------------------


def named(expressions: str) -> set[str]:
    names = set(re.findall(r"\bremus_\w+", expressions))
    return {re.sub(r"_(sum|count)$", "", name) for name in names}


def test_rules_and_dashboard_use_metrics_that_are_there() -> None:
    known = {family.name for family in FAMILIES}
    rules = (MONITORING / "alerts.yml").read_text()
    assert rules.count("- alert: ") == 6
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    expressions = [
        target["expr"] for panel in dashboard["panels"] for target in panel["targets"]
    ]
    used = named(rules) | named("\n".join(expressions))
    assert used <= known, used - known
    page = (ROOT / "docs" / "operations.md").read_text()
    for alert in re.findall(r"- alert: (\w+)", rules):
        assert f"| {alert} |" in page


def test_promtool_takes_them(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    tool = shutil.which(PROMTOOL)
    if tool is None:
        pytest.skip("allowed: promtool is not installed (Debian's prometheus)")
    for words in (
        ["check", "rules", "alerts.yml"],
        ["test", "rules", "alerts_test.yml"],
    ):
        done = subprocess.run(
            [tool, *words], cwd=MONITORING, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    host.start_backup()
    capsys.readouterr()
    assert main(["metrics", str(host.file)]) == 0
    done = subprocess.run(
        [tool, "check", "metrics"], input=capsys.readouterr().out,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == "", done.stderr
