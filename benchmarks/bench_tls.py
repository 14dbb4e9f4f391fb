# SPDX-License-Identifier: LGPL-2.1-or-later
"""What TLS costs: throughput of a stream, and one checkpoint.

The same resource over TCP on the loopback, with ``tls = "off"`` and with a
pre-shared key, interleaved round by round, each first in every other one, and
each only once the other has applied all that it was sent.  The ratios are
medians of those of the rounds.  Acked from the page cache, so that the wire
and not a disk's flush is what is measured.
"""

from __future__ import annotations

import os
import statistics
import time
from contextlib import ExitStack

from _common import MIB, arguments, checkpoint, resource, table

from remus_native import Primary

SIZE = 64 * MIB
CHUNK = 256 * 1024
DATA = os.urandom(CHUNK)


def stream(primary: Primary, length: int) -> float:
    """Seconds from the first write to the ack of all of them."""
    start = time.perf_counter()
    for at in range(0, length, CHUNK):
        primary.pwrite(0, DATA, at % SIZE)
    epoch = primary.postsuspend()
    primary.preresume(epoch, timeout_s=60)
    seconds = time.perf_counter() - start
    primary.commit(epoch)
    while primary.status().applied_epoch < epoch:
        time.sleep(0.002)
    return seconds


def of_length(primary: Primary, length: int) -> float:
    if length:
        primary.pwrite(0, DATA[:length], 0)
    return checkpoint(primary)[1]


def one_round(primary: Primary, length: int) -> tuple[float, float, float]:
    """Seconds: of a stream, an empty checkpoint, one of 64 KiB."""
    long = stream(primary, length)
    pairs = [(of_length(primary, 0), of_length(primary, 65536)) for _ in range(20)]
    return (
        long,
        statistics.median(empty for empty, _ in pairs),
        statistics.median(small for _, small in pairs),
    )


def main() -> None:
    options = arguments(__doc__ or "")
    rounds, length = (16, 16 * MIB) if options.quick else (120, 64 * MIB)
    with ExitStack() as stack:
        sides = [
            stack.enter_context(
                resource(SIZE, ack="memory", export=False, tcp=True, tls=tls)
            ).primary
            for tls in (False, True)
        ]
        print(f"psk: {sides[1].status().security}")
        found: list[list[tuple[float, float, float]]] = [[], []]
        for i in range(rounds):
            for which in (i % 2, 1 - i % 2):
                found[which].append(one_round(sides[which], length))
    rows, bars = [], {}
    for name, times in zip(("off", "psk"), found, strict=True):
        long, empty, small = (
            statistics.median(one) for one in zip(*times, strict=True)
        )
        bars[f"tls {name}"] = length / long / MIB
        rows.append([f"tls = {name}", f"{length / long / MIB:.0f}",
                     f"{empty * 1e6:.1f}", f"{small * 1e6:.1f}"])  # fmt: skip
    ratios = [
        statistics.median(
            with_tls / without for with_tls, without in zip(*pair, strict=True)
        )
        for pair in zip(
            zip(*found[1], strict=True), zip(*found[0], strict=True), strict=True
        )
    ]
    rows.append(
        ["psk / off", f"{1 / ratios[0]:.2f}", *(f"{r:.2f}" for r in ratios[1:])]
    )
    head = ["median", "MiB/s", "empty, us", "64 KiB, us"]
    table(head, rows)
    figures = options.figures("tls")
    figures.keep(rows=[dict(zip(head, row, strict=True)) for row in rows])
    figures.bars("Throughput over TCP", "MiB/s, median", bars)


if __name__ == "__main__":
    main()
