# SPDX-License-Identifier: LGPL-2.1-or-later
"""Stand-ins for drbdadm and drbdsetup, and what those of three worlds print.

* drbd-utils 9.22 on the 8.4 driver: recorded, and compared with the real ones
  in a virtual machine (vm/test_vm.py);
* drbd-utils 9.22 on the 9 driver: shape taken from the source of drbd-utils;
* the 8.3 fork that has protocol D: shape taken from its source, messages of
  drbdadm recorded from the 8.3 tools that drbd-utils 9.22 carries.

A stand-in knows only the calls it was given. To any other it answers like the
real tools: usage on stdout, exit 20. Every call is written down.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest

READY, NOT_DRBD, UNKNOWN, NOT_PROTOCOL_D, NOT_READY = range(5)


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
class State:
    protocol: str = "D"
    cstate: str = "Connected"  # in the words of 8.4
    own: str = "Primary"
    peer: str = "Secondary"
    disk: str = "UpToDate"
    peer_disk: str = "UpToDate"
    more: str = ""  # " suspended:quorum"

    @property
    def known_peer_disk(self) -> str:
        return "DUnknown" if self.peer == "Unknown" else self.peer_disk


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
            "drbdadm dstate r0": f"{s.disk}/{s.known_peer_disk}\n",
            "drbdsetup show r0": self.show(s),
            "drbdsetup /dev/drbd0 show": self.show(s),
            "drbdsetup status r0": self.status(s),
        }

    def status(self, s: State) -> str:
        peer = (
            f"  peer role:{s.peer}\n"
            f"    replication:Established peer-disk:{s.peer_disk}\n"
        )
        if s.cstate == "StandAlone":
            peer = ""
        return f"r0 role:{s.own}{s.more}\n  disk:{s.disk}\n{peer}\n"

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
            # Of the meta data on the disk, that no driver has.
            "drbdadm dstate r0": "Consistent\n",
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
                f"    replication:{replication} peer-disk:{s.peer_disk}\n"
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
            "drbdadm dstate r0": f"{s.disk}/{s.peer_disk}\n",
            "drbdsetup show r0": self.show([s.protocol]),
            # Not the name of a resource: nothing to show, and no error.
            "drbdsetup /dev/drbd0 show": "",
            "drbdsetup status r0": (
                f"r0 role:{s.own}{s.more}\n  disk:{s.disk}\n{peer}\n"
            ),
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
            "drbdadm dstate r0": f"{s.disk}/{s.peer_disk}\n",
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
