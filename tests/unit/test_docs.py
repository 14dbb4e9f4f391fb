# SPDX-License-Identifier: LGPL-2.1-or-later
"""What README and docs say can be done, can be done."""

from __future__ import annotations

import asyncio
import re
import shlex
import shutil
import textwrap
from pathlib import Path

import pytest
import trio

import remus_native
from remus_native import (
    AsyncCheckpointDevices,
    CheckpointDevices,
    DeviceNotSupported,
    ReplicaResource,
    State,
    cli,
)
from remus_native._binding import lib, text
from remus_native.resource_file import parse
from support.paths import ROOT

PAGES = [
    ROOT / "README.md",
    ROOT / "benchmarks/README.md",
    *sorted(page for page in (ROOT / "docs").iterdir() if page.is_file()),
]


def test_the_readmes_python_runs(tmp_path, monkeypatch):
    code = re.search(r"```python\n(.*?)```", PAGES[0].read_text(), re.DOTALL)
    assert code
    monkeypatch.chdir(tmp_path)
    for side in "pb":
        Path(f"{side}.state").mkdir()
        Path(f"{side}.img").write_bytes(bytes(1 << 20))
    names: dict[str, object] = {}
    try:
        exec(code[1].replace("/run/guest0.sock", f"{tmp_path}/sock"), names)
    finally:
        for name in ("primary", "backup"):
            if name in names:
                names[name].close()  # type: ignore[attr-defined]
    assert Path("b.img").read_bytes()[4096:4101] == b"hello"


def test_the_device_layers_python_runs(make_pair, capsys):
    page = (ROOT / "docs" / "device-layer.md").read_text()
    first, kinds, loops, other = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    pair = make_pair()
    exec(first, {"primary": pair.primary})
    assert int(capsys.readouterr().out) > 0
    names = dict(vars(remus_native))
    here = kinds.replace("/etc/xen/scripts", str(ROOT / "hotplug"))
    exec(here.replace("/dev/drbd1", "/dev/null"), names)
    with pytest.raises(DeviceNotSupported, match=r"drbd: .*plain: .*not replicated"):
        names["layer"].setup()
    names = {
        "devices": [ReplicaResource(pair.primary)],
        "AsyncCheckpointDevices": AsyncCheckpointDevices,
        "CheckpointDevices": CheckpointDevices,
        "trio": trio,
    }
    body = "async def main(devices):\n" + textwrap.indent(loops, "    ")
    exec(body, names)
    asyncio.run(names["main"](names["devices"]))  # type: ignore[operator]
    start, wait = other.split("...\n")
    exec(start + wait, names)
    with names["layer"] as layer:  # type: ignore[attr-defined]
        layer.postsuspend()
        trio.run(names["preresume"], layer, 20)
        layer.commit()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_is_one(page):
    """Each `remus-native ...` that a page shows is accepted by the parser."""
    text = page.read_text()
    shown = re.findall(r"^ *(remus-native [^\n#`]*)", text, re.MULTILINE)
    shown += re.findall(r"`(remus-native [^`]*)`", text)
    for command in shown:
        words = shlex.split(re.sub(r"  .*|\.$", "", command))[1:]
        if not words or words[0] == "...":
            continue
        if any(word == "FILE" or word.endswith(".toml") for word in words):
            cli._parser().parse_args(words)
        else:
            with pytest.raises(SystemExit) as caught:
                cli._parser().parse_args([words[0], "--help"])
            assert caught.value.code == 0, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target
    for name in re.findall(r"`((?:csrc|tests|docs|benchmarks)/[\w./]+)`",
                           page.read_text()):  # fmt: skip
        assert (ROOT / name).exists() or "*" in name, name


def test_every_state_is_explained():
    page = (ROOT / "docs" / "operations.md").read_text()
    table = set(re.findall(r"^\| (\w+) \| (?:primary|backup|both) \|", page, re.M))
    assert table == {state.value for state in State}


