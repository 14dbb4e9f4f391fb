# SPDX-License-Identifier: LGPL-2.1-or-later
"""Boot the guest, wait for its end, read what it wrote down."""

from __future__ import annotations

import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

QEMU = "qemu-system-x86_64"
LIMIT_S = 300
# The guest's clock counts its instructions, one a nanosecond, and jumps over
# idle time: nothing in it can time out because this machine is busy.
CLOCK = "shift=0,sleep=off"
COMMAND_LINE = (
    "console=ttyS0,115200 quiet panic=-1 rdinit=/init "
    "mitigations=off init_on_alloc=0 apparmor=0 audit=0"
)


class GuestFailed(Exception):
    """The guest did not come to its end; `console` has what it said."""

    def __init__(self, reason: str, console: str) -> None:
        super().__init__(reason)
        self.console = console


@dataclass(frozen=True)
class Record:
    """One command that was run in the guest."""

    kind: str
    state: str
    code: int
    out: str
    err: str
    command: str

    def __str__(self) -> str:
        return (
            f"in state {self.state}: {self.command}: exit {self.code}\n"
            f"stdout: {self.out}\nstderr: {self.err}"
        )


def parse(results: Path) -> list[Record]:
    """The records of a guest that came to its end (init.sh has the format)."""
    texts = {}
    with tarfile.open(results, "r:gz") as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is not None:
                texts[Path(member.name).name] = content.read().decode()
    records = []
    for number in sorted((name for name in texts if name.isdigit()), key=int):
        kind, state, code, command = texts[number].rstrip("\n").split(" ", 3)
        out, err = texts[f"{number}.out"], texts[f"{number}.err"]
        records.append(Record(kind, state, int(code), out, err, command))
    return records


def boot(kernel: Path, initramfs: Path, folder: Path) -> tuple[list[Record], str]:
    """The guest's records and its console, once it has ended by itself."""
    console, results = folder / "console", folder / "results"
    with subprocess.Popen(
        [QEMU, "-nodefaults", "-display", "none", "-no-reboot", "-nic", "none",
         "-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", "512", "-icount", CLOCK,
         "-kernel", kernel, "-initrd", initramfs, "-append", COMMAND_LINE,
         "-serial", f"file:{console}", "-serial", f"file:{results}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as qemu:  # fmt: skip
        try:
            said, _ = qemu.communicate(timeout=LIMIT_S)
            ended = f"exit code {qemu.returncode}"
        except subprocess.TimeoutExpired:
            said, ended = "", f"not done in {LIMIT_S} s"
        finally:
            qemu.kill()  # no-op once it has ended
    log = console.read_text(errors="replace") if console.exists() else ""
    if qemu.returncode or "\nfinished" not in log:
        tail = "\n".join(log.splitlines()[-3:])
        raise GuestFailed(f"QEMU: {ended} {said}\n{tail}", log)
    return parse(results), log
