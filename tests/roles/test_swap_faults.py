# SPDX-License-Identifier: LGPL-2.1-or-later
"""Either side is killed at any moment of a swap: it can be finished by what
status and errors say, one side is the primary, and nothing is lost."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import pytest

from remus_native.cli import main
from remus_native.control import NotRunning
from support.host import Host, mounts_of, node, start_primary, status
from support.waiting import DEADLINE_S, wait_for

pytestmark = pytest.mark.fuse


class Sides:
    """Who runs where; `p` and `b` are the two sides of the file."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.running = {"b": host.start_backup(), "p": start_primary(host)}
        self.swapped = False  # `b` is the primary
        mounts_of(host, "b")

    def start(self, side: str, role: str) -> str:
        """In that role of this side; "" once it runs, or what it said."""
        swapped = ["--swapped"] if (side == "b") == (role == "primary") else []
        process = self.host.start(role, *swapped)
        self.running[side] = process
        wait_for("it", lambda: process.poll() is not None or self.host.runs(side))
        if process.poll() is None:
            return ""
        return process.communicate()[1]

    def ask(self, side: str) -> dict:
        """Its status; {} if it does not run."""

        def answer() -> dict | None:
            try:
                return status(self.host, side)
            except NotRunning:
                process = self.running[side]
                return {} if process.poll() is not None else None

        # A process that switches roles is not there for a moment.
        end = time.monotonic() + DEADLINE_S
        while (said := answer()) is None:
            assert time.monotonic() < end
            time.sleep(0.01)
        return said

    def stop(self, side: str) -> None:
        self.running[side].terminate()
        assert self.running[side].wait(DEADLINE_S) == 0

    def recover(self) -> None:
        """What an operator does, by nothing but what the sides say."""
        old, new = ("b", "p") if self.swapped else ("p", "b")
        now = self.ask(old)
        if not now:
            said = self.start(old, "primary")
            if said:
                assert "start it as the backup" in said
                assert not self.start(old, "backup")
            now = self.ask(old)
        if now["role"] == "primary" and now["state"] != "Fenced":
            # It never stepped down, or the backup's question failed.
            if not self.ask(new):
                assert not self.start(new, "backup")
            return
        self.swapped = not self.swapped
        now = self.ask(new)
        if now and now["role"] == "primary":
            return
        if not now:
            assert not self.start(new, "backup")
            now = self.ask(new)
        if now["state"] in ("Standby", "Promoting"):
            swapped = ["--swapped"] if new == "p" else []
            assert main(["promote", *swapped, str(self.host.file)]) == 0
        elif now["state"] == "Inconsistent":
            assert "or this one again" in now["reason"]
        else:
            assert now["state"] == "Promoted"
        self.stop(new)
        assert not self.start(new, "primary")

    def primary(self) -> str:
        return "b" if self.swapped else "p"


def images(host: Host, side: str) -> list[bytes]:
    return [(Path(host.folder) / f"{side}{i}").read_bytes() for i in range(2)]


def swap(sides: Sides) -> threading.Thread:
    words = ["swap", *(["--swapped"] if sides.swapped else [])]
    thread = threading.Thread(target=main, args=([*words, str(sides.host.file)],))
    thread.start()
    return thread


def protected(sides: Sides) -> str:
    side = sides.primary()
    wait_for("protection", lambda: sides.ask(side)["state"] == "Protected")
    return side


def rounds(host: Host, count: int, seed: int) -> None:
    # As on two hosts, each of which has an address of its own.
    text = host.file.read_text()
    host.file.write_text(f'address_swapped = "unix:{host.folder}/other"\n{text}')
    rng = random.Random(seed)
    sides = Sides(host)
    swaps = 0
    for turn in range(count):
        side = protected(sides)
        data = f"turn {turn} of {seed}".encode()
        with node(host, side).open("r+b", buffering=0) as file:
            file.write(data)
        wait_for("its close", lambda side=side: not sides.ask(side)["writers"])
        thread = swap(sides)
        victim = rng.choice("pb")
        time.sleep(rng.choice((0.05, 0.3, 0.8)) * rng.random())
        before = sides.swapped
        sides.running[victim].kill()
        sides.running[victim].wait()
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
        sides.recover()
        swaps += sides.swapped != before
        print(f"turn {turn}: {victim} killed, the primary is {sides.primary()}")
        with node(host, protected(sides)).open("rb", buffering=0) as file:
            assert file.read(len(data)) == data, f"lost in turn {turn}"
    print(f"{swaps} of {count} swaps were done or finished")
    sides.stop(sides.primary())
    sides.stop("p" if sides.swapped else "b")
    assert images(host, "p") == images(host, "b")


@pytest.mark.slow
def test_killed_in_a_swap(host: Host) -> None:
    rounds(host, 5, 3)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [5, 6])
def test_killed_in_many_swaps(host: Host, seed: int) -> None:
    rounds(host, 40, seed)
