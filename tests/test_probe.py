# SPDX-License-Identifier: LGPL-2.1-or-later
"""hotplug/block-drbd-probe: each exit code, with the tools of three worlds.

`drbdadm` and `drbdsetup` are stand-ins that print what the real ones print:

* drbd-utils 9.22 on the 8.4 driver: recorded, and compared with the real ones
  in a virtual machine (test_vm.py);
* drbd-utils 9.22 on the 9 driver: shape taken from the source of drbd-utils;
* the 8.3 fork that has protocol D: shape taken from its source, messages of
  drbdadm recorded from the 8.3 tools that drbd-utils 9.22 carries.

A stand-in knows only the calls it was given. To any other it answers like the
real tools: usage on stdout, exit 20. Every call is written down, and every run
checks that only calls that change nothing were made.

The remus-native disks of these tests are files on a real FUSE mount
(c/fuse_static.c).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest

HERE = Path(__file__).resolve().parent
PROBE = HERE.parent / "hotplug" / "block-drbd-probe"

READY, NOT_DRBD, UNKNOWN, NOT_PROTOCOL_D, NOT_READY = range(5)

# What the probe appends to PATH, so where a real drbdadm would be found.
SYSTEM_PATH = "/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"

CHANGES_NOTHING = {"sh-dev", "sh-resource", "cstate", "role", "status", "show"}


# ---------------------------------------------------------------- stand-ins


@dataclass
class Reply:
    out: str = ""
    code: int = 0
    err: str = ""


@dataclass
class Tools:
    """drbdadm and drbdsetup in a directory of their own."""

    path: Path
    replies: dict[str, Reply] = field(default_factory=dict)

    def __setitem__(self, call: str, reply: Reply | str) -> None:
        self.replies[call] = Reply(reply) if isinstance(reply, str) else reply

    def update(self, replies: Mapping[str, Reply | str]) -> None:
        for call, reply in replies.items():
            self[call] = reply

    def write(self) -> None:
        log = shlex.quote(str(self.log))
        for tool in ("drbdadm", "drbdsetup"):
            cases = []
            for call, reply in self.replies.items():
                name, _, args = call.partition(" ")
                if name == tool:
                    cases.append(
                        f"{shlex.quote(args)})\n"
                        f"printf %s {shlex.quote(reply.out)}\n"
                        f"printf %s {shlex.quote(reply.err)} >&2\n"
                        f"exit {reply.code} ;;\n"
                    )
            self.script(
                tool,
                f"printf '%s\\t' {tool} \"$@\" >>{log}\necho >>{log}\n"
                f'case "$*" in\n{"".join(cases)}esac\n'
                f'echo "USAGE: {tool} COMMAND {{all|RESOURCE...}}"\n'
                "exit 20\n",
            )

    def script(self, tool: str, body: str) -> None:
        self.path.mkdir(exist_ok=True)
        file = self.path / tool
        file.write_text("#!/bin/sh\n" + body)
        file.chmod(0o755)

    @property
    def log(self) -> Path:
        return self.path / "calls"

    def calls(self) -> list[list[str]]:
        """Every call so far, as a list of words."""
        if not self.log.exists():
            return []
        lines = self.log.read_text().splitlines()
        return [line.split("\t")[:-1] for line in lines]


@pytest.fixture
def tools(tmp_path: Path) -> Tools:
    return Tools(tmp_path / "tools")


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


# ---------------------------------------------- what the tools of each print


@dataclass(frozen=True)
class State:
    protocol: str = "D"
    cstate: str = "Connected"  # in the words of 8.4
    own: str = "Primary"
    peer: str = "Secondary"


class Utils84:
    """drbd-utils of today on the 8.4 driver (recorded)."""

    device = "/dev/drbd0"

    def replies(self, s: State) -> dict[str, Reply | str]:
        return {
            "drbdadm sh-dev all": "/dev/drbd0\n/dev/drbd1\n",
            "drbdadm sh-resource all": "r0\nr1\n",
            "drbdadm sh-dev r0": "/dev/drbd0\n",
            "drbdadm sh-dev r1": "/dev/drbd1\n",
            "drbdadm cstate r0": s.cstate + "\n",
            "drbdadm role r0": f"{s.own}/{s.peer}\n",
            "drbdsetup show r0": self.show(s),
            "drbdsetup /dev/drbd0 show": self.show(s),
            "drbdsetup status r0": self.status(s),
        }

    def status(self, s: State) -> str:
        peer = f"  peer role:{s.peer}\n    replication:Established peer-disk:UpToDate\n"
        if s.cstate == "StandAlone":
            peer = ""
        return f"r0 role:{s.own}\n  disk:UpToDate\n{peer}\n"

    def show(self, s: State) -> str:
        # C is the default, and defaults are left out. A disconnected
        # resource has no net section, nor a peer.
        line = f"        protocol        \t{s.protocol};\n"
        net = f"    net {{\n{line if s.protocol != 'C' else ''}    }}\n"
        remote = (
            "    _remote_host {\n        address\t\t\tipv4 127.0.0.1:7790;\n    }\n"
        )
        address = "        address\t\t\tipv4 127.0.0.1:7789;\n"
        if s.cstate == "StandAlone":
            net = remote = address = ""
        return (
            "resource r0 {\n"
            "    options {\n"
            "    }\n"
            f"{net}{remote}"
            "    _this_host {\n"
            f"{address}"
            "        volume 0 {\n"
            "            device\t\t\tminor 0;\n"
            '            disk\t\t\t"/dev/ram0";\n'
            "            meta-disk\t\t\tinternal;\n"
            "            disk {\n"
            "            }\n"
            "        }\n"
            "    }\n"
            "}\n"
        )

    def down(self) -> dict[str, Reply | str]:
        def failure(device: str, closing: str = "") -> Reply:
            return Reply(
                err=f"{device}: Failure: (127) Device minor not allocated\n"
                f"additional info from kernel:\nunknown minor\n{closing}",
                code=10,
            )

        return {
            f"drbdadm {verb} r0": failure(
                "0",
                f"Command 'drbdsetup-84 {verb} 0' terminated with exit code 10\n",
            )
            for verb in ("cstate", "role")
        } | {
            "drbdsetup show r0": Reply(
                err="received netlink error reply: No such device\n", code=20
            ),
            "drbdsetup /dev/drbd0 show": failure("/dev/drbd0"),
            "drbdsetup status r0": Reply(err="r0: No such resource\n", code=10),
        }

    # What a host with kmod and without the module adds comes first.
    bad_configuration = Reply(
        err="modinfo: ERROR: Module drbd not found.\nBAD LUCK, equal hashes\n",
        code=20,
    )
    no_module = Reply(
        err="Could not stat /proc/drbd: No such file or directory\n"
        "Make sure that the DRBD kernel module is installed and can be"
        " loaded!\n"
        "Command 'drbdsetup-84 cstate 0' terminated with exit code 20\n",
        code=20,
    )


class Utils9:
    """drbd-utils of today on the 9 driver (from its source)."""

    device = "/dev/drbd0"
    connection: ClassVar = {"WFConnection": "Connecting"}

    def replies(self, s: State) -> dict[str, Reply | str]:
        cstate = self.connection.get(s.cstate, s.cstate)
        replication = "Established"
        if cstate == "SyncSource":
            cstate, replication = "Connected", cstate
        if cstate == "Connected":
            peer = (
                f"  peer role:{s.peer}\n"
                f"    replication:{replication} peer-disk:UpToDate\n"
            )
        else:
            peer = f"  peer connection:{cstate}\n"
        return {
            "drbdadm sh-dev all": "/dev/drbd0\n/dev/drbd1\n",
            "drbdadm sh-resource all": "r0\nr1\n",
            "drbdadm sh-dev r0": "/dev/drbd0\n",
            "drbdadm sh-dev r1": "/dev/drbd1\n",
            "drbdadm cstate r0": cstate + "\n",
            "drbdadm role r0": s.own + "\n",
            "drbdsetup show r0": self.show([s.protocol]),
            # Not the name of a resource: nothing to show, and no error.
            "drbdsetup /dev/drbd0 show": "",
            "drbdsetup status r0": (f"r0 role:{s.own}\n  disk:UpToDate\n{peer}\n"),
        }

    def show(self, protocols: list[str]) -> str:
        connections = "".join(
            "    connection {\n"
            f"        _peer_node_id {n};\n"
            "        path {\n"
            "            _this_host ipv4 127.0.0.1:7789;\n"
            f"            _remote_host ipv4 127.0.0.1:779{n};\n"
            "        }\n"
            "        net {\n"
            + (f"            protocol        \t{p};\n" if p != "C" else "")
            + f'            _name           \t"peer{n}";\n'
            "        }\n"
            "    }\n"
            for n, p in enumerate(protocols, 1)
        )
        return (
            'resource "r0" {\n'
            "    _this_host {\n"
            "        node-id\t\t\t0;\n"
            "        volume 0 {\n"
            "            device\t\t\tminor 0;\n"
            '            disk\t\t\t"/dev/ram0";\n'
            "            meta-disk\t\t\tinternal;\n"
            "        }\n"
            "    }\n"
            f"{connections}"
            "}\n\n"
        )

    def down(self) -> dict[str, Reply | str]:
        return {
            "drbdadm cstate r0": Reply(
                err="r0: No such connection\n"
                "Command 'drbdsetup cstate r0 1' terminated with exit code"
                " 10\n",
                code=10,
            ),
            "drbdadm role r0": Reply(err="r0: Unknown resource\n", code=10),
            "drbdsetup show r0": "# No currently configured DRBD found.\n",
            "drbdsetup status r0": Reply(err="r0: No such resource\n", code=10),
        }

    bad_configuration = Reply(
        err="sh: 1: modinfo: not found\n"
        "drbd.conf:1: Parse error: 'TK_STRING' expected,\n"
        "\tbut got '{' (TK 123)\n",
        code=10,
    )
    no_module = Reply(
        err="sh: 1: modinfo: not found\n"
        "Failed to modprobe drbd (No such file or directory)\n"
        "Command 'drbdsetup cstate r0 1' terminated with exit code 20\n",
        code=20,
    )


class Fork83:
    """The 8.3 fork: the device comes first, and is called as minor 1."""

    device = "/dev/drbd1"

    def replies(self, s: State) -> dict[str, Reply | str]:
        return {
            "drbdadm sh-dev all": "/dev/drbd1\n",
            "drbdadm sh-resource all": "r0\n",
            "drbdadm sh-dev r0": "/dev/drbd1\n",
            "drbdadm cstate r0": s.cstate + "\n",
            "drbdadm role r0": f"{s.own}/{s.peer}\n",
            "drbdsetup /dev/drbd1 show": self.show(s),
        }

    def show(self, s: State) -> str:
        net = (
            "net {\n"
            "\ttimeout         \t60 _is_default; # 1/10 seconds\n"
            "\tping-timeout    \t20; # 1/10 seconds\n"
            "\tallow-two-primaries;\n"
            "}\n"
        )
        protocol = f"protocol {s.protocol};\n"
        address = "\taddress\t\t\tipv4 127.0.0.1:7789;\n"
        remote = "_remote_host {\n\taddress\t\t\tipv4 127.0.0.1:7790;\n}\n"
        if s.cstate == "StandAlone":
            net = protocol = address = remote = ""
        return (
            "disk {\n"
            "\tsize            \t0s _is_default; # bytes\n"
            "\ton-io-error     \tdetach;\n"
            "}\n"
            f"{net}"
            "syncer {\n"
            "\trate            \t102400k; # bytes/second\n"
            "}\n"
            f"{protocol}"
            "_this_host {\n"
            "\tdevice\t\t\tminor 1;\n"
            '\tdisk\t\t\t"/dev/ram0";\n'
            "\tmeta-disk\t\tinternal;\n"
            f"{address}"
            "}\n"
            f"{remote}"
        )

    def down(self) -> dict[str, Reply | str]:
        return {
            "drbdadm cstate r0": "Unconfigured\n",
            "drbdadm role r0": "Unconfigured\n",
            "drbdsetup /dev/drbd1 show": "",
        }

    bad_configuration = Reply(err="Can not open 'drbd.conf'.\n.", code=20)
    no_module = Reply(
        err='Could not stat("/proc/drbd"): No such file or directory\n'
        "do you need to load the module?\n"
        "try: modprobe drbd\n"
        "Command 'drbdsetup-83 1 cstate' terminated with exit code 20\n",
        code=20,
    )


World = Utils84 | Utils9 | Fork83
WORLDS = [
    pytest.param(Utils84(), id="utils-today-on-8.4"),
    pytest.param(Utils9(), id="utils-today-on-9"),
    pytest.param(Fork83(), id="fork-8.3"),
]
in_every_world = pytest.mark.parametrize("world", WORLDS)


# ------------------------------------------- the five codes, in every world


@in_every_world
@pytest.mark.parametrize(
    ("state", "code", "says"),
    [
        pytest.param(State(), READY, "", id="ready"),
        pytest.param(State("A"), NOT_PROTOCOL_D, "protocol A", id="A"),
        pytest.param(State("B"), NOT_PROTOCOL_D, "protocol B", id="B"),
        # On 8.4 and 9, C is not shown at all.
        pytest.param(State("C"), NOT_PROTOCOL_D, "protocol C", id="C"),
        pytest.param(
            State(cstate="StandAlone", peer="Unknown"),
            NOT_READY,
            "StandAlone",
            id="standalone",
        ),
        pytest.param(
            State(cstate="WFConnection", peer="Unknown"),
            NOT_READY,
            "not Connected",
            id="waiting",
        ),
        # The wrong protocol is the greater trouble: connecting mends nothing.
        pytest.param(
            State("A", cstate="WFConnection", peer="Unknown"),
            NOT_PROTOCOL_D,
            "protocol A",
            id="waiting-with-A",
        ),
        pytest.param(State(cstate="SyncSource"), NOT_READY, "SyncSource", id="resync"),
        pytest.param(
            State(own="Secondary", peer="Primary"),
            NOT_READY,
            "Secondary",
            id="secondary",
        ),
        pytest.param(State(own="Secondary"), NOT_READY, "Secondary", id="no-primary"),
        pytest.param(
            State(peer="Primary"),
            NOT_READY,
            "Primary/Primary",
            id="two-primaries",
        ),
    ],
)
def test_state(world: World, tools: Tools, state: State, code: int, says: str) -> None:
    tools.update(world.replies(state))
    verdict = probe(world.device, tools)
    assert verdict.code == code, verdict.says
    assert says in verdict.says


@in_every_world
def test_not_up(world: World, tools: Tools) -> None:
    tools.update(world.replies(State()))
    tools.update(world.down())
    verdict = probe(world.device, tools)
    assert verdict.code == NOT_READY, verdict.says
    assert "is not up" in verdict.says and "drbdadm up r0" in verdict.says


@in_every_world
def test_module_not_loaded(world: World, tools: Tools) -> None:
    tools.update(world.replies(State()))
    tools["drbdadm cstate r0"] = world.no_module
    verdict = probe(world.device, tools)
    assert verdict.code == UNKNOWN
    assert "exit 20" in verdict.says


@in_every_world
def test_bad_configuration(world: World, tools: Tools) -> None:
    tools["drbdadm sh-dev all"] = world.bad_configuration
    verdict = probe(world.device, tools)
    assert verdict.code == UNKNOWN
    complaint = world.bad_configuration.err.splitlines()
    assert complaint[-1] in verdict.says or complaint[1] in verdict.says
    assert "modinfo" not in verdict.says and "look at drbd.conf" in verdict.says
    # Without the module even a good file can be refused.
    loaded = Path("/proc/drbd").exists()
    assert ("run modprobe drbd" in verdict.says) is not loaded


@in_every_world
@pytest.mark.parametrize("verb", ["cstate r0", "role r0", "sh-resource all"])
def test_drbdadm_fails(world: World, tools: Tools, verb: str) -> None:
    tools.update(world.replies(State()))
    tools[f"drbdadm {verb}"] = Reply(
        err="'r0' not defined in your config (for this host).\n", code=1
    )
    verdict = probe(world.device, tools)
    assert verdict.code == UNKNOWN
    assert "'r0' not defined" in verdict.says


@in_every_world
def test_show_fails(world: World, tools: Tools) -> None:
    tools.update(world.replies(State()))
    for call in list(tools.replies):
        if "show" in call:
            del tools.replies[call]  # so the answer is the usage
    verdict = probe(world.device, tools)
    assert verdict.code == UNKNOWN
    assert "drbdsetup show" in verdict.says


@in_every_world
@pytest.mark.parametrize(
    "name", ["disk.img", "a disk of 3 * GB.img", "two\nlines", "-L"]
)
def test_plain_file(world: World, tools: Tools, tmp_path: Path, name: str) -> None:
    tools.update(world.replies(State()))
    (tmp_path / name).touch()
    verdict = probe(tmp_path / name, tools)
    assert verdict.code == NOT_DRBD
    assert "plain file" in verdict.says


@in_every_world
def test_unlisted_name(world: World, tools: Tools, tmp_path: Path) -> None:
    tools.update(world.replies(State()))
    # Neither a longer nor a shorter name than a listed one is that one.
    for device in (world.device + "7", world.device[:-1], tmp_path / "none"):
        verdict = probe(device, tools)
        assert verdict.code == NOT_DRBD
        assert "no such file" in verdict.says


# ------------------------------------------------------ without a drbdadm


real_drbdadm = shutil.which("drbdadm", path=SYSTEM_PATH)
without_drbdadm = pytest.mark.skipif(
    real_drbdadm is not None, reason=f"{real_drbdadm} would be found"
)


@without_drbdadm
@pytest.mark.parametrize("device", ["/dev/drbd8191", "/dev/drbd/by-res/x/0"])
def test_no_drbdadm(device: str) -> None:
    verdict = probe(device)
    assert verdict.code == UNKNOWN
    assert "looks like a DRBD device" in verdict.says
    assert "drbdadm is not installed" in verdict.says


@without_drbdadm
def test_no_drbdadm_but_plain_file(tmp_path: Path) -> None:
    image = tmp_path / "cdrom.iso"
    image.touch()
    assert probe(image).code == NOT_DRBD
    assert probe("cdrom.iso", cwd=tmp_path).code == NOT_DRBD
    assert probe(tmp_path).code == NOT_DRBD
    assert probe("/dev/null").code == NOT_DRBD


@pytest.mark.parametrize(
    ("name", "target", "code"),
    [
        ("drbd12", None, UNKNOWN),
        ("drbd12.img", None, NOT_DRBD),
        ("drbd", None, NOT_DRBD),
        ("disk", "/dev/drbd8191", UNKNOWN),
    ],
)
def test_looks_like_drbd(
    tools: Tools, tmp_path: Path, name: str, target: str | None, code: int
) -> None:
    """Without a list of devices, the name decides for what is no node."""
    tools["drbdadm sh-dev all"] = Utils84.bad_configuration
    if target is None:
        (tmp_path / name).touch()
    else:
        (tmp_path / name).symlink_to(target)
    verdict = probe(tmp_path / name, tools)
    assert verdict.code == code
    assert ("looks like a DRBD device" in verdict.says) == (code == UNKNOWN)


@without_drbdadm
def test_no_drbdadm_and_no_file(tmp_path: Path) -> None:
    verdict = probe(tmp_path / "none")
    assert verdict.code == UNKNOWN
    assert "no such file" in verdict.says


@pytest.mark.parametrize(
    "reply",
    [
        Reply(err="no resources defined!\n", code=1),
        Reply(
            err="Can not open '/etc/drbd.conf': No such file or directory\n",
            code=10,
        ),
    ],
)
def test_no_resources(tools: Tools, tmp_path: Path, reply: Reply) -> None:
    """drbd-utils is often installed where nobody uses it."""
    tools["drbdadm sh-dev all"] = reply
    image = tmp_path / "disk.img"
    image.touch()
    assert probe(image, tools).code == NOT_DRBD
    verdict = probe("/dev/drbd0", tools)
    assert verdict.code == UNKNOWN
    assert reply.err.strip() in verdict.says


@pytest.mark.parametrize("args", [[], [""], ["/dev/drbd0", "/dev/drbd1"]])
def test_usage(args: list[str]) -> None:
    done = subprocess.run(
        [str(PROBE), *args],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == UNKNOWN
    assert "usage: block-drbd-probe DEVICE" in done.stderr


def test_empty_environment(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.touch()
    done = subprocess.run([str(PROBE), str(image)], env={}, check=False)
    assert done.returncode == NOT_DRBD


# ----------------------------------------------------------- kinds of nodes


def make_node(path: Path, major: int, minor: int) -> Path:
    try:
        os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(major, minor))
    except PermissionError:
        pytest.skip("making device nodes is not allowed here")
    return path


def test_other_block_device(tools: Tools, tmp_path: Path) -> None:
    # Neither a name nor a minor number like that of a DRBD device is enough.
    tools.update(Utils84().replies(State()))
    device = make_node(tmp_path / "drbd0", 7, 0)
    verdict = probe(device, tools)
    assert verdict.code == NOT_DRBD
    assert "of another kind" in verdict.says
    tools["drbdadm sh-dev all"] = Utils84.bad_configuration
    assert probe(device, tools).code == NOT_DRBD


def test_node_is_known_by_its_number(tools: Tools, tmp_path: Path) -> None:
    """A node by a name that no configuration has, as udev may make it."""
    listed = make_node(tmp_path / "listed", 147, 4000)
    other = make_node(tmp_path / "other", 147, 4001)
    same = make_node(tmp_path / "any name", 147, 4000)
    tools.update(Utils84().replies(State()))
    tools["drbdadm sh-dev all"] = f"{other}\n{listed}\n"
    tools["drbdadm sh-dev r0"] = f"{listed}\n"
    tools["drbdadm sh-dev r1"] = f"{other}\n"
    tools[f"drbdsetup {listed} show"] = Utils84().show(State())
    assert probe(same, tools).code == READY


def test_drbd_node_without_resource(tools: Tools, tmp_path: Path) -> None:
    # It is DRBD, the kernel says so; what it does, drbdadm does not know.
    tools.update(Utils84().replies(State()))
    verdict = probe(make_node(tmp_path / "disk", 147, 4002), tools)
    assert verdict.code == UNKNOWN
    assert "no resource" in verdict.says
    tools["drbdadm sh-dev all"] = Utils84.bad_configuration
    assert probe(tmp_path / "disk", tools).code == UNKNOWN


@in_every_world
def test_links(world: World, tools: Tools, tmp_path: Path) -> None:
    """/dev/drbd/by-res/r0/0 -> ../../../drbd0 and the like, spaces too."""
    device = tmp_path / "drbd of guest 1"
    device.touch()
    (tmp_path / "by-res" / "r 0").mkdir(parents=True)
    link = tmp_path / "by-res" / "r 0" / "0"
    link.symlink_to("../../drbd of guest 1")
    chain = tmp_path / "chain"
    chain.symlink_to(link)
    for call, reply in world.replies(State()).items():
        if isinstance(reply, str) and "sh-dev" in call:
            reply = reply.replace(world.device, str(device))
        tools[call.replace(world.device, str(device))] = reply
    for path in (device, link, chain):
        assert probe(path, tools).code == READY, path
    assert probe("by-res/r 0/0", tools, cwd=tmp_path).code == READY


def test_dangling_and_looping_links(tools: Tools, tmp_path: Path) -> None:
    tools.update(Utils84().replies(State()))
    dangling = tmp_path / "dangling"
    dangling.symlink_to("nowhere")
    assert probe(dangling, tools).code == NOT_DRBD
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    assert probe(loop, tools).code == UNKNOWN
    # A link to a node that is gone is still a link to a listed device.
    by_res = tmp_path / "by-res"
    by_res.symlink_to("/dev/drbd0")
    assert probe(by_res, tools).code == READY


# ------------------------------------------- resources of several volumes


@pytest.mark.parametrize("device", ["/dev/drbd0", "/dev/drbd5"])
@pytest.mark.parametrize(
    ("second", "code"), [("Connected", READY), ("SyncSource", NOT_READY)]
)
def test_volumes_8_4(tools: Tools, device: str, second: str, code: int) -> None:
    """8.4 prints a line for each volume: all must be well."""
    world = Utils84()
    tools.update(world.replies(State()))
    tools["drbdadm sh-dev all"] = "/dev/drbd0\n/dev/drbd5\n/dev/drbd1\n"
    tools["drbdadm sh-resource all"] = "r1\nr0\n"
    tools["drbdadm sh-dev r0"] = "/dev/drbd0\n/dev/drbd5\n"
    tools["drbdadm cstate r0"] = f"Connected\n{second}\n"
    tools["drbdadm role r0"] = "Primary/Secondary\n" * 2
    tools["drbdsetup /dev/drbd5 show"] = world.show(State())
    assert probe(device, tools).code == code


def test_the_right_resource(tools: Tools) -> None:
    """r1 is fine, r0 is not; each is judged by its own state."""
    tools.update(Utils84().replies(State(cstate="StandAlone")))
    tools["drbdadm cstate r1"] = "Connected\n"
    tools["drbdadm role r1"] = "Primary/Secondary\n"
    tools["drbdsetup show r1"] = Utils84().show(State())
    assert probe("/dev/drbd0", tools).code == NOT_READY
    assert probe("/dev/drbd1", tools).code == READY


def test_listed_device_without_resource(tools: Tools) -> None:
    tools.update(Utils84().replies(State()))
    tools["drbdadm sh-resource all"] = "r1\n"
    assert probe("/dev/drbd0", tools).code == UNKNOWN


# --------------------------------------------------- several peers, DRBD 9


@pytest.mark.parametrize(
    ("cstate", "status", "code"),
    [
        (
            "Connected\nConnected\n",
            (
                "  b role:Secondary\n    peer-disk:UpToDate\n"
                "  c role:Secondary\n    peer-disk:UpToDate\n"
            ),
            READY,
        ),
        (
            "Connected\nConnecting\n",
            ("  b role:Secondary\n    peer-disk:UpToDate\n  c connection:Connecting\n"),
            NOT_READY,
        ),
        (
            "Connected\nConnected\n",
            (
                "  b role:Secondary\n    peer-disk:UpToDate\n"
                "  c role:Primary\n    peer-disk:UpToDate\n"
            ),
            NOT_READY,
        ),
        # It fell between the two questions.
        (
            "Connected\nConnected\n",
            (
                "  b role:Secondary\n    peer-disk:UpToDate\n"
                "  c connection:NetworkFailure\n"
            ),
            NOT_READY,
        ),
        # No connection is configured, or all were removed.
        ("", "", NOT_READY),
    ],
)
def test_peers(tools: Tools, cstate: str, status: str, code: int) -> None:
    tools.update(Utils9().replies(State()))
    tools["drbdadm cstate r0"] = cstate
    tools["drbdsetup show r0"] = Utils9().show(["D", "D"])
    tools["drbdsetup status r0"] = (
        f"r0 role:Primary\n  disk:UpToDate open:yes\n{status}\n"
    )
    assert probe("/dev/drbd0", tools).code == code


@pytest.mark.parametrize("protocols", [["D", "A"], ["C", "D"], ["D", "C"]])
def test_each_connection_needs_protocol_d(tools: Tools, protocols: list[str]) -> None:
    tools.update(Utils9().replies(State()))
    tools["drbdadm cstate r0"] = "Connected\nConnected\n"
    tools["drbdsetup show r0"] = Utils9().show(protocols)
    assert probe("/dev/drbd0", tools).code == NOT_PROTOCOL_D


def test_roles_of_peers_from_drbdadm(tools: Tools) -> None:
    tools.update(Utils9().replies(State()))
    tools["drbdadm status r0"] = "r0 role:Primary\n  b role:Primary\n"
    del tools.replies["drbdsetup status r0"]
    assert probe("/dev/drbd0", tools).code == NOT_READY


# ------------------------------------------------------------ drbdsetup show


@pytest.mark.parametrize(
    "line",
    [
        "\tprotocol D;",
        "protocol        \tD;",
        "    protocol\tD; # default",
    ],
)
def test_white_space_around_the_protocol(tools: Tools, line: str) -> None:
    tools.update(Fork83().replies(State()))
    tools["drbdsetup /dev/drbd1 show"] = f"net {{\n\ttimeout\t\t60;\n{line}\n}}\n"
    assert probe("/dev/drbd1", tools).code == READY


def test_no_protocol_though_connected(tools: Tools) -> None:
    """What these tools say makes no sense, so nothing is concluded."""
    tools.update(Utils84().replies(State()))
    tools["drbdsetup /dev/drbd0 show"] = Utils84().show(State(cstate="StandAlone"))
    assert probe("/dev/drbd0", tools).code == UNKNOWN


def test_8_3_shows_nothing(tools: Tools) -> None:
    """No disk, no net, but not Unconfigured yet: `show` prints nothing."""
    tools.update(Fork83().replies(State(cstate="Disconnecting")))
    tools["drbdsetup /dev/drbd1 show"] = ""
    tools["drbdsetup show r0"] = Reply(
        out="\nUSAGE: drbdsetup device command arguments options\n\n"
        "Commands are:\n"
        " disk [args...] [opts...]                detach [opts...]\n"
        " net [args...] [opts...]                 disconnect [opts...]\n"
        "\n invalid command\n",
        code=20,
    )
    verdict = probe("/dev/drbd1", tools)
    assert verdict.code == NOT_READY
    assert "Disconnecting" in verdict.says


def test_resource_named_like_a_command(tools: Tools) -> None:
    """To drbdsetup of 8.3, `show down` is `down` on the device `show`."""
    for call, reply in Fork83().replies(State()).items():
        if isinstance(reply, str) and call == "drbdadm sh-resource all":
            reply = "detach\n"
        tools[call.replace(" r0", " detach")] = reply
    assert probe("/dev/drbd1", tools).code == READY
    assert ["drbdsetup", "show", "detach"] not in tools.calls()


# ------------------------------------------------------------ no open, no hang


class OpenWatch:
    """Counts the opens of a file, through inotify."""

    IN_OPEN = 0x20

    def __init__(self, path: Path) -> None:
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.fd = self.libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            pytest.skip("no inotify: " + os.strerror(ctypes.get_errno()))
        watch = self.libc.inotify_add_watch(self.fd, os.fsencode(path), self.IN_OPEN)
        assert watch >= 0, os.strerror(ctypes.get_errno())

    def opened(self) -> bool:
        try:
            return bool(os.read(self.fd, 4096))
        except BlockingIOError:
            return False

    def close(self) -> None:
        os.close(self.fd)


@pytest.mark.parametrize("kind", ["node", "file", "fifo"])
@pytest.mark.parametrize("by_link", [False, True])
def test_device_is_never_opened(
    tools: Tools, tmp_path: Path, kind: str, by_link: bool
) -> None:
    device = tmp_path / "drbd0"
    if kind == "node":
        make_node(device, 147, 4003)
    elif kind == "fifo":
        os.mkfifo(device)  # opening it for reading would also hang
    else:
        device.touch()
    path = device
    if by_link:
        path = tmp_path / "link"
        path.symlink_to(device)
    tools.update(Utils84().replies(State()))
    tools["drbdadm sh-dev all"] = tools["drbdadm sh-dev r0"] = f"{device}\n"
    with contextlib.closing(OpenWatch(device)) as watch:
        assert probe(path, tools).code == READY
        tools["drbdadm sh-dev all"] = "/dev/drbd4004\n"
        assert probe(path, tools).code in (NOT_DRBD, UNKNOWN)
        assert not watch.opened()
        if kind == "file":  # the watch does see what it watches for
            device.read_bytes()
            assert watch.opened()


@pytest.mark.parametrize(
    "hang",
    [
        pytest.param("exec sleep 60", id="waits"),
        pytest.param("trap '' TERM; sleep 60; sleep 60", id="ignores-term"),
    ],
)
def test_tool_that_hangs(tools: Tools, tmp_path: Path, hang: str) -> None:
    tools.script("drbdadm", hang + "\n")
    verdict = probe("/dev/drbd0", tools, limit_s=1)
    assert verdict.code == UNKNOWN
    assert "no answer within 1 s" in verdict.says


def test_slow_tools_share_one_limit(tools: Tools) -> None:
    """Each answer comes in time, all together do not."""
    tools.update(Utils84().replies(State()))
    tools.write()
    for tool in ("drbdadm", "drbdsetup"):
        body = (tools.path / tool).read_text()
        tools.script(tool, "sleep 0.4\n" + body)
    tools.replies.clear()  # keep what was written
    verdict = probe("/dev/drbd0", tools, limit_s=1)
    assert verdict.code == UNKNOWN
    assert "no answer within 1 s" in verdict.says


@pytest.mark.parametrize("shell", ["dash", "bash", "busybox"])
@in_every_world
def test_shells(world: World, tools: Tools, shell: str) -> None:
    """/bin/sh is another one on each distribution."""
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"{shell} is not installed")
    if shell == "busybox":  # takes the applet from the name it is called by
        link = tools.path.parent / "sh"
        link.symlink_to(path)
        path = str(link)
    tools.update(world.replies(State()))
    assert probe(world.device, tools, shell=path).code == READY
    tools.update(world.replies(State("A")))
    assert probe(world.device, tools, shell=path).code == NOT_PROTOCOL_D


def test_shellcheck() -> None:
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    for dialect in ("sh", "dash"):
        done = subprocess.run(
            [shellcheck, "-s", dialect, str(PROBE)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout


# ------------------------------------------------------- remus-native disks


@pytest.fixture(scope="module")
def fuse_static(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """c/fuse_static.c, built."""
    if not os.path.exists("/dev/fuse"):
        pytest.skip("no /dev/fuse")
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    if not shutil.which("gcc") or not shutil.which("pkg-config"):
        pytest.skip("gcc and pkg-config are needed to build fuse_static")
    flags = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "fuse3"],
        capture_output=True,
        text=True,
        check=False,
    )
    if flags.returncode != 0:
        pytest.skip("libfuse3 is not installed for building")
    binary = tmp_path_factory.mktemp("fuse") / "fuse_static"
    subprocess.run(
        [
            "gcc",
            "-std=c11",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-o",
            str(binary),
            str(HERE / "c" / "fuse_static.c"),
            *flags.stdout.split(),
        ],
        check=True,
    )
    return binary


def is_mounted(path: Path) -> bool:
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    return str(path) in (line.split()[1] for line in mounts)


@contextlib.contextmanager
def mounted(
    binary: Path, where: Path, files: Mapping[str, str]
) -> Iterator[subprocess.Popen[str]]:
    where.mkdir()
    args = [word for pair in files.items() for word in pair]
    server = subprocess.Popen(
        [str(binary), str(where), *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None and server.stderr is not None
        if server.stdout.readline() != "ready\n":
            pytest.skip("cannot mount here: " + server.stderr.read().strip())
        yield server
    finally:
        if server.poll() is None:
            server.send_signal(signal.SIGCONT)
            server.terminate()
        try:
            server.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.communicate()
        if is_mounted(where):  # the server was killed
            subprocess.run(["umount", "-l", str(where)], check=True)


def status(
    state: str = "Protected", role: str = "primary", name: str = "guest0"
) -> str:
    return (
        f"remus-native resource={name} role={role} state={state} epoch=812\n"
        "state=Protected\n"  # only the first line counts
        "volumes=xvda\n"
    )


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        (status(), READY, ""),
        (status("CatchUp"), NOT_READY, "state CatchUp"),
        (status("Alone"), NOT_READY, "state Alone"),
        (status("NotProtected"), NOT_READY, "state NotProtected"),
        (status("Protected2"), NOT_READY, "state Protected2"),
        (status(""), NOT_READY, "state ;"),
        (status(role="backup"), NOT_READY, "role backup"),
        ("remus-native resource=guest0\n", NOT_READY, "role ?"),
        # Somebody else's filesystem, with a file that happens to be there.
        ("\n" + status(), NOT_DRBD, "plain file"),
        ("remus-native\n", NOT_DRBD, "plain file"),
        ("state=Protected\n", NOT_DRBD, "plain file"),
        ("", NOT_DRBD, "plain file"),
        (None, NOT_DRBD, "plain file"),
    ],
)
def test_remus_native_disk(
    fuse_static: Path,
    tmp_path: Path,
    tools: Tools,
    text: str | None,
    code: int,
    says: str,
) -> None:
    tools.update(Utils84().replies(State()))
    files = {"xvda": "disk"} | ({} if text is None else {"status": text})
    with mounted(fuse_static, tmp_path / "mnt", files):
        verdict = probe(tmp_path / "mnt" / "xvda", tools)
    assert verdict.code == code, verdict.says
    assert says in verdict.says


def test_remus_native_disk_needs_no_drbd_tools(
    fuse_static: Path, tmp_path: Path, tools: Tools
) -> None:
    tools["drbdadm sh-dev all"] = Utils84.bad_configuration
    files = {"xvda": "disk", "status": status()}
    with mounted(fuse_static, tmp_path / "mnt", files):
        assert probe(tmp_path / "mnt" / "xvda", tools).code == READY
    assert tools.calls() == []


def test_status_is_no_pattern(fuse_static: Path, tmp_path: Path, tools: Tools) -> None:
    (tmp_path / "state=Protected").touch()
    files = {"xvda": "disk", "status": status("*")}
    with mounted(fuse_static, tmp_path / "mnt", files):
        verdict = probe(tmp_path / "mnt" / "xvda", tools, cwd=tmp_path)
    assert verdict.code == NOT_READY
    assert "state *;" in verdict.says


def test_remus_native_disk_by_link(
    fuse_static: Path, tmp_path: Path, tools: Tools
) -> None:
    tools.update(Utils84().replies(State()))
    files = {"xvda 1": "disk", "status": status()}
    mount = tmp_path / "mount of guest 0"
    link = tmp_path / "link"
    # A `status` beside the link is not the one that counts.
    (tmp_path / "status").write_text(status("Alone"))
    with mounted(fuse_static, mount, files):
        link.symlink_to(mount / "xvda 1")
        assert probe(link, tools).code == READY
        folder = tmp_path / "folder"
        folder.symlink_to(mount)
        assert probe(folder / "xvda 1", tools).code == READY
        assert probe("xvda 1", tools, cwd=mount).code == READY


def test_status_files_are_no_disks(
    fuse_static: Path, tmp_path: Path, tools: Tools
) -> None:
    tools.update(Utils84().replies(State()))
    mount = tmp_path / "mnt"
    files = {"xvda": "disk", "status": status(), "status.json": "{}"}
    with mounted(fuse_static, mount, files):
        for path in (mount / "status", mount / "status.json", mount):
            assert probe(path, tools).code == NOT_DRBD, path


def test_status_beside_an_ordinary_file(tmp_path: Path, tools: Tools) -> None:
    """Anyone can write such a file; only a FUSE mount makes it count."""
    tools.update(Utils84().replies(State()))
    (tmp_path / "xvda").touch()
    (tmp_path / "status").write_text(status())
    assert probe(tmp_path / "xvda", tools).code == NOT_DRBD


def test_remus_native_server_died(
    fuse_static: Path, tmp_path: Path, tools: Tools
) -> None:
    tools.update(Utils84().replies(State()))
    files = {"xvda": "disk", "status": status()}
    with mounted(fuse_static, tmp_path / "mnt", files) as server:
        server.kill()
        server.wait()
        verdict = probe(tmp_path / "mnt" / "xvda", tools)
    assert verdict.code == UNKNOWN
    assert "not connected" in verdict.says


def test_remus_native_server_hangs(
    fuse_static: Path, tmp_path: Path, tools: Tools
) -> None:
    tools.update(Utils84().replies(State()))
    files = {"xvda": "disk", "status": status()}
    with mounted(fuse_static, tmp_path / "mnt", files) as server:
        server.send_signal(signal.SIGSTOP)
        verdict = probe(tmp_path / "mnt" / "xvda", tools, limit_s=1)
    assert verdict.code == UNKNOWN
    assert "no answer within 1 s" in verdict.says


def test_remus_native_status_hangs(
    fuse_static: Path, tmp_path: Path, tools: Tools
) -> None:
    """The server stops between the look at the disk and at its status."""
    files = {"xvda": "disk", "status": status()}
    tools.script("head", "exec sleep 60\n")
    with mounted(fuse_static, tmp_path / "mnt", files):
        verdict = probe(tmp_path / "mnt" / "xvda", tools, limit_s=1)
    assert verdict.code == UNKNOWN
    assert "no answer within 1 s" in verdict.says
