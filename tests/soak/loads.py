# SPDX-License-Identifier: LGPL-2.1-or-later
"""What runs on the replicated disk, and how each proves what it finds.

Every load can be killed at any moment and goes on from whatever is there;
`check` says whether that is a state that the load could have left at one
moment, and how far it had come.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

from hosts import MIB, RAW_SIZE, Failed, run

PG = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


class Load:
    """A process that works below one folder of the guest's file system."""

    name = ""

    def __init__(self, folder: Path) -> None:
        self.progress = folder / f"progress.{self.name}"
        self.log = (folder / f"log.{self.name}").open("wb")
        self.process: subprocess.Popen[bytes] | None = None

    def missing(self) -> str:
        """What this machine lacks for it; "" if nothing."""
        return ""

    def start(self, where: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, self.name, str(where), str(self.progress)],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
        )

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def check(self, where: Path) -> int:
        raise NotImplementedError


class Sqlite(Load):
    """Rows 1, 2, 3, ...; each holds the hash of its number."""

    name = "sqlite"

    @staticmethod
    def work(where: Path, progress: Path) -> None:
        db = sqlite3.connect(where / "rows.db", isolation_level=None)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.execute("CREATE TABLE IF NOT EXISTS rows (n INTEGER PRIMARY KEY, h TEXT)")
        while True:
            n = (db.execute("SELECT max(n) FROM rows").fetchone()[0] or 0) + 1
            db.execute("INSERT INTO rows VALUES (?, ?)", (n, _hash(n)))
            progress.write_text(str(n))
            time.sleep(0.002)

    def check(self, where: Path) -> int:
        if not (where / "rows.db").exists():
            return 0
        db = sqlite3.connect(where / "rows.db")
        try:
            [(said,)] = db.execute("PRAGMA integrity_check").fetchall()
            if said != "ok":
                raise Failed(f"sqlite: {said}")
            tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            rows = db.execute("SELECT n, h FROM rows").fetchall() if tables else []
        except sqlite3.DatabaseError as error:
            raise Failed(f"sqlite: {error}") from error
        finally:
            db.close()
        if [n for n, _ in rows] != list(range(1, len(rows) + 1)):
            raise Failed("sqlite: rows are missing in the middle")
        if any(h != _hash(n) for n, h in rows):
            raise Failed("sqlite: a row holds what was never written to it")
        return len(rows)


class Files(Load):
    """Files that come, are renamed and go; a name tells the content.

    A file is written and synced as ".n" and renamed then: what has a name
    without the dot is whole.
    """

    name = "files"
    KEPT = 400

    @staticmethod
    def work(where: Path, progress: Path) -> None:
        n = max((int(p.name.lstrip(".")) for p in where.rglob("*") if p.is_file()),
                default=0)  # fmt: skip
        while True:
            n += 1
            folder = where / f"d{n % 17}"
            folder.mkdir(exist_ok=True)
            with (folder / f".{n}").open("wb") as file:
                file.write(_content(n))
                file.flush()
                os.fsync(file.fileno())
            (folder / f".{n}").rename(folder / str(n))
            progress.write_text(str(n))
            old = where / f"d{(n - Files.KEPT) % 17}" / str(n - Files.KEPT)
            old.unlink(missing_ok=True)
            time.sleep(0.002)

    def check(self, where: Path) -> int:
        newest = 0
        for path in where.rglob("*"):
            if path.is_file() and not path.name.startswith("."):
                newest = max(newest, int(path.name))
                if path.read_bytes() != _content(int(path.name)):
                    raise Failed(f"files: {path.name} is not what was written")
        return newest


