# SPDX-License-Identifier: LGPL-2.1-or-later
"""What waiting for the acks of a guest's disks costs, and what forking costs.

A checkpoint (barrier on every disk, then every ack) of 1 to 8 disks whose node
acks at once, in parents of different size: a bare ioctl pair in C, the C
group, the Python layer, its asyncio form, plain Python with a pool of threads,
and a child process for each disk, which is how libxl waits.  All interleaved,
round by round; then the same with nodes whose acks take 200 us, where waits
that overlap cost the slowest disk and others the sum.  And what a phase costs
in Python beyond the C call, on a device that returns at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
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
from typing import Any

from _common import arguments, median_p99, need_node, save, table

from remus_native import AsyncCheckpointDevices, CheckpointDevices, DrbdDisk

ROOT = Path(__file__).resolve().parent.parent
DISKS = (1, 2, 4, 8)
ACK_US = 200
C_WAYS = {"raw ioctls, C": "raw", "group, C": "group", "fork per disk, C": "fork"}
PYTHON_WAYS = ("layer, Python", "layer, asyncio", "fcntl and thread pool, Python")
WAYS = ("raw ioctls, C", "group, C", *PYTHON_WAYS, "fork per disk, C")
Medians = dict[tuple[str, int], float]  # microseconds by way and number of disks


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

    library = ctypes.CDLL(os.environ["NULL_DEVICE"])
    where = ctypes.addressof(ctypes.c_char.in_dll(library, "null_ops"))

    class Null:
        kind, name, timeout_s, _may_block = "nic", "null", 5, False

        def _join_group(self, group) -> int:
            ops = ffi.cast("struct remus_device_ops *", where)
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
    libraries = subprocess.check_output(
        ["pkg-config", "--cflags", "--libs", "fuse3", "gnutls"], text=True
    )
    subprocess.run(
        ["gcc", "-std=c11", "-D_GNU_SOURCE", "-O2", "-pthread", "-iquote",
         str(ROOT / "csrc"), str(ROOT / source), "-o", str(program), *flags,
         *shlex.split(libraries)],
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
def nodes(folder: Path) -> Iterator[tuple[list[str], list[str]]]:
    """Nodes that ack at once, and as many that take ACK_US."""
    driver = str(ROOT / "tests/c/protocol_d.c")
    program = compile_c(folder, "tests/c/ioctl_node.c", driver)
    with ExitStack() as stack:
        made = []
        for i in range(2 * max(DISKS)):
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
            late = ACK_US / 1000 if i >= max(DISKS) else 0
            for number in (20, 30, 40):
                delay = late if number == 30 else 0
                (mount / "control").write_text(f"{number}=0:{delay}")
            made.append(str(mount / "disk"))
        yield made[: max(DISKS)], made[max(DISKS) :]


def main() -> None:
    options = arguments(__doc__ or "")
    need_node()
    rounds, epochs = (4, 10) if options.quick else (20, 25)
    sizes = (0, 256) if options.quick else (0, 256, 1024)
    subprocess.run(["make", "-s", "lib"], cwd=ROOT, check=True, stdout=sys.stderr)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory("-remus")))
        at_once, late = stack.enter_context(nodes(folder))
        peers = compile_c(
            folder, "benchmarks/group_peers.c", str(ROOT / "build/libremus_native.a")
        )
        os.environ["NULL_DEVICE"] = str(
            compile_c(folder, "benchmarks/null_device.c", "-shared", "-fPIC")
        )
        medians: dict[int, Medians] = {}
        for mib in sizes:
            with both(peers, mib, at_once) as (in_c, in_python):
                what = f"parent of {mib} MiB"
                medians[mib] = compare(what, rounds, epochs, in_c, in_python)
                if not mib:
                    overhead(rounds, in_c, in_python)
        with both(peers, 0, late) as (in_c, in_python):
            what = f"acks take {ACK_US} us"
            slow = compare(what, rounds, epochs, in_c, in_python)
    goals(medians, slow)
    options.figures("group").keep(
        medians=[
            {"parent_mib": mib, "way": way, "disks": disks, "us": us}
            for mib, each in medians.items()
            for (way, disks), us in each.items()
        ]
    )
    if options.plot:
        draw(options.plot, medians)


@contextlib.contextmanager
def both(peers: Path, mib: int, disks: list[str]) -> Iterator[tuple[Any, Any]]:
    """A process of C and one of Python, each with ``mib`` MiB resident."""
    with (
        worker(peers, str(mib), *disks) as in_c,
        worker(sys.executable, __file__, str(mib), *disks) as in_python,
    ):
        yield in_c, in_python


def compare(what: str, rounds, epochs, in_c, in_python) -> Medians:
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
    medians = {key: median_p99(each)[0] / 1000 for key, each in times.items()}
    rows = []
    for name in WAYS:
        row = [name]
        for count in DISKS:
            mine = medians[name, count]
            row += [f"{mine:.1f}", f"{mine / medians[WAYS[0], count]:.2f}"]
        rows.append(row)
    head = [f"us, median; {what}"]
    for count in DISKS:
        head += [f"{count} disk{'s' * (count > 1)}", "ratio"]
    table(head, rows)
    print()
    return medians


def goals(medians: dict[int, Medians], slow: Medians) -> None:
    group, fork, raw = "group, C", "fork per disk, C", "raw ioctls, C"
    large = medians[256]
    in_c, in_python = (
        large[fork, 4] / large[way, 4] for way in (group, "layer, Python")
    )
    print(
        f"4 disks, 256 MiB: a fork per disk takes {in_c:.0f} times as long as the C "
        f"group (goal: 100), {in_python:.0f} times as long as the Python layer"
    )
    ratios = [each[group, 1] / each[raw, 1] for each in medians.values()]
    print(
        "1 disk: the C group takes "
        + ", ".join(f"{ratio:.2f}" for ratio in ratios)
        + " of the raw pair (goal: 1.1), parents of "
        + ", ".join(map(str, medians))
        + " MiB"
    )
    group, raw = (
        [f"{slow[way, count] / slow[way, 1]:.2f}" for count in DISKS]
        for way in (group, raw)
    )
    print(
        f"acks that take {ACK_US} us, {', '.join(map(str, DISKS))} disks against one: "
        f"C group {', '.join(group)}; one after the other {', '.join(raw)}"
    )


def draw(stem: str, medians: dict[int, Medians]) -> None:
    """One panel for each size of the parent: time over the number of disks."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, len(medians), figsize=(4 * len(medians), 4.5), sharey=True, squeeze=False
    )
    for axes, (mib, each) in zip(panels[0], medians.items(), strict=True):
        for name in WAYS:
            axes.plot(
                DISKS, [each[name, count] for count in DISKS], marker="o", label=name
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(DISKS, map(str, DISKS))
        axes.set_xlabel("disks")
        axes.set_title(f"parent of {mib} MiB" if mib else "small parent")
        axes.grid(alpha=0.3, which="both")
    panels[0][0].set_ylabel("microseconds, median")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=3)
    figure.suptitle("One checkpoint: barrier and ack on every disk")
    figure.tight_layout(rect=(0, 0.12, 1, 1))
    save(figure, stem)


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
