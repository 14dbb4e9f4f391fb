# SPDX-License-Identifier: LGPL-2.1-or-later
"""Two hosts for tests: network namespaces joined by a veth pair.

The guest is a process of its own (`guest_main`): it writes batch after batch,
takes a checkpoint after each, and tells over a pipe what it did.  Batch k is
a function of k, so the disk after k batches is known without asking anybody:
that is the model against which every checkpoint is compared byte for byte.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SIZE = 2 << 20
VOLUMES = ("xvda", "xvdb")
# Room for many whole catch-ups: killed again and again, nobody commits any.
SEGMENT, JOURNAL = 256 << 10, 64 << 20
PRIMARY_IP, BACKUP_IP, PORT = "10.77.0.1", "10.77.0.2", 7790


def batch(k: int) -> Iterator[tuple[str, int, bytes]]:
    """The writes between checkpoint k - 1 and k; None data is a discard."""
    rng = random.Random(k)
    for _ in range(rng.randrange(1, 12)):
        length = rng.choice((1, 511, 4096, 9000, 65536))
        at = rng.randrange(SIZE - length)
        data = b"" if rng.random() < 0.1 else bytes([rng.randrange(256)]) * length
        yield rng.choice(VOLUMES), at, data or bytes(length)


class Model:
    """The disks after k batches; going forward costs only what is new."""

    def __init__(self) -> None:
        self.k = 0
        self.disks = {name: bytearray(SIZE) for name in VOLUMES}

    def after(self, k: int) -> dict[str, bytes]:
        if k < self.k:
            self.__init__()  # type: ignore[misc]
        for i in range(self.k + 1, k + 1):
            for name, at, data in batch(i):
                self.disks[name][at : at + len(data)] = data
        self.k = k
        return {name: bytes(data) for name, data in self.disks.items()}


# ---- the guest and its primary: a process ---------------------------------------


def guest_main(folder: str, address: str, options: str) -> None:
    from remus_native import Primary, ReplicationLost, Volume

    def tell(**words: Any) -> None:
        sys.stdout.write(json.dumps({"t": time.monotonic(), **words}) + "\n")
        sys.stdout.flush()

    settings = json.loads(options)
    start = settings.pop("batches", 0)
    ends = settings.pop("ends", False)
    pause = settings.pop("pause", 0.002)
    primary = Primary(
        "guest0",
        state_dir=f"{folder}/p",
        volumes=[Volume(name, f"{folder}/p.{name}") for name in VOLUMES],
        address=address,
        tls="off",
        idle_ms=3_600_000,
        connect_ms=20,
        **settings,
    )

    if ends:

        def close(*_: Any) -> None:
            primary.close()
            os._exit(0)

        signal.signal(signal.SIGTERM, close)

    def watch() -> None:
        last = None
        while True:
            status = primary.status()
            now = (str(status.state), status.connected, status.reason)
            if now != last:
                tell(state=now[0], connected=now[1], reason=status.reason)
                last = now
            time.sleep(0.002)

    waited = 0.0  # of all writes so far, beyond what a disk takes
    primary.session_begin()
    threading.Thread(target=watch, daemon=True).start()
    k = start
    while True:
        for name, at, data in batch(k + 1):
            begun = time.monotonic()
            if any(data):
                primary.pwrite(name, data, at)
            else:
                primary.discard(name, at, len(data))
            took = time.monotonic() - begun
            waited += took if took > 0.02 else 0.0
        k += 1
        tell(at=k, waited=waited)
        try:
            epoch = primary.postsuspend()
            tell(epoch=epoch, batches=k)
            primary.preresume(epoch, timeout_s=60)
            tell(acked=epoch)
            if k % 3:
                primary.commit(epoch)
        except ReplicationLost:
            tell(lost=k)
        time.sleep(pause)


class Guest:
    """The process, and what it told."""

    def __init__(self, hosts: Hosts, **options: Any) -> None:
        self.batches: dict[int, int] = {}  # of each checkpoint
        self.acked: list[int] = []
        self.states: list[tuple[float, str, bool, str]] = []
        self.at = options.get("batches", 0)
        self.waited = 0.0  # seconds that its writes waited
        self.lost = 0
        self.process = hosts.run(
            "p", str(hosts.folder), hosts.address, json.dumps(options)
        )
        self.thread = threading.Thread(target=self._listen)
        self.thread.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with contextlib.suppress(json.JSONDecodeError):  # killed in a line
                self._take(json.loads(line))

    def _take(self, said: dict[str, Any]) -> None:
        if "at" in said:
            self.at = said["at"]
            self.waited = said["waited"]
        elif "epoch" in said:
            self.batches[said["epoch"]] = said["batches"]
        elif "acked" in said:
            self.acked.append(said["acked"])
        elif "lost" in said:
            self.lost += 1
        elif "state" in said:
            self.states.append(
                (said["t"], said["state"], said["connected"], said["reason"])
            )

    def wait(self, true: Callable[[], bool], what: str, seconds: float = 40) -> float:
        start = time.monotonic()
        while not true():
            assert self.process.poll() is None, f"the guest died before: {what}"
            assert time.monotonic() - start < seconds, (
                f"not within {seconds} s: {what}; {self.states[-3:]}"
            )
            time.sleep(0.002)
        return time.monotonic() - start

    def protected(self, seconds: float = 40) -> float:
        """Until a checkpoint of now has its ack; how long that took."""
        known = len(self.acked)
        return self.wait(lambda: len(self.acked) > known, "an ack", seconds)

    def runs_on(self) -> None:
        """The guest's writes pass, whatever the backup does."""
        at = self.at
        self.wait(lambda: self.at > at + 2, "writes")

    def noticed(self, since: float, seconds: float = 20) -> float:
        """When the loss after `since` was noticed: seconds."""
        self.wait(
            lambda: any(t > since and not up for t, _, up, _ in self.states),
            "the loss",
            seconds,
        )
        return next(t for t, _, up, _ in self.states if t > since and not up) - since

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.thread.join()


