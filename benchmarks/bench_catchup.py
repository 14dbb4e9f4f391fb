# SPDX-License-Identifier: LGPL-2.1-or-later
"""Loss and return: how soon a loss is noticed, how fast a catch-up is, how
long no checkpoint can be taken, and how long a promote takes.

Rounds of: kill the backup; write while it is away; start it again; wait
until a session's checkpoint succeeds.  The peer is a plain copy of the same
blocks from one file to another with an fsync at the end, in the same round.
A promote is measured with that much prepared and uncommitted, from the call
to its end, against the same copy.
"""

from __future__ import annotations

import os
import signal
import time

from _common import MIB, arguments, median_p99, resource, table

from remus_native import Backup, ReplicationLost, Volume

BLOCK = 256 * 1024


def until(true) -> float:
    start = time.perf_counter()
    while not true():
        time.sleep(0.0005)
    return time.perf_counter() - start


def noticed(res, number: int) -> float:
    """Seconds from a signal to the backup until the primary has noticed."""
    res.process.send_signal(number)
    seconds = until(lambda: not res.primary.status().connected)
    res.kill_backup()
    return seconds


def returned(res) -> tuple[float, float]:
    """Seconds until a checkpoint succeeds: from its start, and of no
    checkpoint since it was connected."""
    start = time.perf_counter()
    res.start_backup()
    until(lambda: res.primary.status().connected)
    connected = time.perf_counter()
    while True:
        try:
            epoch = res.primary.postsuspend()
            res.primary.preresume(epoch, timeout_s=120)
        except ReplicationLost:
            time.sleep(0.0005)
            continue
        now = time.perf_counter()
        res.primary.commit(epoch)
        return now - start, now - connected


def plain_copy(folder, places: list[int]) -> float:
    start = time.perf_counter()
    with (
        (folder / "primary.img").open("rb", buffering=0) as source,
        (folder / "copy.img").open("w+b", buffering=0) as to,
    ):
        for at in places:
            os.pwrite(to.fileno(), os.pread(source.fileno(), BLOCK, at), at)
        os.fsync(to.fileno())
    return time.perf_counter() - start


def main() -> None:
    options = arguments(__doc__ or "")
    rounds, size = (2, 128 * MIB) if options.quick else (7, 1024 * MIB)
    changed = size // 4
    kills, stops, caught, gaps, copies = [], [], [], [], []
    with resource(size, export=False, journal=2 * size) as res:
        for turn in range(rounds):
            kills.append(noticed(res, signal.SIGKILL))
            places = [(turn * BLOCK + at) % size for at in range(0, changed, BLOCK)]
            for at in places:
                res.primary.pwrite(0, os.urandom(4096) * (BLOCK // 4096), at)
            copies.append(plain_copy(res.folder, places))
            _, gap = returned(res)
            caught.append(res.primary.status().resync_total / gap)
            gaps.append(gap)
        for _ in range(1 if options.quick else 3):
            stops.append(noticed(res, signal.SIGSTOP))
            returned(res)
        # One epoch, prepared and not committed; then the primary is gone.
        for at in range(0, size, BLOCK):
            res.primary.pwrite(0, os.urandom(4096) * (BLOCK // 4096), at)
        epoch = res.primary.postsuspend()
        res.primary.preresume(epoch, timeout_s=300)
        copy = plain_copy(res.folder, list(range(0, size, BLOCK)))
        res.primary.close()
        res.kill_backup()
        start = time.perf_counter()
        with Backup(
            "bench",
            state_dir=res.folder / "backup",
            volumes=[Volume("disk", res.folder / "backup.img")],
            journal_bytes=2 * size,
        ) as backup:
            opened = time.perf_counter() - start
            start = time.perf_counter()
            assert backup.promote(epoch) == epoch
            promote = time.perf_counter() - start
    rate = changed / median_p99(copies)[0]
    head = ["what", "median", "against a plain copy"]
    rows = [
        ["a killed backup is noticed", f"{median_p99(kills)[0] * 1e3:.1f} ms", ""],
        ["a stopped one (loss = 3 s)", f"{median_p99(stops)[0]:.2f} s", ""],
        [
            f"catch-up of {changed // MIB} MiB",
            f"{median_p99(caught)[0] / MIB:.0f} MiB/s",
            f"{median_p99(caught)[0] / rate:.2f}",
        ],
        ["no checkpoint meanwhile", f"{median_p99(gaps)[0]:.2f} s", ""],
        [
            f"reading the journal, {size // MIB} MiB prepared",
            f"{opened:.2f} s",
            f"{copy / opened:.2f}",
        ],
        ["promote to it", f"{promote:.2f} s", f"{copy / promote:.2f}"],
    ]
    table(head, rows)
    options.figures("catchup").keep(
        rows=[dict(zip(head, row, strict=True)) for row in rows]
    )


if __name__ == "__main__":
    main()
