# SPDX-License-Identifier: LGPL-2.1-or-later
"""`make soak MINUTES=n`: two hosts, databases, and whatever can happen to them.

Real processes, FUSE nodes, network namespaces and an ext4 file system on the
replicated disk.  While SQLite, PostgreSQL, fio and a load of small files
work and checkpoints are taken, one thing after the other happens: either
side is killed, stopped, restarted, the cable is pulled out, roles are
swapped, the primary is killed for good and its backup promoted.  After each
change of sides the file system and every load prove what they find.
"""

from __future__ import annotations

import argparse
import os
import random
import secrets
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from hosts import JOURNAL, LOSS_S, SECTION, Failed, Hosts, two_hosts, until
from loads import Files, Fio, Load, Postgres, Sqlite
from samples import Samples

FRESH_S = 5.0  # before a failover: what is older than this must be there


class Soak:
    def __init__(self, hosts: Hosts, seed: int, say: Callable[[str], None]) -> None:
        self.hosts, self.say = hosts, say
        self.rng = random.Random(seed)
        loads: list[Load] = [Sqlite(hosts.folder), Files(hosts.folder)]
        loads += [Postgres(hosts.folder)]
        self.fio = Fio(hosts.folder)
        self.lacks = [one.missing() for one in [*loads, self.fio] if one.missing()]
        self.loads = [one for one in loads if not one.missing()]
        self.runner: subprocess.Popen[bytes] | None = None
        self.happened: Counter[str] = Counter()
        self.verified = 0
        self.killed = 0  # servers, under the guest

    # ---- the guest ----------------------------------------------------------------

    def guest_starts(self) -> None:
        """Mount what is there, check it, and work on."""
        hosts = self.hosts
        where = hosts.attach()
        for load in self.loads:
            (where / load.name).mkdir(exist_ok=True)
            load.start(where / load.name)
        if not self.fio.missing():
            self.fio.start(hosts.mount() / "raw")
        self.checkpoints_start()

    def checkpoints_start(self) -> None:
        hosts = self.hosts
        self.runner = subprocess.Popen(
            hosts.command(
                hosts.primary, "run", "--interval", "50ms", *hosts.swapped,
                str(hosts.file),
            ),
            stdin=subprocess.DEVNULL, stdout=hosts.log, stderr=hosts.log,
        )  # fmt: skip

    def guest_stops(self) -> None:
        for load in [*self.loads, self.fio]:
            load.kill()
        if self.runner is not None:
            self.runner.terminate()
            self.runner.wait()
            self.runner = None
        self.hosts.detach()

    def guest_works(self, seconds: float) -> None:
        """For so long; whatever ends meanwhile by itself is a fault."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.1)
            for load in self.loads:
                if not load.alive():
                    raise Failed(f"{load.name} ended by itself: did an I/O fail?")
            if self.runner is not None and self.runner.poll() is not None:
                self.restart_runner()
            if not self.fio.missing() and not self.fio.alive():
                if not self.fio.ended_well():
                    raise Failed("fio: what was read is not what was written")
                self.verified += 1
                self.fio.start(self.hosts.mount() / "raw")

    def restart_runner(self) -> None:
        """`run` ends when the backup is lost; who drives it starts it again."""
        if self.hosts.protected():
            self.checkpoints_start()

    def check(self, at_least: dict[str, int]) -> None:
        """Every load proves its state, and that it is not an old one."""
        self.hosts.check_fs()
        where = self.hosts.attach()
        try:
            for load in self.loads:
                (where / load.name).mkdir(exist_ok=True)
                found = load.check(where / load.name)
                load.kill()
                least = at_least.get(load.name, 0)
                if found < least:
                    raise Failed(f"{load.name}: {found} is older than {least}")
        finally:
            for load in self.loads:
                load.kill()
                if isinstance(load, Postgres):
                    load.stop_server(where / load.name)
            self.hosts.detach()

    def progress(self) -> dict[str, int]:
        found = {}
        for load in self.loads:
            if load.progress.exists() and (text := load.progress.read_text()):
                found[load.name] = int(text)
        return found

    # ---- what can happen ------------------------------------------------------------

    def protected(self) -> None:
        until("Protected again", self.hosts.protected)

    def backup_is_killed(self) -> None:
        self.hosts.kill(self.hosts.backup)
        self.guest_works(self.rng.uniform(0, 3 * LOSS_S))
        self.hosts.start(self.hosts.backup)

    def backup_is_restarted(self) -> None:
        self.hosts.stop(self.hosts.backup)
        self.hosts.start(self.hosts.backup)

    def backup_stands_still(self) -> None:
        self.hosts.freeze(self.hosts.backup, on=True)
        self.guest_works(self.rng.uniform(0, 3 * LOSS_S))
        self.hosts.freeze(self.hosts.backup, on=False)

    def cable_is_out(self) -> None:
        self.hosts.cable(up=False)
        self.guest_works(self.rng.uniform(0, 5 * LOSS_S))
        self.hosts.cable(up=True)

    def sides_are_compared(self) -> None:
        hosts = self.hosts
        hosts.remus(hosts.primary, "verify", *hosts.swapped, str(hosts.file))

    def servers_are_killed(self) -> None:
        """The keeper starts the next one, and the guest does not notice."""
        for _ in range(self.rng.randint(1, 12)):
            self.hosts.kill_server(self.hosts.primary)
            self.killed += 1
            self.guest_works(self.rng.choice((0.1, 0.5, 1.5)))

    def server_is_restarted(self) -> None:
        hosts = self.hosts
        words = "restart", "--host", SECTION[hosts.primary], str(hosts.file)
        hosts.remus(hosts.primary, *words)
        self.guest_works(1.0)

    def primary_is_killed_and_restarted(self) -> None:
        """With its keeper, the guest's disk goes away: the guest starts anew."""
        hosts = self.hosts
        hosts.kill(hosts.primary)
        self.guest_stops()
        hosts.clear_mount(hosts.primary)
        hosts.start(hosts.primary)
        self.protected()
        self.check({})
        self.guest_starts()

    def primary_is_killed_and_failed_over(self) -> None:
        hosts = self.hosts
        before = self.progress()
        self.guest_works(FRESH_S)
        until("Protected before the failover", hosts.protected)
        hosts.kill(hosts.primary)
        self.guest_stops()
        hosts.clear_mount(hosts.primary)
        hosts.remus(hosts.backup, "promote", *hosts.swapped, str(hosts.file))
        hosts.stop(hosts.backup)
        self.switched(before)

    def roles_are_swapped(self) -> None:
        hosts = self.hosts
        self.guest_stops()
        before = self.progress()
        self.protected()
        hosts.remus(hosts.backup, "swap", *hosts.swapped, str(hosts.file))
        old = hosts.primary
        until("both have switched", lambda: self.has_switched(old))
        hosts.primary = hosts.backup
        self.protected()
        self.check(before)
        self.guest_starts()

    def has_switched(self, old: str) -> bool:
        new = self.hosts.backup if old == self.hosts.primary else self.hosts.primary
        return (
            self.hosts.status(old).get("role") == "backup"
            and self.hosts.status(new).get("role") == "primary"
        )

    def switched(self, at_least: dict[str, int]) -> None:
        """The old backup is the primary now, the old primary its backup."""
        hosts = self.hosts
        hosts.primary = hosts.backup
        hosts.start(hosts.primary)
        hosts.start(hosts.backup)
        self.check(at_least)
        self.guest_starts()

    EVENTS = (
        (backup_is_killed, 4),
        (backup_is_restarted, 2),
        (backup_stands_still, 3),
        (cable_is_out, 4),
        (sides_are_compared, 1),
        (servers_are_killed, 8),
        (server_is_restarted, 2),
        (primary_is_killed_and_restarted, 2),
        (primary_is_killed_and_failed_over, 3),
        (roles_are_swapped, 2),
    )

    def go_on(self, minutes: float) -> None:
        hosts = self.hosts
        hosts.start("b")
        hosts.start("a")
        self.protected()
        self.guest_starts()
        end = time.monotonic() + minutes * 60
        events, weights = zip(*self.EVENTS, strict=True)
        rest: list[Callable[[Soak], None]] = []
        while time.monotonic() < end:
            self.guest_works(self.rng.uniform(1, 4))
            # Each of them once before any comes a second time by chance.
            if not self.happened and not rest:
                rest = self.rng.sample(events, len(events))
            event = rest.pop() if rest else self.rng.choices(events, weights)[0]
            began = time.monotonic()
            self.say(f"{event.__name__.replace('_', ' ')}")
            event(self)
            self.protected()
            self.happened[event.__name__] += 1
            self.say(f"  Protected after {time.monotonic() - began:.1f} s")
        self.guest_stops()
        self.protected()
        self.check(self.progress())
        hosts.remus(hosts.primary, "verify", *hosts.swapped, str(hosts.file))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--out", type=Path, default=Path("build/soak"))
    arguments = parser.parse_args()
    if os.geteuid() or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        print("the soak needs root, /dev/fuse, loop devices and network namespaces")
        return 2
    seed = secrets.randbelow(10**6) if arguments.seed is None else arguments.seed
    arguments.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()

    def say(words: str) -> None:
        print(f"{time.monotonic() - began:8.1f} s  {words}", flush=True)

    folder = Path(tempfile.mkdtemp(prefix="remus-soak-"))
    folder.chmod(0o755)
    failed = ""
    with two_hosts(folder) as hosts:
        soak = Soak(hosts, seed, say)
        for lack in soak.lacks:
            say(f"not here, so not soaked: {lack}")
        samples = Samples(hosts, arguments.out / "samples.csv")
        samples.start()
        try:
            soak.go_on(arguments.minutes)
        except Failed as error:
            failed = str(error)
        finally:
            soak.guest_stops()
            samples.stop()
        for log in folder.glob("log*"):
            (arguments.out / log.name).write_bytes(log.read_bytes())
        for log in folder.glob("pgsocket/log"):
            (arguments.out / "log.server").write_bytes(log.read_bytes())
        if not failed:
            try:
                for words in samples.check(JOURNAL):
                    say(words)
            except Failed as error:
                failed = str(error)
        drawn = samples.draw(arguments.out / "samples.svg")
    for name, count in sorted(soak.happened.items()):
        say(f"{count:4} x {name.replace('_', ' ')}")
    say(f"{soak.killed} servers were killed under the guest, which saw no error")
    say(f"{soak.verified} runs of fio verified all that they had written")
    say(f"samples in {arguments.out}/samples.csv" + (" and .svg" if drawn else ""))
    if failed:
        print(f"FAILED (seed {seed}): {failed}; the log is {arguments.out}/log")
        return 1
    print(f"PASSED (seed {seed})")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
