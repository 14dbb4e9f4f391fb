# SPDX-License-Identifier: LGPL-2.1-or-later
"""Disk I/O through the FUSE node with the backup connected, and on the bare file.

fio, direct I/O: 4 KiB random writes at queue depth 32, and 1 MiB sequential
writes at queue depth 4, while a checkpoint is taken every 50 ms.  The bare
file and the node take turns; each figure is the median of the rounds.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
from pathlib import Path

from _common import MIB, arguments, plot, resource, table

SIZE = 256 * MIB
JOBS = {
    "4 KiB random write": ("randwrite", "4k", 32),
    "1 MiB sequential write": ("write", "1m", 4),
}


def fio(
    path: Path, rw: str, bs: str, depth: int, seconds: float
) -> tuple[float, float]:
    """Operations and MiB a second."""
    out = subprocess.run(
        ["fio", "--name=bench", f"--filename={path}", f"--rw={rw}", f"--bs={bs}",
         f"--iodepth={depth}", "--ioengine=libaio", "--direct=1", f"--size={SIZE}",
         "--time_based", f"--runtime={seconds}", "--output-format=json", "--thread"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True,
    )  # fmt: skip
    write = json.loads(out.stdout)["jobs"][0]["write"]
    return write["iops"], write["bw_bytes"] / MIB


def main() -> None:
    options = arguments(__doc__ or "")
    if shutil.which("fio") is None:
        sys.exit("bench_fuse: fio is missing: apt-get install fio")
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        sys.exit("bench_fuse: needs root and /dev/fuse")
    seconds, rounds = (1.0, 1) if options.quick else (5.0, 5)
    with resource(SIZE, export=True) as res:
        assert res.node is not None
        bare = res.folder / "bare.img"
        with bare.open("wb") as image:
            for _ in range(SIZE // MIB):
                image.write(bytes(MIB))
        stop = threading.Event()

        def checkpoints() -> None:
            while not stop.wait(0.05):
                epoch = res.primary.postsuspend()
                res.primary.preresume(epoch, timeout_s=60)
                res.primary.commit(epoch)

        taker = threading.Thread(target=checkpoints)
        taker.start()
        results: dict[tuple[str, str], list[tuple[float, float]]] = {}
        try:
            for _ in range(rounds):
                for job, (rw, bs, depth) in JOBS.items():
                    for where, path in (("bare", bare), ("node", res.node)):
                        got = fio(path, rw, bs, depth, seconds)
                        results.setdefault((job, where), []).append(got)
        finally:
            stop.set()
            taker.join()
        stalls = res.primary.status().stalls
    rows, bars = [], {}
    for job in JOBS:
        ops = {w: statistics.median(r[0] for r in results[job, w])
               for w in ("bare", "node")}  # fmt: skip
        mib = {w: statistics.median(r[1] for r in results[job, w])
               for w in ("bare", "node")}  # fmt: skip
        rows.append(
            [job, f"{ops['bare']:.0f}", f"{ops['node']:.0f}", f"{mib['bare']:.0f}",
             f"{mib['node']:.0f}", f"{ops['node'] / ops['bare']:.2f}"]
        )  # fmt: skip
        for where in ("bare", "node"):
            bars[f"{job}, {where}"] = mib[where]
    table(
        ["", "bare op/s", "node op/s", "bare MiB/s", "node MiB/s", "node/bare"], rows
    )
    print(f"writes that waited for room: {stalls}")
    if options.plot:
        plot(options.plot, "Through the FUSE node", "MiB/s, median", bars)


if __name__ == "__main__":
    main()
