# SPDX-License-Identifier: LGPL-2.1-or-later
"""What one checkpoint costs: postsuspend + preresume + commit.

Empty epochs and epochs of 1 MiB (16 writes of 64 KiB), acked from the page
cache and from stable storage, in process and through the ioctls of the FUSE
node.  All variants run interleaved, round by round; the peer is a plain
round trip between two processes over a Unix socket, which no engine with a
backup in another process can beat.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

from _common import MIB, Figures, arguments, median_p99, resource, round_trip, table

from remus_native import DrbdDisk

SIZE = 64 * MIB
CHUNK = 65536
DATA = os.urandom(CHUNK)


def round_trip_peer(stack: ExitStack) -> Callable[[], tuple[float, float, float]]:
    there_and_back = round_trip(stack)
    return lambda: (0.0, there_and_back(), 0.0)


def main() -> None:
    options = arguments(__doc__ or "")
    rounds = 150 if options.quick else 2000
    with ExitStack() as stack:
        # Forked first, while this process has one thread.
        variants: dict[str, Callable[[], tuple[float, float, float]]] = {
            "round trip to another process": round_trip_peer(stack)
        }
        can_mount = os.geteuid() == 0 and os.path.exists("/dev/fuse")
        for ack in ("memory", "durable"):
            res = stack.enter_context(resource(SIZE, ack=ack, export=can_mount))
            for length, name in ((0, "empty"), (MIB, "1 MiB")):
                variants[f"{ack}, {name}, in process"] = in_process(res, length)
                if can_mount:
                    variants[f"{ack}, {name}, ioctls"] = ioctls(stack, res, length)
        times: dict[str, list[tuple[float, float, float]]] = {n: [] for n in variants}
        for _ in range(rounds):
            for name, once in variants.items():
                times[name].append(once())
        report(times, options.figures("epoch"))
    assert threading.active_count() == 1


def in_process(res, length):
    offset = 0

    def once() -> tuple[float, float, float]:
        nonlocal offset
        for at in range(0, length, CHUNK):
            res.primary.pwrite(0, DATA, (offset + at) % SIZE)
        offset += length
        clock = time.perf_counter
        start = clock()
        epoch = res.primary.postsuspend()
        closed = clock()
        res.primary.preresume(epoch, timeout_s=30)
        acked = clock()
        res.primary.commit(epoch)
        return closed - start, acked - closed, clock() - acked

    return once


def ioctls(stack, res, length):
    disk = stack.enter_context(DrbdDisk(res.node))
    fd = os.open(res.node, os.O_RDWR)
    stack.callback(os.close, fd)
    offset = 0

    def once() -> tuple[float, float, float]:
        nonlocal offset
        for at in range(0, length, CHUNK):
            os.pwrite(fd, DATA, (offset + at) % SIZE)
        offset += length
        clock = time.perf_counter
        start = clock()
        disk.postsuspend()
        closed = clock()
        disk.preresume(timeout_s=30)
        acked = clock()
        disk.commit()
        return closed - start, acked - closed, clock() - acked

    return once


def report(times: dict[str, list[tuple[float, float, float]]], figures: Figures):
    rows, bars = [], {}
    peer = median_p99([sum(t) for t in next(iter(times.values()))])[0]
    for name, values in times.items():
        total, p99 = median_p99([sum(t) for t in values])
        parts = [median_p99([t[i] for t in values])[0] for i in range(3)]
        bars[name] = total * 1e6
        rows.append(
            [name]
            + [f"{part * 1e6:.1f}" for part in parts]
            + [f"{total * 1e6:.1f}", f"{p99 * 1e6:.1f}", f"{total / peer:.2f}"]
        )
    head = ["us, median", "postsuspend", "preresume", "commit", "all", "p99", "ratio"]
    table(head, rows)
    figures.keep(rows=[dict(zip(head, row, strict=True)) for row in rows])
    figures.bars("One checkpoint", "microseconds, median", bars)


if __name__ == "__main__":
    main()
