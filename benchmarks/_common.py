# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the benchmarks share: a resource with its backup in another process."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shlex
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remus_native import Backup, Export, Primary, Volume

MIB = 1 << 20


def volumes(folder: str | Path, side: str, count: int) -> list[Volume]:
    """``disk``, ``disk1``, ``disk2``, ... of one side."""
    return [
        Volume(f"disk{i or ''}", f"{folder}/{side}{i or ''}.img") for i in range(count)
    ]


def serve(
    address: str,
    folder: str,
    ack: str,
    key: str = "",
    journal: str = "0",
    count: str = "1",
) -> None:
    """The backup's process."""
    with Backup(
        "bench",
        state_dir=f"{folder}/backup",
        volumes=volumes(folder, "backup", int(count)),
        ack=ack,  # type: ignore[arg-type]
        psk_file=key or None,
        journal_bytes=int(journal),
    ) as backup:
        tcp = address.startswith("tcp:")
        backup.serve(address, tls="off" if tcp and not key else None)
        print("ready", flush=True)
        sys.stdin.read()


@dataclass
class Resource:
    """A protected resource; ``node`` is its FUSE file, if it was exported."""

    primary: Primary
    folder: Path
    node: Path | None
    process: subprocess.Popen[str]
    address: str
    ack: str
    key: str = ""
    journal: int = 0
    count: int = 1

    def start_backup(self) -> None:
        """Once more, after its process was killed."""
        self.process = start(
            self.address,
            str(self.folder),
            self.ack,
            self.key,
            self.journal,
            self.count,
        )

    def kill_backup(self) -> None:
        self.process.kill()
        self.process.wait()


def start(
    address: str, folder: str, ack: str, key: str, journal: int, count: int
) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, __file__, address, folder, ack, key, str(journal), str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        process.kill()
        raise RuntimeError("the backup process did not start")
    return process


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def make_image(path: Path, size: int, sparse: bool = False) -> Path:
    """An image of zeros; written, so that allocation is not measured."""
    with path.open("wb") as image:
        if sparse:
            image.truncate(size)
        else:
            for _ in range(size // MIB):
                image.write(bytes(MIB))
    return path


@contextlib.contextmanager
def resource(
    size: int,
    *,
    ack: str = "durable",
    export: bool,
    tcp: bool = False,
    tls: bool = False,
    journal: int = 0,
    count: int = 1,
    sparse: bool = False,
    dir: str | None = None,
) -> Iterator[Resource]:
    """Both sides of a resource of ``count`` volumes, each in its own process."""
    with ExitStack() as stack:
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory("-remus", dir=dir))
        )
        for side in ("primary", "backup"):
            (folder / side).mkdir()
            for volume in volumes(folder, side, count):
                make_image(Path(volume.path), size, sparse)
        address = f"tcp:127.0.0.1:{free_port()}" if tcp else f"unix:{folder}/sock"
        key = ""
        if tls:
            key = str(folder / "key")
            Path(key).write_text("bench:" + os.urandom(32).hex() + "\n")
            os.chmod(key, 0o600)
        process = start(address, str(folder), ack, key, journal, count)
        primary = stack.enter_context(
            Primary(
                "bench",
                state_dir=folder / "primary",
                volumes=volumes(folder, "primary", count),
                address=address,
                tls="off" if tcp and not tls else None,
                psk_file=key or None,
                ack=ack,  # type: ignore[arg-type]
            )
        )
        primary.wait_protected(timeout_s=120)
        node = None
        if export:
            (folder / "mount").mkdir()
            stack.enter_context(Export(primary, folder / "mount"))
            node = folder / "mount" / "disk"
        made = Resource(
            primary, folder, node, process, address, ack, key, journal, count
        )
        stack.callback(made.kill_backup)
        yield made


def round_trip(stack: ExitStack, file: Path | None = None) -> Callable[[], float]:
    """Seconds of 64 bytes to another process and back.

    With ``file`` that one syncs 8 KiB in it first.  It forks: call it while
    this process has one thread.
    """
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        _answer(theirs, file)
        os._exit(0)
    theirs.close()
    stack.callback(os.waitpid, pid, 0)
    stack.callback(ours.close)

    def once() -> float:
        start = time.perf_counter()
        ours.send(b"x" * 64)
        ours.recv(64)
        return time.perf_counter() - start

    return once


def _answer(sock: socket.socket, file: Path | None) -> None:
    fd = -1
    if file is not None:
        # Written once, as a journal's segments are: only data is synced.
        file.write_bytes(bytes(16 * MIB))
        fd = os.open(file, os.O_WRONLY)
        os.fsync(fd)
    at, block = 0, os.urandom(8192)
    while sock.recv(64):
        if fd >= 0:
            os.pwrite(fd, block, at % (16 * MIB))
            at += len(block)
            os.fdatasync(fd)
        sock.send(b"x" * 64)


