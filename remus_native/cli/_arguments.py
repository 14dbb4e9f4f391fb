# SPDX-License-Identifier: LGPL-2.1-or-later
"""The arguments of ``remus-native``, and what its help says."""

from __future__ import annotations

import argparse
import re
from typing import Any, NoReturn

from .. import doctor
from .._text import shortened
from .._version import __version__
from ..resource_file import parse_duration_ms, parse_size
from ..shared.log_options import add_log_arguments
from ..watching import RESOURCES_DIR

__all__ = ["EXIT_CODES", "parser"]

EXIT_CODES = """\
exit codes:
  0    done; backup, primary and run also when a signal ended them
  1    the operation failed; doctor: there is an error
  2    usage, or the resource file is wrong
  3    not protected: the backup is lost, or the state is not a good one
  4    the process to talk to does not run, or cannot be reached
  5    verify found blocks that differ
  130  interrupted before the work was done"""


DURATION_MAX_MS = 40 * 24 * 3600 * 1000
SIZE_MAX = (1 << 63) - 1
TAG_MAX = 32  # bytes
MANY = ("up", "down", "status", "events", "metrics")  # take several resources
LOOKS = ("doctor", "status", "events", "metrics")  # change nothing


class _Parser(argparse.ArgumentParser):
    """Tells in one line what is wrong, as every other error here."""

    def parse_args(self, *given: Any, **more: Any) -> Any:
        found = super().parse_args(*given, **more)
        if getattr(found, "command", "") in MANY and bool(found.file) == found.all:
            self.error(
                "FILE or --all, not both"
                if found.all
                else "the following arguments are required: FILE, or --all"
            )
        if getattr(found, "all", False):
            for name in ("check", "discard_local"):
                if getattr(found, name, False):
                    self.error(f"--{name.replace('_', '-')}: for one FILE, not --all")
        return found

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {shortened(message, 400)}\n{self.format_usage()}")


def duration(text: str) -> float:
    """An argument such as "50ms" or "10s"."""
    try:
        duration_ms = parse_duration_ms(text)
    except ValueError:
        duration_ms = 0
    if not 0 < duration_ms <= DURATION_MAX_MS:
        raise argparse.ArgumentTypeError(
            'expected a duration of 40 days at most, such as "50ms" or "3s", got '
            f'"{shortened(text)}"'
        )
    return duration_ms / 1000


def size(text: str) -> int:
    """A number of bytes, as a resource file has it."""
    try:
        size = parse_size(text)
    except ValueError:
        size = SIZE_MAX + 1
    if size > SIZE_MAX:
        raise argparse.ArgumentTypeError(
            f'expected a size such as "50MiB", got "{shortened(text)}"'
        )
    return size


def host_and_port(text: str) -> tuple[str, int]:
    """Where to listen: "127.0.0.1:9790", "[::1]:9790"."""
    host, _, port = text.rpartition(":")
    if not host or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise argparse.ArgumentTypeError(
            f'expected HOST:PORT, such as 127.0.0.1:9790, got "{shortened(text)}"'
        )
    return host.strip("[]"), int(port)


def count(text: str) -> int:
    """An argument that is a whole number from 1 on."""
    if not re.fullmatch(r"[0-9]{1,18}", text) or int(text) == 0:
        raise argparse.ArgumentTypeError(
            "expected a number from 1 on, of 18 digits at most, got "
            f'"{shortened(text)}"'
        )
    return int(text)


