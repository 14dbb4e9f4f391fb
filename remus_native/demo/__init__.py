# SPDX-License-Identifier: LGPL-2.1-or-later
"""``remus-native demo``: a failover that proves itself, on an empty machine.

SQLite inserts rows at full speed while checkpoints are taken; the primary is
killed with SIGKILL at a random moment; the backup is promoted; then every
row that was committed before the promoted checkpoint must be there.  There
are two stages for the same play:

- _disk.py: ext4 on the replicated disk, separate processes, the command
  line as a user has it.  Needs root, /dev/fuse, loop devices, e2fsprogs.
- _inprocess.py: the Python API and plain files; needs nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import glob
import importlib.util
import os
import random
import re
import secrets
import shutil
import signal
import tempfile
from collections.abc import Iterator
from typing import Any

from .._text import shortened
from ..errors import RemusError
from ..resource_file import parse_duration_ms, parse_size
from ..shared.log import say
from ..shared.mounts import unguard
from ._account import Outcome, ProofFailed
from ._settings import Settings

__all__ = ["add_arguments", "main", "missing"]

TOOLS = {
    "losetup": "mount",
    "mount": "mount",
    "umount": "mount",
    "mkfs.ext4": "e2fsprogs",
    "e2fsck": "e2fsprogs",
}
SIZE_MIN = 64 << 20
SIZE_MAX = 1 << 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "--seconds",
        type=_seconds,
        default=10.0,
        metavar="S",
        help="insert for about this long (default: 10)",
    )
    parser.add_argument(
        "--interval",
        type=_duration,
        default=0.025,
        metavar="TIME",
        help="from checkpoint to checkpoint (default: 25ms)",
    )
    parser.add_argument(
        "--size",
        type=_size,
        default=256 << 20,
        metavar="SIZE",
        help="size of the disk (default: 256MiB; sparse)",
    )
    parser.add_argument(
        "--seed", type=_seed, metavar="N", help="repeat rows and moment of a run"
    )
    parser.add_argument("--keep", action="store_true", help="keep the temporary folder")
    parser.add_argument(
        "--in-process",
        action="store_true",
        help="play on the Python API and plain files, without root",
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"expected 0.1 to 3600, got {shortened(text)}")
    return seconds


def _duration(text: str) -> float:
    try:
        duration_ms = parse_duration_ms(text)
    except ValueError:
        duration_ms = 0
    if not 0 < duration_ms <= 3_600_000:
        raise argparse.ArgumentTypeError(
            'expected a duration of an hour at most, such as "25ms", got '
            f'"{shortened(text)}"'
        )
    return duration_ms / 1000


def _size(text: str) -> int:
    try:
        size = parse_size(text)
    except ValueError:
        size = 0
    if not SIZE_MIN <= size <= SIZE_MAX or size % (1 << 20):
        raise argparse.ArgumentTypeError(
            'expected whole MiB from 64MiB to 1TiB, such as "256MiB", got '
            f'"{shortened(text)}"'
        )
    return size


def _seed(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise argparse.ArgumentTypeError(
            f"expected a number of 18 digits at most, got {shortened(text)}"
        )
    return int(text)


def missing() -> list[str]:
    """What this machine lacks for the play on a real disk; [] if nothing."""
    lacks = []
    if os.geteuid() != 0:
        lacks.append("root")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        lacks.append("/dev/fuse")
    if not os.access("/dev/loop-control", os.R_OK | os.W_OK):
        lacks.append("loop devices (/dev/loop-control)")
    path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    for tool, package in TOOLS.items():
        if not shutil.which(tool, path=path):
            lacks.append(f"{tool} (apt-get install {package})")
    return lacks


def main(arguments: argparse.Namespace) -> int:
    """Play, prove, print; 0 only if every proof held."""
    if importlib.util.find_spec("_sqlite3") is None:
        say("demo needs Python's sqlite3 module")
        return 1
    lacks = missing()
    in_process = arguments.in_process or bool(lacks)
    seed = arguments.seed if arguments.seed is not None else secrets.randbelow(10**6)
    kill_after_s = arguments.seconds * random.Random(seed).uniform(0.5, 1.0)
    with _termination_as_interrupt(), _folder(arguments.keep) as folder:
        settings = Settings(
            folder=folder,
            seconds=arguments.seconds,
            interval_s=arguments.interval,
            size=arguments.size,
            seed=seed,
            kill_after_s=kill_after_s,
        )
        if lacks and not arguments.in_process:
            print(f"The demo on a real disk needs {', '.join(lacks)}.")
            print("The same proof follows on the in-process API, with SQLite on")
            print("plain files whose pages are copied into replicated volumes.")
        try:
            outcome = _play(settings, in_process)
        except (ProofFailed, RemusError, OSError) as error:
            say(f"demo: {error}")
            print(f"FAILED (seed {seed})")
            return 1
    print(outcome.text())
    print(
        f"PROVED: every row of checkpoint {outcome.checkpoint} (tag {outcome.tag}) "
        f"survived the death of the primary (seed {seed})"
    )
    return 0


def _play(settings: Settings, in_process: bool) -> Outcome:
    module: Any
    if in_process:
        from . import _inprocess as module
    else:
        from . import _disk as module
    outcome: Outcome = module.play(settings)
    return outcome


@contextlib.contextmanager
def _folder(keep: bool) -> Iterator[str]:
    """A temporary folder; removed at the end unless it is to be kept."""
    folder = tempfile.mkdtemp(prefix="remus-demo-")
    try:
        yield folder
    finally:
        if keep:
            print(f"kept: {folder}")
        else:
            for mount in glob.glob(os.path.join(glob.escape(folder), "*", "mount")):
                unguard(mount)
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """SIGTERM and a closed terminal clean up and end the demo, as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = [
        (number, signal.signal(number, interrupt))
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) != signal.SIG_IGN  # as nohup sets it
    ]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)
