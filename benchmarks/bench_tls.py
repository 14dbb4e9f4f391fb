# SPDX-License-Identifier: LGPL-2.1-or-later
"""What TLS costs: throughput of a stream, and one checkpoint.

The same resource over TCP on the loopback, with ``tls = "off"`` and with a
pre-shared key, interleaved round by round.  Acked from the page cache, so
that the wire and not a disk's flush is what is measured.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack

from _common import MIB, arguments, median_p99, plot, resource, table

SIZE = 64 * MIB
CHUNK = 256 * 1024
DATA = os.urandom(CHUNK)


def stream(primary, length: int) -> float:
    """Bytes a second, from the first write to the ack of all of them."""
    start = time.perf_counter()
    for at in range(0, length, CHUNK):
        primary.pwrite(0, DATA, at % SIZE)
    epoch = primary.postsuspend()
    primary.preresume(epoch, timeout_s=60)
    seconds = time.perf_counter() - start
    primary.commit(epoch)
    return length / seconds


def checkpoint(primary, length: int) -> float:
    if length:
        primary.pwrite(0, DATA[:length], 0)
    start = time.perf_counter()
    epoch = primary.postsuspend()
    primary.preresume(epoch, timeout_s=60)
    seconds = time.perf_counter() - start
    primary.commit(epoch)
    return seconds


def main() -> None:
    options = arguments(__doc__ or "")
    rounds, length = (15, 16 * MIB) if options.quick else (120, 64 * MIB)
    with ExitStack() as stack:
        sides = {
            name: stack.enter_context(
                resource(SIZE, ack="memory", export=False, tcp=True, tls=tls)
            ).primary
            for name, tls in (("off", False), ("psk", True))
        }
        rates: dict[str, list[float]] = {name: [] for name in sides}
        empty: dict[str, list[float]] = {name: [] for name in sides}
        small: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(rounds):
            for name, primary in sides.items():
                rates[name].append(stream(primary, length))
                for _ in range(10):
                    empty[name].append(checkpoint(primary, 0))
                    small[name].append(checkpoint(primary, 65536))
    rows, bars = [], {}
    for name in sides:
        rate = median_p99(rates[name])[0]
        parts = [median_p99(times[name]) for times in (empty, small)]
        bars[f"tls {name}"] = rate / MIB
        rows.append(
            [f"tls = {name}", f"{rate / MIB:.0f}"]
            + [f"{median * 1e6:.1f}" for median, _ in parts]
        )
    ratio = [
        median_p99(rates["psk"])[0] / median_p99(rates["off"])[0],
        *(
            median_p99(times["psk"])[0] / median_p99(times["off"])[0]
            for times in (empty, small)
        ),
    ]
    rows.append(["psk / off", *(f"{r:.2f}" for r in ratio)])
    table(["median", "MiB/s", "empty, us", "64 KiB, us"], rows)
    if options.plot:
        plot(options.plot, "Throughput over TCP", "MiB/s, median", bars)


if __name__ == "__main__":
    main()