class Postgres(Load):
    """pgbench; checked by a recovery, pg_amcheck, and pgbench's own sums."""

    name = "postgres"
    PORT = "5499"

    def missing(self) -> str:
        needed = ("initdb", "pg_ctl", "pgbench", "pg_amcheck")
        if not PG or not all((PG[-1] / tool).exists() for tool in needed):
            return "PostgreSQL (apt-get install postgresql postgresql-contrib)"
        return "" if shutil.which("runuser") else "runuser (apt-get install util-linux)"

    def tool(self, name: str, *words: object) -> list[str]:
        return ["runuser", "-u", "postgres", "--", str(PG[-1] / name), *map(str, words)]

    def socket(self, where: Path) -> Path:
        return where.parent.parent / "pgsocket"

    def psql(self, where: Path, text: str) -> str:
        return run(
            *self.tool("psql", "-h", self.socket(where), "-p", self.PORT, "-X", "-q",
                       "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", text, "postgres")
        ).stdout.strip()  # fmt: skip

    def server(self, where: Path) -> None:
        self.socket(where).mkdir(exist_ok=True)
        shutil.chown(self.socket(where), "postgres")
        options = (
            f"-k {self.socket(where)} -p {self.PORT} -c listen_addresses= "
            "-c shared_buffers=32MB -c max_wal_size=64MB -c wal_sync_method=fdatasync"
        )
        run(*self.tool("pg_ctl", "-D", where / "data", "-o", options, "-w", "-t", 60,
                       "-l", self.socket(where) / "log", "start"))  # fmt: skip

    def start(self, where: Path) -> None:
        shutil.chown(where, "postgres")
        if not (where / "ready").exists():
            shutil.rmtree(where / "data", ignore_errors=True)
            run(*self.tool("initdb", "-k", "-A", "trust", "-D", where / "data"))
            self.server(where)
            there = ("-h", self.socket(where), "-p", self.PORT)
            run(*self.tool("pgbench", *there, "-i", "-q", "-s", 2, "postgres"))
            self.psql(where, "CREATE EXTENSION IF NOT EXISTS amcheck")
            (where / "ready").touch()
        elif not self.alive_server(where):
            self.server(where)
        self.process = subprocess.Popen(
            self.tool("pgbench", "-h", self.socket(where), "-p", self.PORT, "-n", "-c",
                      2, "-R", 100, "-T", 100000, "postgres"),
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
        )  # fmt: skip
        self.where = where

    def alive_server(self, where: Path) -> bool:
        said = run(*self.tool("pg_ctl", "-D", where / "data", "status"), check=False)
        return said.returncode == 0

    def kill(self) -> None:
        if self.process is None:
            return
        # Its own words: what is on the disk may not be readable any more.
        run("pkill", "-9", "-P", self.process.pid, check=False)
        super().kill()
        found = run(
            "pgrep", "-u", "postgres", "-f", "--", f"-p {self.PORT}", check=False
        )
        for server in found.stdout.split():
            children = run("pgrep", "-P", server, check=False).stdout.split()
            for each in [server, *children]:
                run("kill", "-9", each, check=False)
        # On the host, not on the guest's disk: a number that is in use again,
        # or a process that nobody has waited for, would be taken for a server.
        for lock in self.socket(self.where).glob(".s.PGSQL.*"):
            lock.unlink()

    def stop_server(self, where: Path) -> None:
        """In good order, so that the file system can be unmounted."""
        if (where / "data").exists() and self.alive_server(where):
            run(*self.tool("pg_ctl", "-D", where / "data", "-m", "fast", "-w", "stop"))

    def check(self, where: Path) -> int:
        if not (where / "ready").exists():
            return 0
        (where / "data" / "postmaster.pid").unlink(missing_ok=True)
        self.server(where)
        there = ("-h", self.socket(where), "-p", self.PORT)
        run(*self.tool("pg_amcheck", *there, "--heapallindexed", "postgres"))
        sums = self.psql(
            where,
            "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = "
            "(SELECT sum(bbalance) FROM pgbench_branches) AND "
            "(SELECT sum(tbalance) FROM pgbench_tellers) = "
            "(SELECT coalesce(sum(delta), 0) FROM pgbench_history)",
        )
        if sums not in ("t", ""):
            raise Failed(f"postgres: the sums of pgbench differ ({sums})")
        return int(self.psql(where, "SELECT count(*) FROM pgbench_history"))


class Fio(Load):
    """fio writes to the raw disk and verifies what it reads."""

    name = "fio"

    def missing(self) -> str:
        return "" if shutil.which("fio") else "fio (apt-get install fio)"

    def start(self, where: Path) -> None:
        """`where` is the node of the disk; a run ends by itself and begins anew."""
        self.process = subprocess.Popen(
            ["fio", "--thread", "--name=raw", f"--filename={where}",
             "--rw=randwrite", "--direct=1",
             "--bs=512-64k", "--ioengine=psync", "--verify=crc32c", "--do_verify=1",
             "--verify_fatal=1", f"--size={RAW_SIZE}", f"--io_size={8 * MIB}",
             "--rate=2m", "--randrepeat=0", "--verify_state_save=0"],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
        )  # fmt: skip

    def ended_well(self) -> bool:
        """Whether the run that ended verified all that it wrote."""
        assert self.process is not None
        return self.process.returncode == 0

    def check(self, where: Path) -> int:
        return 0


def _hash(n: int) -> str:
    return hashlib.sha256(str(n).encode()).hexdigest()


def _content(n: int) -> bytes:
    return _hash(n).encode() * (1 + n % 200)


if __name__ == "__main__":
    works = {"sqlite": Sqlite.work, "files": Files.work}
    works[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
