# SPDX-License-Identifier: LGPL-2.1-or-later
"""hotplug/block-drbd-probe: each exit code, with the tools of three worlds.

`drbdadm` and `drbdsetup` are stand-ins (support/drbd_tools.py). Every run checks
that only calls that change nothing were made.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from support.drbd_tools import (
    NOT_DRBD,
    NOT_PROTOCOL_D,
    NOT_READY,
    READY,
    UNKNOWN,
    Fork83,
    Reply,
    State,
    Tools,
    Utils9,
    Utils84,
)
from support.probe import World, in_every_world, probe

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


DISKS = [
    ("UpToDate", "Diskless", "Diskless on the peer"),
    ("UpToDate", "Inconsistent", "Inconsistent on the peer"),
    ("UpToDate", "Outdated", "Outdated on the peer"),
    ("UpToDate", "Consistent", "Consistent on the peer"),
    ("UpToDate", "DUnknown", "DUnknown on the peer"),
    ("UpToDate", "Failed", "Failed on the peer"),
    ("Diskless", "UpToDate", "Diskless here"),
    ("Inconsistent", "UpToDate", "Inconsistent here"),
]


@in_every_world
@pytest.mark.parametrize(("disk", "peer_disk", "says"), DISKS)
def test_a_disk_that_is_no_good(
    world: World, tools: Tools, disk: str, peer_disk: str, says: str
) -> None:
    """Connected and in the right roles, but a failover would find nothing."""
    state = State(disk=disk, peer_disk=peer_disk)
    tools.update(world.replies(state))
    verdict = probe(world.device, tools)
    assert verdict.code == NOT_READY, verdict.says
    assert says in verdict.says
    # By the status alone, too.
    if "drbdsetup status r0" in tools.replies:
        del tools.replies["drbdadm dstate r0"]
        verdict = probe(world.device, tools)
        assert verdict.code == NOT_READY, verdict.says
        assert says in verdict.says


@in_every_world
def test_each_volume_has_disks(world: World, tools: Tools) -> None:
    tools.update(world.replies(State()))
    tools["drbdadm dstate r0"] = "UpToDate/UpToDate\nUpToDate/Outdated\n"
    assert probe(world.device, tools).code == NOT_READY


@in_every_world
def test_no_answer_about_disks(world: World, tools: Tools) -> None:
    tools.update(world.replies(State()))
    tools["drbdadm dstate r0"] = Reply(err="No valid meta data found\n", code=1)
    verdict = probe(world.device, tools)
    assert verdict.code == UNKNOWN
    assert "No valid meta data" in verdict.says


@pytest.mark.parametrize("world", [Utils84(), Utils9()])
@pytest.mark.parametrize(
    ("more", "says"),
    [
        (" suspended:quorum", "suspended (quorum)"),
        (" suspended:user,no-data", "suspended (user,no-data)"),
        ("\n  disk:UpToDate quorum:no", "no quorum"),
    ],
)
def test_suspended(world: World, tools: Tools, more: str, says: str) -> None:
    tools.update(world.replies(State(more=more)))
    verdict = probe(world.device, tools)
    assert verdict.code == NOT_READY, verdict.says
    assert says in verdict.says


PROC_DRBD = (
    "version: 8.3.11 (api:88/proto:86-96)\n"
    " 0: cs:Connected ro:Primary/Secondary ds:UpToDate/UpToDate D {0}-----\n"
    "    ns:0 nr:0 dw:0 dr:0 al:0 bm:0 lo:0 pe:0 ua:0 ap:0 ep:1 wo:b oos:0\n"
    " 1: cs:Connected ro:Primary/Secondary ds:UpToDate/UpToDate D {1}-----\n"
    "    ns:0 nr:0 dw:0 dr:0 al:0 bm:0 lo:0 pe:0 ua:0 ap:0 ep:1 wo:b oos:0\n"
)


@pytest.mark.parametrize(
    ("flags", "code"), [("rs", NOT_READY), ("sr", READY), ("rr", READY)]
)
def test_suspended_8_3(tools: Tools, flags: str, code: int) -> None:
    """Of 8.3 only /proc/drbd tells it; another minor's flag does not count."""
    tools.update(Fork83().replies(State()))
    tools.script(
        "cat",
        'case "${1-}" in /proc/drbd) ;; *) exec /bin/cat "$@" ;; esac\n'
        f"/bin/cat <<'EOF'\n{PROC_DRBD.format(*flags)}EOF\n",
    )
    verdict = probe("/dev/drbd1", tools)
    assert verdict.code == code, verdict.says
    assert ("suspended" in verdict.says) is (code == NOT_READY)


@in_every_world
@pytest.mark.parametrize("fails", [Reply(code=20), Reply("")])
def test_disks_that_nobody_tells(world: World, tools: Tools, fails: Reply) -> None:
    tools.update(world.replies(State()))
    tools.replies["drbdadm dstate r0"] = fails
    if "drbdsetup status r0" in tools.replies:
        tools["drbdsetup status r0"] = Reply(code=20)
    verdict = probe(world.device, tools)
    assert verdict.code == UNKNOWN, verdict.says
    assert "cannot tell the disks" in verdict.says


def test_a_role_that_nobody_tells(tools: Tools) -> None:
    """DRBD 9 says with `role` what this side is, and no more."""
    tools.update(Utils9().replies(State(peer="Primary")))
    tools["drbdsetup status r0"] = Reply(code=20)
    verdict = probe("/dev/drbd0", tools)
    assert verdict.code == UNKNOWN, verdict.says
    assert "role" in verdict.says


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
    tools["drbdadm dstate r1"] = "UpToDate/UpToDate\n"
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
