# SPDX-License-Identifier: LGPL-2.1-or-later
"""What waiting for the acks of a guest's disks costs, and what forking costs.

A checkpoint (barrier on every disk, then every ack) of 1 to 8 disks whose node
acks at once, in parents of different size: a bare ioctl pair in C, the C
group, the Python layer, its asyncio form, plain Python with a pool of threads,
and a child process for each disk, which is how libxl waits.  All interleaved,
round by round.  And what a phase costs in Python beyond the C call, on a
device that returns at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from _common import arguments, median_p99, plot, table

from remus_native import AsyncCheckpointDevices, CheckpointDevices, DrbdDisk

ROOT = Path(__file__).resolve().parent.parent
DISKS = (1, 2, 4, 8)
C_WAYS = {"raw ioctls, C": "raw", "group, C": "group", "fork per disk, C": "fork"}
PYTHON_WAYS = ("layer, Python", "layer, asyncio", "fcntl and thread pool, Python")


# ---- the Python side, a process of its own ----------------------------------------


def run_sync(nodes: list[str], epochs: int) -> list[int]:
    clock = time.perf_counter_ns
    times = []
    with CheckpointDevices(map(DrbdDisk, nodes)) as devices:
        for _ in range(epochs):
            start = clock()
            devices.postsuspend()
            devices.preresume(5)
            times.append(clock() - start)
    return times


def run_async(nodes: list[str], epochs: int) -> list[int]:
    async def main() -> list[int]:
        clock = time.perf_counter_ns
        times = []
        async with AsyncCheckpointDevices(map(DrbdDisk, nodes)) as devices:
            for _ in range(epochs):
                start = clock()
                await devices.postsuspend()
                await devices.preresume(5)
                times.append(clock() - start)
        return times

    return asyncio.run(main())


def run_pool(nodes: list[str], epochs: int) -> list[int]:
    clock = time.perf_counter_ns
    times = []
    fds = [os.open(node, os.O_RDONLY) for node in nodes]

    def wait(fd: int) -> int:
        return fcntl.ioctl(fd, 30)

    with ThreadPoolExecutor(len(fds)) as pool:
        for _ in range(epochs):
            start = clock()
            for fd in fds:
                fcntl.ioctl(fd, 20)
            list(pool.map(wait, fds))
            times.append(clock() - start)
    for fd in fds:
        os.close(fd)
    return times


def run_null(nodes: list[str], epochs: int) -> list[int]:
    """Nanoseconds of the three phases together, a thousand times each."""
    from remus_native._core import ffi, lib

    class Null:
        kind, name, timeout_s, _may_block = "nic", "null", 5, False

        def _join_group(self, group) -> int:
            ops = lib.remus_test_null_ops()
            return lib.remus_group_add_device(group.raw, b"null", ops, ffi.NULL)

        def setup(self) -> None:
            pass

    clock = time.perf_counter_ns
    times = []
    with CheckpointDevices([Null()]) as devices:
        for _ in range(epochs):
            start = clock()
            for _ in range(1000):
                devices.postsuspend()
                devices.preresume(5)
                devices.commit()
            times.append((clock() - start) // 1000)
    return times


def serve(mib: str, *nodes: str) -> None:
    resident = bytearray(int(mib) << 20)
    for at in range(0, len(resident), 4096):
        resident[at] = 1
    ways: dict[str, Callable[[list[str], int], list[int]]] = {
        "sync": run_sync,
        "async": run_async,
        "pool": run_pool,
        "null": run_null,
    }
    for line in sys.stdin:
        way, count, epochs = line.split()
        times = ways[way](list(nodes)[: int(count)], int(epochs))
        print(*times, flush=True)


# ---- what drives them --------------------------------------------------------------


def compile_c(folder: Path, source: str, *flags: str) -> Path:
    program = folder / Path(source).stem
    fuse = subprocess.check_output(
        ["pkg-config", "--cflags", "--libs", "fuse3"], text=True
    )
    subprocess.run(
        ["gcc", "-std=c11", "-D_GNU_SOURCE", "-O2", "-pthread", "-iquote",
         str(ROOT / "csrc"), str(ROOT / source), "-o", str(program), *flags,
         *shlex.split(fuse)],
        check=True,
    )  # fmt: skip
    return program


@contextlib.contextmanager
def worker(*command: str | Path) -> Iterator[Callable[[str, int, int], list[int]]]:
    """A process that measures on demand."""
    with subprocess.Popen(
        [str(part) for part in command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def ask(way: str, disks: int, epochs: int) -> list[int]:
            process.stdin.write(f"{way} {disks} {epochs}\n")
            process.stdin.flush()
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"{command[0]} ended")
            return [int(word) for word in line.split()]

        try:
            yield ask
        finally:
            process.kill()


@contextlib.contextmanager
def nodes(folder: Path) -> Iterator[list[str]]:
    """As many nodes as there are disks at most; each acks at once."""
    program = compile_c(folder, "tests/c/ioctl_node.c")
    with ExitStack() as stack:
        made = []
        for i in range(max(DISKS)):
            mount = folder / f"node{i}"
            mount.mkdir()
            process = stack.enter_context(
                subprocess.Popen(
                    [program, mount], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
                )
            )
            stack.callback(process.terminate)
            assert process.stdout is not None
            if process.stdout.readline() != b"ready\n":
                raise RuntimeError("a node did not start")
            for number in (20, 30, 40):
                (mount / "control").write_text(f"{number}=0")
            made.append(str(mount / "disk"))
        yield made


def main() -> None:
    options = arguments(__doc__ or "")
    if os.geteuid() or not os.path.exists("/dev/fuse"):
        sys.exit("bench_group.py needs root and /dev/fuse")
    rounds, epochs = (4, 10) if options.quick else (20, 25)
    sizes = (0, 256) if options.quick else (0, 256, 1024)
    subprocess.run(["make", "-s", "lib"], cwd=ROOT, check=True, stdout=sys.stderr)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory("-remus")))
        disks = stack.enter_context(nodes(folder))
        peers = compile_c(
            folder, "benchmarks/group_peers.c", str(ROOT / "build/libremus_native.a")
        )
        bars: dict[str, float] = {}
        for mib in sizes:
            with (
                worker(peers, str(mib), *disks) as in_c,
                worker(sys.executable, __file__, str(mib), *disks) as in_python,
            ):
                compare(mib, rounds, epochs, in_c, in_python, bars)
                if not mib:
                    overhead(rounds, in_c, in_python)
    if options.plot:
        plot(options.plot, "A checkpoint of 4 disks", "microseconds, median", bars)


def compare(mib, rounds, epochs, in_c, in_python, bars) -> None:
    python_ways = dict(zip(PYTHON_WAYS, ("sync", "async", "pool"), strict=True))
    times: dict[tuple[str, int], list[int]] = {}
    for _ in range(rounds):
        for count in DISKS:
            for name, way in C_WAYS.items():
                # A fork of a large process takes long: a few are enough.
                some = max(2, epochs // 5) if way == "fork" else epochs
                times.setdefault((name, count), []).extend(in_c(way, count, some))
            for name, way in python_ways.items():
                times.setdefault((name, count), []).extend(
                    in_python(way, count, epochs)
                )
    names = ["raw ioctls, C", "group, C", *PYTHON_WAYS, "fork per disk, C"]
    rows = []
    for name in names:
        row = [name]
        for count in DISKS:
            mine = median_p99(times[name, count])[0]
            raw = median_p99(times["raw ioctls, C", count])[0]
            row += [f"{mine / 1000:.1f}", f"{mine / raw:.2f}"]
        bars[f"{name}, {mib} MiB"] = median_p99(times[name, 4])[0] / 1000
        rows.append(row)
    head = [f"us, median; parent of {mib} MiB"]
    for count in DISKS:
        head += [f"{count} disk{'s' * (count > 1)}", "ratio"]
    table(head, rows)
    forked = bars[f"fork per disk, C, {mib} MiB"]
    print(
        f"4 disks: the C group takes 1/{forked / bars[f'group, C, {mib} MiB']:.0f} "
        f"of a fork per disk, Python 1/"
        f"{forked / bars[f'layer, Python, {mib} MiB']:.0f}\n"
    )


def overhead(rounds, in_c, in_python) -> None:
    c, python = [], []
    for _ in range(rounds):
        c += in_c("null", 1, 5)
        python += in_python("null", 1, 5)
    print(
        f"a device that returns at once, three phases: {median(c):.0f} ns in C, "
        f"{median(python):.0f} ns in Python: "
        f"{(median(python) - median(c)) / 3:.0f} ns more a call\n"
    )


if __name__ == "__main__":
    if len(sys.argv) > 2 and sys.argv[1].isdigit():
        serve(*sys.argv[1:])
    else:
        main()
