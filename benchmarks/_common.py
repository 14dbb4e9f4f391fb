# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the benchmarks share: a resource with its backup in another process."""

from __future__ import annotations

import argparse
import contextlib
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


def serve(address: str, folder: str, ack: str) -> None:
    """The backup's process."""
    with Backup(
        "bench",
        state_dir=f"{folder}/backup",
        volumes=[Volume("disk", f"{folder}/backup.img")],
        ack=ack,  # type: ignore[arg-type]
    ) as backup:
        backup.serve(address)
        print("ready", flush=True)
        sys.stdin.read()


@dataclass
class Resource:
    """A protected resource; ``node`` is its FUSE file, if it was exported."""

    primary: Primary
    folder: Path
    node: Path | None


@contextlib.contextmanager
def resource(size: int, *, ack: str = "durable", export: bool) -> Iterator[Resource]:
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
        address = f"unix:{folder}/sock"
        process = subprocess.Popen(
            [sys.executable, __file__, address, str(folder), ack],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise RuntimeError("the backup process did not start")
        primary = stack.enter_context(
            Primary(
                "bench",
                state_dir=folder / "primary",
                volumes=[Volume("disk", folder / "primary.img")],
                address=address,
                ack=ack,  # type: ignore[arg-type]
            )
        )
        primary.wait_protected(timeout_s=120)
        node = None
        if export:
            (folder / "mount").mkdir()
            stack.enter_context(Export(primary, folder / "mount"))
            node = folder / "mount" / "disk"
        yield Resource(primary, folder, node)


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