def diagrams():
    """The arrows of the two state diagrams: the primary's, the backup's."""
    page = (ROOT / "docs" / "operations.md").read_text()
    blocks = re.findall(r"```mermaid\nstateDiagram-v2\n(.*?)```", page, re.DOTALL)
    arrow = re.compile(r" {4}(\S+) --> (\w+|\[\*\])(: [\w ,-]+)?")
    told = []
    for block in blocks:
        arrows = [arrow.fullmatch(line) for line in block.splitlines()]
        assert all(arrows), block
        told.append([(found[1], found[2]) for found in arrows if found])
    return told


@pytest.mark.parametrize("role", ["primary", "backup"])
def test_the_diagram_shows_what_follows_a_state(role):
    arrows = diagrams()[["primary", "backup"].index(role)]
    assert len(arrows) == len(set(arrows))
    names = [state.value for state in State]
    number = {text(lib.remus_state_name(i)): i for i in range(len(names))}
    assert set(number) == set(names)
    side = lib.REMUS_ROLE_PRIMARY if role == "primary" else lib.REMUS_ROLE_BACKUP
    follow = {
        (source, target)
        for source in names
        for target in names
        if lib.remus_state_follows(side, number[source], number[target])
    }
    assert {pair for pair in arrows if "[*]" not in pair} == follow


def test_the_file_in_readme_remus_is_complete():
    """As an administrator copies it: a failover finds its disk and may open it."""
    page = (ROOT / "docs" / "README.remus").read_text()
    shown = re.search(
        r'^    name = "guest0"\n(?:    .*\n|\n)*?(?=\w)', page, re.MULTILINE
    )
    assert shown
    resource = parse(textwrap.dedent(shown[0]))
    assert resource.auto_promote and resource.backup.serves
    assert resource.backup.mount == resource.primary.mount
    assert resource.swapped().swapped() == resource
    disk = re.search(r"target=([\w/.-]+)", page)
    assert disk and disk[1] == f"{resource.primary.mount}/{resource.volumes[0].name}"
    names = re.findall(r"/etc/remus/[\w.]+psk", page)
    assert set(names) == {resource.psk_file}


def test_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make ([a-z-]+)", PAGES[0].read_text()):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


#: On every Debian, or looked for by tests that don't need it.
ALWAYS = {
    "apt-get",
    "ccache",
    "gcc",
    "pkg-config",
    "dd",
    "dpkg-deb",
    "make",
    "drbdadm",
    "sh",
    "kill",
}


def test_each_command_that_tests_run_is_among_the_packages():
    """On a bare Debian `make setup` brings all of them, so that nothing is skipped."""
    makefile = (ROOT / "Makefile").read_text()
    known = {pair.split(":")[0] for pair in re.findall(r"[\w.-]+:[\w.-]+", makefile)}
    sources = "".join(
        path.read_text()
        for folder in ("tests", "benchmarks", "remus_native/demo")
        for path in (ROOT / folder).rglob("*.py")
    )
    used = set(re.findall(r'shutil\.which\("([\w.-]+)"\)', sources))
    started = r'(?:subprocess\.\w+|Popen|run|quietly)\(\s*\[?\s*"([a-z][\w.-]+)",'
    used |= set(re.findall(started, sources))
    used &= {name for name in used if shutil.which(name)} | known
    assert {"ip", "losetup", "mkfs.ext4", "psktool"} <= used
    assert used <= known | ALWAYS


def test_the_unit_runs_commands_that_are_there():
    """(`systemd-analyze verify` finds nothing wrong with it, where it is.)"""
    unit = (ROOT / "docs" / "remus@.service").read_text(encoding="utf-8")
    commands = re.findall(r"^Exec\w+=(.+)$", unit, re.M)
    assert [shlex.split(line)[1] for line in commands] == ["up", "reload"]
    for line in commands:
        words = shlex.split(line)[1:]
        assert cli._parser().parse_args(words).file == "/etc/remus/%i.toml"
