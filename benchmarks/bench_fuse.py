# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest's I/O through the FUSE node with the backup connected, and its peers.

fio, direct I/O, while a checkpoint is taken every 50 ms.  All take turns in
each round; figures are medians of the rounds, p99 is fio's own:

- bare: the same file without anything in between;
- node, node with TLS: each write also reaches the backup's journal and disk;
- QEMU's FUSE export and nbdkit with nbdfuse, where they are installed: a
  user-space node that replicates nothing;
- QEMU's block replication, where installed: replicates each write before it
  is answered; by fio's NBD engine, with a checkpoint at the end of each run.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import _qemu
from _common import (
    MIB,
    Figures,
    Resource,
    arguments,
    checkpoint,
    make_image,
    need,
    need_node,
    resource,
    table,
)

SIZE = 256 * MIB
JOBS = {
    "4 KiB random write, depth 1": ("randwrite", "4k", 1),
    "4 KiB random write, depth 32": ("randwrite", "4k", 32),
    "4 KiB random read, depth 32": ("randread", "4k", 32),
    "1 MiB sequential write, depth 4": ("write", "1m", 4),
}
# Operations a second, MiB a second, p99 of an operation in milliseconds.
Result = tuple[float, float, float]
Job = tuple[str, str, int]


def fio(target: list[str], job: Job, seconds: float) -> Result:
    rw, bs, depth = job
    out = subprocess.run(
        ["fio", "--name=bench", *target, f"--rw={rw}", f"--bs={bs}",
         f"--iodepth={depth}", f"--size={SIZE}", "--time_based",
         f"--runtime={seconds}", "--output-format=json", "--thread"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True,
    )  # fmt: skip
    # An engine may print above the JSON.
    found = json.loads(out.stdout[out.stdout.index("{") :])
    done = found["jobs"][0]["read" if "read" in rw else "write"]
    p99 = done["clat_ns"]["percentile"]["99.000000"] / 1e6
    return done["iops"], done["bw_bytes"] / MIB, p99


def file(path: Path) -> list[str]:
    return [f"--filename={path}", "--ioengine=libaio", "--direct=1"]


def nbdfuse(stack: ExitStack, folder: Path) -> Path:
    """nbdkit's file plugin behind nbdfuse."""
    image, node = make_image(folder / "nbdkit.img", SIZE), folder / "nbdfuse"
    node.touch()
    process = subprocess.Popen(
        ["nbdfuse", str(node), "[", "nbdkit", "--exit-with-parent", "file",
         str(image), "]"],
        stdin=subprocess.DEVNULL,
    )  # fmt: skip

    def end() -> None:
        subprocess.run(["fusermount3", "-u", str(node)], check=False)
        process.terminate()
        process.wait()

    stack.callback(end)
    _qemu.wait_for_size(node, SIZE, process)
    return node


def checkpoints(stack: ExitStack, resources: list[Resource]) -> None:
    """Take one on each every 50 ms until the end."""
    stop = threading.Event()

    def take() -> None:
        while not stop.wait(0.05):
            for res in resources:
                checkpoint(res.primary)

    taker = threading.Thread(target=take)
    taker.start()
    stack.callback(taker.join)
    stack.callback(stop.set)


def variants(
    stack: ExitStack, folder: Path, resources: list[Resource]
) -> dict[str, Callable[[Job, float], Result]]:
    """Each name and what runs fio on it."""

    def on(path: Path) -> Callable[[Job, float], Result]:
        return lambda job, seconds: fio(file(path), job, seconds)

    made = {"bare": on(make_image(folder / "bare.img", SIZE))}
    for name, tls in (("node", False), ("node with TLS", True)):
        res = stack.enter_context(resource(SIZE, export=True, tcp=True, tls=tls))
        assert res.node is not None
        resources.append(res)
        made[name] = on(res.node)
    if _qemu.there():
        image = make_image(folder / "qemu.img", SIZE)
        node = stack.enter_context(_qemu.fuse_export(image, folder / "qemu-node"))
        made["QEMU FUSE export"] = on(node)
    if shutil.which("nbdfuse") and shutil.which("nbdkit"):
        made["nbdkit + nbdfuse"] = on(nbdfuse(stack, folder))
    if _qemu.there():
        pair = stack.enter_context(_qemu.block_replication(folder / "pair", SIZE))

        def replicated(job: Job, seconds: float) -> Result:
            result = fio(["--ioengine=nbd", f"--uri={pair.uri}"], job, seconds)
            pair.checkpoint()
            return result

        made["QEMU block replication"] = replicated
    return made


def main() -> None:
    options = arguments(__doc__ or "")
    need("fio")
    need_node()
    seconds, rounds = (1.0, 1) if options.quick else (3.0, 7)
    results: dict[tuple[str, str], list[Result]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(options.folder()))
        resources: list[Resource] = []
        made = variants(stack, folder, resources)
        checkpoints(stack, resources)
        for _ in range(rounds):
            for job, what in JOBS.items():
                for name, run in made.items():
                    got = run(what, seconds)
                    results.setdefault((job, name), []).append(got)
        for name, res in zip(("node", "node with TLS"), resources, strict=True):
            print(f"{name}: {res.primary.status().stalls} writes waited for room")
    report(results, list(made), options.figures("fuse"))


def report(
    results: dict[tuple[str, str], list[Result]], names: list[str], figures: Figures
) -> None:
    rows, bars = [], {}
    for job in JOBS:
        bare = statistics.median(r[0] for r in results[job, "bare"])
        for name in names:
            ops, mib, p99 = (
                statistics.median(r[i] for r in results[job, name]) for i in range(3)
            )
            rows.append([f"{job}: {name}", f"{ops:.0f}", f"{mib:.0f}", f"{p99:.2f}",
                         f"{ops / bare:.2f}"])  # fmt: skip
            bars[f"{job}: {name}"] = ops / bare
    head = ["", "op/s", "MiB/s", "p99 ms", "/ bare"]
    table(head, rows)
    figures.keep(rows=[dict(zip(["what", *head[1:]], r, strict=True)) for r in rows])
    figures.bars("A guest's I/O, the bare file = 1", "operations / bare", bars)


if __name__ == "__main__":
    main()
