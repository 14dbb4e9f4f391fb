# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the benchmarks share: a resource with its backup in another process."""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from remus_native import Backup, Export, Primary, Volume

MIB = 1 << 20


def serve(
    address: str, folder: str, ack: str, key: str = "", journal: str = "0"
) -> None:
    """The backup's process."""
    with Backup(
        "bench",
        state_dir=f"{folder}/backup",
        volumes=[Volume("disk", f"{folder}/backup.img")],
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

    def start_backup(self) -> None:
        """Once more, after its process was killed."""
        self.process = start(
            self.address, str(self.folder), self.ack, self.key, self.journal
        )

    def kill_backup(self) -> None:
        self.process.kill()
        self.process.wait()


def start(
    address: str, folder: str, ack: str, key: str, journal: int
) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, __file__, address, folder, ack, key, str(journal)],
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


@contextlib.contextmanager
def resource(
    size: int,
    *,
    ack: str = "durable",
    export: bool,
    tcp: bool = False,
    tls: bool = False,
    journal: int = 0,
) -> Iterator[Resource]:
    """Both sides of a one-volume resource, each in its own process."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory("-remus")))
        for side in ("primary", "backup"):
            (folder / side).mkdir()
            with (folder / f"{side}.img").open("wb") as image:
                # Written, not sparse: the file system's allocation is not
                # what is measured.
                for _ in range(size // MIB):
                    image.write(bytes(MIB))
        address = f"tcp:127.0.0.1:{free_port()}" if tcp else f"unix:{folder}/sock"
        key = ""
        if tls:
            key = str(folder / "key")
            Path(key).write_text("bench:" + os.urandom(32).hex() + "\n")
            os.chmod(key, 0o600)
        process = start(address, str(folder), ack, key, journal)
        primary = stack.enter_context(
            Primary(
                "bench",
                state_dir=folder / "primary",
                volumes=[Volume("disk", folder / "primary.img")],
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
        made = Resource(primary, folder, node, process, address, ack, key, journal)
        stack.callback(made.kill_backup)
        yield made


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


def arguments(description: str) -> argparse.Namespace:
    """The options that every benchmark takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="seconds, not minutes")
    parser.add_argument("--plot", metavar="FILE", help="draw it (needs matplotlib)")
    return parser.parse_args()


def plot(file: str, title: str, unit: str, bars: dict[str, float]) -> None:
    """One bar for each row."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 0.5 * len(bars) + 1.5))
    names = list(bars)[::-1]
    axes.barh(names, [bars[name] for name in names], color="#4878a8")
    for i, name in enumerate(names):
        axes.text(bars[name], i, f" {bars[name]:.3g}", va="center")
    axes.set_xlabel(unit)
    axes.set_title(title)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    print(f"drawn: {file}")


if __name__ == "__main__":
    serve(*sys.argv[1:])
