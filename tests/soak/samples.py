# SPDX-License-Identifier: LGPL-2.1-or-later
"""What both sides take of the machine while the soak goes on, and a picture."""

from __future__ import annotations

import csv
import os
import statistics
import threading
import time
from pathlib import Path

from hosts import MIB, QUEUE, Failed, Hosts, children

FIELDS = ["seconds", "role", "pid", "rss_kib", "anonymous_kib", "shared_kib"]
FIELDS += ["threads", "descriptors", "journal_bytes"]
TITLES = ["memory, MiB", "threads", "descriptors", "journal, MiB"]
SETTLED_S = 10.0  # of a process: until then it still fills what it keeps
#: How much more the last part of a soak may take than the first, and the
#: slack for what comes and goes.
GROWTH, SLACK = 1.5, {"anonymous_kib": 16384, "threads": 6, "descriptors": 16}
#: Shared memory has its size from the start and fills as it is used: the send
#: queue, which is mapped twice, the slots of 256 requests of a MiB in the
#: background, and some pages of each other slot.  Growth up to there says how
#: far the queue went round and nothing else; it must not go beyond.
SHARED_KIB = (2 * QUEUE + 256 * (MIB + 8192) + 1024 * 3 * 4096 + 16 * MIB) // 1024


class Samples(threading.Thread):
    """A row a second for each side, into a table."""

    def __init__(self, hosts: Hosts, table: Path) -> None:
        super().__init__(daemon=True)
        self.hosts, self.table = hosts, table
        self.rows: list[dict[str, float | str]] = []
        self.over = threading.Event()

    def run(self) -> None:
        began = time.monotonic()
        born: dict[int, float] = {}
        with self.table.open("w", newline="", encoding="utf-8") as file:
            out = csv.DictWriter(file, FIELDS)
            out.writeheader()
            while not self.over.wait(1.0):
                for side, process in list(self.hosts.processes.items()):
                    pid = (children(process.pid) or [process.pid])[0]  # its server
                    row = self._row(side, pid)
                    now = time.monotonic()
                    if row is None:
                        continue
                    if now - born.setdefault(pid, now) >= SETTLED_S:
                        row["seconds"] = round(now - began, 1)
                        self.rows.append(row)
                        out.writerow(row)
                        file.flush()

    def _row(self, side: str, pid: int) -> dict[str, float | str] | None:
        try:
            status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
            facts = dict(
                line.split(":", 1) for line in status.splitlines() if ":" in line
            )
            if "VmRSS" not in facts:
                return None
            answer = self.hosts.status(side)
            return {
                "role": str(answer.get("role", "")),
                "pid": pid,
                "rss_kib": int(facts["VmRSS"].split()[0]),
                "anonymous_kib": int(facts["RssAnon"].split()[0]),
                "shared_kib": int(facts["RssShmem"].split()[0]),
                "threads": int(facts["Threads"]),
                "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
                "journal_bytes": int(answer.get("journal_bytes", 0)),
            }
        except (OSError, ValueError):
            return None  # it was killed meanwhile

    def stop(self) -> None:
        self.over.set()
        self.join()

    def check(self, journal: int) -> list[str]:
        """What grew, as an error; else what was seen, in words."""
        words = []
        for role in ("primary", "backup"):
            rows = [row for row in self.rows if row["role"] == role]
            quarter = len(rows) // 4
            for name in SLACK:
                if quarter < 5:
                    continue
                first = statistics.median(float(r[name]) for r in rows[:quarter])
                last = statistics.median(float(r[name]) for r in rows[-quarter:])
                words.append(f"{role} {name}: {first:.0f} -> {last:.0f}")
                if last > first * GROWTH + SLACK[name]:
                    raise Failed(f"{name} of the {role} grew from {first} to {last}")
            shared = max((float(row["shared_kib"]) for row in rows), default=0.0)
            words.append(f"{role} shared_kib: at most {shared:.0f} of {SHARED_KIB}")
            if shared > SHARED_KIB:
                raise Failed(f"the {role} shares {shared:.0f} KiB of memory")
            most = max((float(row["journal_bytes"]) for row in rows), default=0.0)
            if most > journal:
                raise Failed(f"the journal of the {role} held {most:.0f} bytes")
        return words

    def draw(self, picture: Path) -> bool:
        """As a picture, where matplotlib is installed."""
        try:
            import matplotlib

            matplotlib.use("Agg")
            from matplotlib import pyplot
        except ImportError:
            return False
        figure, axes = pyplot.subplots(4, 1, sharex=True, figsize=(9, 9))
        for role in ("primary", "backup"):
            rows = [row for row in self.rows if row["role"] == role]
            at = [float(row["seconds"]) / 60 for row in rows]
            series = [
                [float(row["rss_kib"]) / 1024 for row in rows],
                [float(row["threads"]) for row in rows],
                [float(row["descriptors"]) for row in rows],
                [float(row["journal_bytes"]) / 2**20 for row in rows],
            ]
            for axis, title, values in zip(axes, TITLES, series, strict=True):
                axis.plot(at, values, ".", markersize=3, label=role)
                axis.set_ylabel(title)
                axis.set_ylim(bottom=0)
        axes[0].legend()
        axes[-1].set_xlabel("minutes")
        figure.tight_layout()
        figure.savefig(picture)
        pyplot.close(figure)
        return True