# ---- the hosts ---------------------------------------------------------------------


class Hosts:
    """Namespaces, images, a backup process; `close` leaves nothing behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = self.listen = f"tcp:{BACKUP_IP}:{PORT}"
        tag = f"{os.getpid() % 100000:05d}{random.randrange(1000):03d}"
        self.names = {"p": f"remp{tag}", "b": f"remb{tag}"}
        self.backup: subprocess.Popen[str] | None = None
        self.guests: list[Guest] = []
        self.model = Model()
        self.stack = contextlib.ExitStack()
        for side in "pb":
            (folder / side).mkdir()
            for name in VOLUMES:
                with (folder / f"{side}.{name}").open("wb") as image:
                    image.truncate(SIZE)
        for name in self.names.values():
            ip("netns", "add", name)
            self.stack.callback(ip, "netns", "del", name)
        self.link()

    def link(self) -> None:
        """Join the two with a cable."""
        p, b = self.names["p"], self.names["b"]
        ip("link", "add", "ve", "netns", p, "type", "veth", "peer", "name", "ve",
           "netns", b)  # fmt: skip
        for name, address in ((p, PRIMARY_IP), (b, BACKUP_IP)):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "ve")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", "ve", "up")

    def cut(self, side: str = "b", up: bool = False) -> None:
        """Pull the cable out at one end, or put it in again."""
        ip("-n", self.names[side], "link", "set", "ve", "up" if up else "down")

    def blackhole(self, side: str, on: bool = True) -> None:
        """One host's packets vanish; the other one's still arrive."""
        other = BACKUP_IP if side == "p" else PRIMARY_IP
        verb = "add" if on else "del"
        ip("-n", self.names[side], "route", verb, "blackhole", f"{other}/32")

    def slow(self, rate: str | None) -> None:
        """What the primary's host can send; None: without a limit."""
        tc = ["tc", "-n", self.names["p"], "qdisc"]
        what = (
            ["add", "dev", "ve", "root", "tbf", "rate", rate, "burst", "16kb",
             "latency", "100ms"]
            if rate
            else ["del", "dev", "ve", "root"]
        )  # fmt: skip
        subprocess.run([*tc, *what], check=True, capture_output=True)

    def resolver(self, side: str) -> Path:
        """A folder whose files lie over those of /etc on one host, as
        `ip netns exec` sees to: made before its processes start."""
        folder = Path("/etc/netns") / self.names[side]
        folder.mkdir(parents=True)
        self.stack.callback(shutil.rmtree, folder)
        (folder / "hosts").write_text("127.0.0.1 localhost\n")
        # Nobody answers there, and nobody says so.
        (folder / "resolv.conf").write_text("nameserver 10.77.0.99\n")
        (folder / "nsswitch.conf").write_text("hosts: files dns\n")
        return folder

    def run(self, side: str, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.names[side], sys.executable, __file__, side,
             *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.stack.callback(end, process)
        return process

    def start_backup(self) -> None:
        self.backup = self.run("b", str(self.folder), self.listen)
        assert self.backup.stdout is not None
        line = self.backup.stdout.readline()
        assert line == "ready\n", f"the backup said {line!r}"

    def kill_backup(self) -> None:
        assert self.backup is not None
        end(self.backup)

    def start_guest(self, **options: Any) -> Guest:
        guest = Guest(self, **options)
        self.guests.append(guest)
        self.stack.callback(guest.kill)
        return guest

    def close(self) -> None:
        self.stack.close()

    # -- the proof

    def prove(self) -> int:
        """Promote copies of the killed backup to all that it offers.

        How many checkpoints were compared."""
        offered = self.on_a_copy(lambda b, _: [cp.epoch for cp in b.checkpoints()])
        assert offered
        known = self.known(offered)
        acked = {e for guest in self.guests for e in guest.acked}
        assert {e for e in acked if e >= offered[0]} <= set(offered)
        compared = 0
        for epoch in offered:
            if epoch not in known:
                assert epoch < min(known)  # the copy that came before the guest
                continue

            def compare(backup: Any, folder: Path, epoch: int = epoch) -> None:
                assert backup.promote(epoch) == epoch
                want = self.model.after(known[epoch])
                for name in VOLUMES:
                    got = (folder / f"b.{name}").read_bytes()
                    assert got == want[name], f"{name} differs at {epoch}"

            self.on_a_copy(compare)
            compared += 1
        return compared

    def known(self, offered: list[int]) -> dict[int, int]:
        """After how many batches each checkpoint was.

        A guest may have had no time to tell the number of its last barrier:
        that is the only one between those that it told and its successor's."""
        known = {e: k for guest in self.guests for e, k in guest.batches.items()}
        for i, guest in enumerate(self.guests):
            last = max(guest.batches, default=0)
            later = [e for g in self.guests[i + 1 :] for e in g.batches]
            end = min(later, default=1 << 62)
            untold = [e for e in offered if last < e < end and e not in known]
            if guest.batches:
                assert len(untold) <= 1
                known.update(dict.fromkeys(untold, guest.at))
        return known

    def on_a_copy(self, do: Callable[[Any, Path], Any]) -> Any:
        from remus_native import Backup, Volume

        folder = self.folder / "copy"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        shutil.copytree(self.folder / "b", folder / "b")
        for name in VOLUMES:
            shutil.copy(self.folder / f"b.{name}", folder / f"b.{name}")
        with Backup(
            "guest0",
            state_dir=folder / "b",
            volumes=[Volume(name, folder / f"b.{name}") for name in VOLUMES],
            journal_bytes=JOURNAL,
            segment_bytes=SEGMENT,
            stale_ms=(1 << 32) - 1,
        ) as backup:
            return do(backup, folder)


def backup_main(folder: str, address: str) -> None:
    from remus_native import Backup, Volume

    with Backup(
        "guest0",
        state_dir=f"{folder}/b",
        volumes=[Volume(name, f"{folder}/b.{name}") for name in VOLUMES],
        journal_bytes=JOURNAL,
        segment_bytes=SEGMENT,
    ) as backup:
        backup.serve(address, tls="off", loss_ms=1000)
        print("ready", flush=True)
        sys.stdin.read()


def ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr}")


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


def usable() -> str:
    """Why namespaces can't be had here; "" if they can."""
    if os.geteuid():
        return "needs root for network namespaces"
    if not shutil.which("ip") or not shutil.which("tc"):
        return "iproute2 is missing"
    name = f"remtry{os.getpid()}"
    try:
        ip("netns", "add", name)
        ip("netns", "del", name)
    except RuntimeError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    (guest_main if sys.argv[1] == "p" else backup_main)(*sys.argv[2:])