def checkpoint(primary: Primary) -> tuple[int, float]:
    """Take one: its number, and the seconds for which a guest would stand still."""
    start = time.perf_counter()
    epoch = primary.postsuspend()
    primary.preresume(epoch, timeout_s=120)
    paused = time.perf_counter() - start
    primary.commit(epoch)
    return epoch, paused


def median_p99(values: Sequence[float]) -> tuple[float, float]:
    """Median and 99th percentile."""
    ordered = sorted(values)
    return statistics.median(ordered), ordered[max(0, len(ordered) * 99 // 100 - 1)]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print aligned columns, numbers to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        cells = [row[0].ljust(widths[0])]
        cells += [
            cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)
        ]
        print("  ".join(cells).rstrip())


class Options(argparse.Namespace):
    """What the command line said."""

    quick: bool
    plot: str | None
    json: str | None
    dir: str | None

    def folder(self) -> tempfile.TemporaryDirectory[str]:
        """A folder on the disk that is measured, removed at the end."""
        return tempfile.TemporaryDirectory("-remus", dir=self.dir)

    def figures(self, name: str) -> Figures:
        return Figures(name, self.plot, self.json)


def arguments(description: str) -> Options:
    """The options that every benchmark takes."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="seconds, not minutes")
    parser.add_argument(
        "--plot", metavar="STEM", help="draw STEM.svg and STEM.png (needs matplotlib)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    parser.add_argument(
        "--dir", metavar="DIR", help="a folder on the disk to measure (else TMPDIR)"
    )
    return parser.parse_args(namespace=Options())


def need(*programs: str) -> None:
    """End, and say what is missing, unless all are installed."""
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        names = " ".join(missing)
        sys.exit(f"{Path(sys.argv[0]).stem}: {names} missing: apt-get install {names}")


def need_node() -> None:
    """End, and say so, where no node can be mounted."""
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        sys.exit(f"{Path(sys.argv[0]).stem}: needs root and /dev/fuse")


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": f"{os.cpu_count()} x {name}",
        "kernel": platform.release(),
        "command": shlex.join(["python", *sys.argv]),
    }


def save(figure: Any, stem: str) -> None:
    """A drawing, for pages and for slides."""
    for kind in ("svg", "png"):
        figure.savefig(f"{stem}.{kind}", dpi=120)
    print(f"drawn: {stem}.svg, {stem}.png")


@dataclass
class Figures:
    """Where a benchmark's figures go beside the printed table."""

    name: str
    stem: str | None
    file: str | None

    def keep(self, **figures: Any) -> None:
        """Write them as JSON, with the machine they were measured on."""
        if self.file:
            whole = {"benchmark": self.name, **machine(), **figures}
            Path(self.file).write_text(json.dumps(whole, indent=1) + "\n")

    def lines(
        self,
        title: str,
        across: str,
        up: str,
        lines: dict[str, list[tuple[float, float]]],
    ) -> None:
        """One line for each name, both axes logarithmic."""
        with self._drawing(title, (8, 5)) as axes:
            if axes is None:
                return
            for name, points in lines.items():
                axes.plot(*zip(*points, strict=True), marker="o", label=name)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xlabel(across)
            axes.set_ylabel(up)
            axes.grid(alpha=0.3)
            axes.legend()

    def bars(self, title: str, unit: str, bars: dict[str, float]) -> None:
        """One bar for each name."""
        with self._drawing(title, (8, 0.4 * len(bars) + 1.5)) as axes:
            if axes is None:
                return
            names = list(bars)[::-1]
            axes.barh(names, [bars[name] for name in names], color="#4878a8")
            for i, name in enumerate(names):
                axes.text(bars[name], i, f" {bars[name]:.3g}", va="center")
            axes.set_xlabel(unit)

    @contextlib.contextmanager
    def _drawing(self, title: str, size: tuple[float, float]) -> Iterator[Any]:
        if not self.stem:
            yield None
            return
        import matplotlib as mpl

        mpl.use("Agg")
        mpl.rcParams["svg.hashsalt"] = self.name  # the same picture each time
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=size)
        yield axes
        axes.set_title(title)
        about = machine()
        figure.text(
            0.995, 0.005, f"{about['date']}, {about['processor']}", ha="right", size=6
        )
        figure.tight_layout()
        save(figure, self.stem)


if __name__ == "__main__":
    serve(*sys.argv[1:])