def tag(text: str) -> str:
    """The tag of a checkpoint."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        size = 0
    if not 0 < size <= TAG_MAX:
        raise argparse.ArgumentTypeError(
            f'expected a tag of 1 to {TAG_MAX} bytes of UTF-8, got "{shortened(text)}"'
        )
    return text


def parser() -> argparse.ArgumentParser:
    """The commands; ``command`` of the result is the name of the one given."""
    made = _Parser(
        prog="remus-native",
        description="Checkpointed disk replication for highly available guests.",
        epilog=f"{EXIT_CODES}\n\nexample:\n  remus-native demo",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--version", action="version", version=__version__)
    commands = made.add_subparsers(metavar="COMMAND", required=True)
    for add in (
        _add_up,
        _add_down,
        _add_restart,
        _add_reload,
        _add_role,
        _add_backup,
        _add_primary,
        _add_run,
        _add_status,
        _add_events,
        _add_metrics,
        _add_doctor,
        _add_promote,
        _add_commit,
        _add_verify,
        _add_swap,
        _add_resume,
        _add_demo,
    ):
        add(commands)
    return made


def _add(
    commands: Any,
    name: str,
    summary: str,
    text: str,
    example: str,
    *,
    file: bool = True,
    swapped: bool = True,
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=text,
        epilog=f"example:\n  {example}\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=name)
    if not file:
        return parser
    many = name in MANY
    parser.add_argument(
        "file",
        metavar="FILE",
        nargs="?" if many else None,
        help="the resource file (TOML)",
    )
    if many:
        _add_many(parser)
    if swapped:
        parser.add_argument(
            "--swapped",
            action="store_true",
            # Only where this host's state does not tell, as with both on one.
            help=argparse.SUPPRESS,
        )
    if name not in LOOKS:
        parser.add_argument(
            "--check",
            action="store_true",
            help="do nothing but what doctor does for this side",
        )
    return parser


def _add_many(parser: argparse.ArgumentParser) -> None:
    """The resource files of this host, or one."""
    parser.add_argument(
        "--all",
        action="store_true",
        help=f"every *.toml of {RESOURCES_DIR}, instead of FILE",
    )
    parser.add_argument(
        "--directory",
        metavar="DIR",
        default=RESOURCES_DIR,
        help=f"with --all: instead of {RESOURCES_DIR}",
    )


def _add_backup(commands: Any) -> None:
    parser = _add(
        commands,
        "backup",
        "serve as the backup, in the foreground",
        "Listen for the primary, keep every epoch in the journal, apply the\n"
        "committed ones. SIGTERM or SIGINT ends it, a closed terminal does not.\n"
        "After a promote the process stays and answers status; the disks are the\n"
        "guest's.",
        "remus-native backup --create guest0.toml",
    )
    parser.add_argument(
        "--create",
        action="store_true",
        help="at the first start, create images that are missing, as sparse files "
        "of the size that FILE gives; an image that exists is never touched",
    )
    parser.add_argument(
        "--discard-local",
        action="store_true",
        help="in a split brain: discard what this side wrote by itself",
    )
    add_log_arguments(parser)


def _add_primary(commands: Any) -> None:
    parser = _add(
        commands,
        "primary",
        "serve the disks to the guest, in the foreground",
        "Mount the volumes as files and replicate what is written to them, in this\n"
        "process alone; what `up` serves outlives it. SIGTERM or SIGINT ends it: it\n"
        "unmounts, so shut the guest down first. A closed terminal does not. Needs\n"
        "root and /dev/fuse.",
        "remus-native primary guest0.toml",
    )
    add_log_arguments(parser)


def _add_here(
    commands: Any, name: str, summary: str, text: str, example: str
) -> argparse.ArgumentParser:
    """A command for this host, whatever its role is."""
    parser = _add(commands, name, summary, text, example, swapped=False)
    parser.add_argument(
        "--host",
        metavar="NAME",
        help="this host is the one of FILE with this name, or primary or backup: its "
        "section (default: the one whose host is this host's name, or whose state is "
        "here)",
    )
    return parser


def _add_up(commands: Any) -> None:
    parser = _add_here(
        commands,
        "up",
        "serve what this host is for the resource, in the foreground",
        "Be the primary or the backup, as this host's state directory says; at the\n"
        "first start, as FILE says. After a promote, a swap or a restart of either\n"
        "host the same command does the right thing. As root a keeper starts another\n"
        "process when the one that serves dies, and the guest's I/O waits meanwhile.\n"
        "SIGTERM or SIGINT ends it: it unmounts, so shut the guest down first. With\n"
        "--all every resource has a process of its own, and one that is refused\n"
        "keeps no other from its start.",
        "remus-native up guest0.toml",
    )
    parser.add_argument(
        "--create",
        action="store_true",
        help="as the backup, create images that are missing, as sparse files of the "
        "size that FILE gives; what is there is never touched",
    )
    parser.add_argument(
        "--discard-local",
        action="store_true",
        help="in a split brain: be the backup, and discard what this side wrote by "
        "itself; used once",
    )
    parser.add_argument(
        "--no-keeper",
        action="store_true",
        help="serve in this process alone: its death takes the guest's disks away",
    )
    add_log_arguments(parser)


def _add_down(commands: Any) -> None:
    _add_here(
        commands,
        "down",
        "stop what this host serves, and wait for its end",
        "Stop the process that `up` started. On the primary's host it unmounts, so\n"
        "shut the guest down first. With --all every resource, all at once.",
        "remus-native down guest0.toml",
    )


def _add_role(commands: Any) -> None:
    _add_here(
        commands,
        "role",
        "print what this host is: primary or backup",
        "Read it from this host's state directory, whether a process runs or not;\n"
        "before the first start it is what FILE says.",
        "remus-native role guest0.toml",
    )


def _add_reload(commands: Any) -> None:
    _add_here(
        commands,
        "reload",
        "read the file and its keys again, under a running guest",
        "As SIGHUP does. The key file counts from the next connection on; the log,\n"
        "the fence and notify commands and their timeouts at once. What can't\n"
        "change while it serves is named, and left as it is.",
        "remus-native reload guest0.toml",
    )


def _add_restart(commands: Any) -> None:
    _add_here(
        commands,
        "restart",
        "restart what serves the disks under a running guest",
        "Start another process in place of the one that serves the disks, for\n"
        "example after an upgrade. The guest's I/O waits for a moment. For what\n"
        "`up` started with a keeper.",
        "remus-native restart guest0.toml",
    )


def _add_run(commands: Any) -> None:
    parser = _add(
        commands,
        "run",
        "take checkpoints in a loop",
        "Take a checkpoint of all volumes each interval, through the nodes of a\n"
        "running primary. SIGINT, SIGTERM or SIGHUP ends it, with a summary. While\n"
        "the backup is away the guest runs on without checkpoints; they go on when\n"
        "it is back.",
        "remus-native run --interval 25ms --qmp /run/guest0.qmp guest0.toml",
    )
    parser.add_argument(
        "--interval",
        type=duration,
        default=0.05,
        metavar="TIME",
        help="from one checkpoint's start to the next one's (default: 50ms)",
    )
    parser.add_argument(
        "--qmp", metavar="SOCKET", help="suspend and resume this QEMU over QMP"
    )
    parser.add_argument(
        "--timeout",
        type=duration,
        default=5.0,
        metavar="TIME",
        help="how long to wait for the backup's ack (default: 5s)",
    )
    parser.add_argument(
        "--on-loss",
        choices=("continue", "stop"),
        default="continue",
        help="when the backup is lost: go on when it is back (default), or end, "
        "with exit code 3",
    )
    parser.add_argument("--count", type=count, metavar="N", help="end after N")
    parser.add_argument(
        "--duration", type=duration, metavar="TIME", help="end after this time"
    )


def _add_status(commands: Any) -> None:
    parser = _add(
        commands,
        "status",
        "print the state of each side",
        "Ask the processes of this host. A backup that does not run is read from\n"
        "its state directory; the exit code is 4 in any case.",
        "remus-native status --json guest0.toml",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print a JSON object (watching/status.schema.json of the package)",
    )
    parser.add_argument(
        "--side", choices=("primary", "backup"), help="ask this side only"
    )
    parser.add_argument(
        "--watch",
        type=duration,
        nargs="?",
        const=1.0,
        metavar="TIME",
        help="print it every TIME (default: 1s), until Ctrl-C; give FILE first",
    )


def _add_events(commands: Any) -> None:
    parser = _add(
        commands,
        "events",
        "print each change of state as it happens",
        "First what is, then each change of state, connection or reason of the\n"
        "sides on this host, until Ctrl-C. Goes on when a process ends and comes\n"
        "back.",
        "remus-native events --json guest0.toml",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument(
        "--side", choices=("primary", "backup"), help="follow this side only"
    )
    parser.add_argument(
        "--now", action="store_true", help="print the present state and end"
    )
    parser.add_argument("--count", type=count, metavar="N", help="end after N")


def _add_metrics(commands: Any) -> None:
    parser = _add(
        commands,
        "metrics",
        "numbers for Prometheus",
        "Print the metrics of the sides on this host, write them into a file for\n"
        "node_exporter, or serve them over HTTP, with /healthz (the extra metrics).",
        "remus-native metrics --all --textfile /var/lib/node_exporter/remus.prom",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--textfile", metavar="PATH", help="replace this file atomically"
    )
    where.add_argument(
        "--listen",
        type=host_and_port,
        metavar="HOST:PORT",
        help="serve /metrics and /healthz there until a signal, such as 127.0.0.1:9790",
    )
    parser.add_argument(
        "--every",
        type=duration,
        metavar="TIME",
        help="repeat every TIME, until Ctrl-C (without --listen)",
    )


def _add_doctor(commands: Any) -> None:
    parser = _add(
        commands,
        "doctor",
        "check what would not work, or not work well, on this host",
        "Look at key, ports, clock, sizes, free space, the journal's sync, fence\n"
        "command, hardening, kernel and mount point, before the first start or when\n"
        "something is wrong. Changes nothing. Warnings leave the exit code 0; an\n"
        "error makes it 1.",
        "remus-native doctor --json guest0.toml",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    parser.add_argument(
        "--side",
        choices=("primary", "backup"),
        help="check this side only (default: what this host has)",
    )
    parser.add_argument(
        "--only",
        choices=doctor.NAMES,
        metavar="NAME",
        help=f"this check only: {', '.join(doctor.NAMES)}",
    )
    parser.add_argument(
        "--run-fence",
        action="store_true",
        help="run the fence command with REMUS_REASON=check: only if yours then "
        "does nothing but look",
    )


def _add_promote(commands: Any) -> None:
    parser = _add(
        commands,
        "promote",
        "fail over to the backup",
        "Make the backup's disks exactly what the primary's were at one checkpoint\n"
        "and release them. Without a name: the last committed checkpoint; the\n"
        "last prepared one if the checkpoints come through ioctls (run, libxl).",
        "remus-native promote --checkpoint 812 guest0.toml",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--checkpoint", type=count, metavar="N", help="the checkpoint of this number"
    )
    which.add_argument(
        "--tag", type=tag, metavar="T", help="the checkpoint with this tag"
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="cut a connected primary off instead of asking it to step down: what "
        "it writes from then on is lost, or split brain if it goes on",
    )
    parser.add_argument(
        "--fenced",
        action="store_true",
        help="the primary is known to be dead: do not run the fence command",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object")


def _add_verify(commands: Any) -> None:
    parser = _add(
        commands,
        "verify",
        "compare both sides while the guest runs",
        "On the primary's host. Compares hashes of all blocks with the backup's,\n"
        "each at one point of the stream, so that nothing that is on its way counts\n"
        "as a difference.",
        "remus-native verify --rate 100MiB guest0.toml",
    )
    parser.add_argument("--repair", action="store_true", help="send again what differs")
    parser.add_argument(
        "--rate", type=size, default=0, metavar="BYTES",
        help='compare at most so much a second, such as "50MiB"',
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print a JSON object")


def _add_swap(commands: Any) -> None:
    _add(
        commands,
        "swap",
        "exchange the roles of the two sides, with nothing lost",
        "On the backup's host. The primary steps down with a last checkpoint (no file\n"
        "of its volumes may be open for writing), the backup is promoted to it, and\n"
        "both processes go on in the other role.",
        "remus-native swap guest0.toml",
    )


def _add_resume(commands: Any) -> None:
    _add(
        commands,
        "resume",
        "let the guest go on without its backup",
        "On the primary's host. The operator's word in place of the fence command's:\n"
        "it says that the backup is not promoted, and will not be.",
        "remus-native resume guest0.toml",
    )


def _add_commit(commands: Any) -> None:
    parser = _add(
        commands,
        "commit",
        "commit a checkpoint on the backup",
        "Say on the backup that checkpoint N is complete, its memory too. It is\n"
        "applied, with every prepared one before it.",
        "remus-native commit guest0.toml 812",
    )
    parser.add_argument("number", metavar="N", type=count, help="the checkpoint")


def _add_demo(commands: Any) -> None:
    from .. import demo

    demo.add_arguments(
        _add(
            commands,
            "demo",
            "show and prove a failover, on an empty machine",
            "Replicate an ext4 disk on which SQLite inserts rows, kill the primary\n"
            "with SIGKILL at a random moment, promote the backup, and prove that\n"
            "every row of the promoted checkpoint is there. Needs root and /dev/fuse;\n"
            "without them the same proof runs on the in-process API and plain files.",
            "remus-native demo --seconds 5 --seed 7",
            file=False,
        )
    )
