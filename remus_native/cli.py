# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command line: ``remus-native``.

Each command reads one resource file (docs/resource-file.md).  ``backup`` and
``primary`` serve in the foreground until a signal; the others talk to them
over the control socket (control.py), or to the nodes of the primary.

What belongs to a result goes to standard output, everything else to standard
error.  `EXIT_CODES` is the whole list of exit codes.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from . import _run as run
from . import _serve, _statistics, control
from ._progress import bytes_text, seconds_text, table, with_progress
from ._resource_disks import has_state
from ._verify import verify
from ._version import __version__
from .control import NotRunning
from .errors import (
    CheckpointTimeout,
    ConfigError,
    DeviceErrors,
    RemusError,
    ReplicationLost,
)
from .replica import Backup, State
from .resource_file import (
    ResourceFile,
    ResourceFileError,
    Side,
    load,
    parse_duration_ms,
    parse_size,
)

__all__ = ["EXIT_CODES", "main"]

STATUS_S = 3.0  # a process that lives answers status at once
OK, FAILED, USAGE, UNPROTECTED, NOT_RUNNING, DIFFERENT, INTERRUPTED = (
    0,
    1,
    2,
    3,
    4,
    5,
    130,
)

EXIT_CODES = """\
exit codes:
  0    done; backup, primary and run also when a signal ended them
  1    the operation failed
  2    usage, or the resource file is wrong
  3    not protected: the backup is lost, or the state is not a good one
  4    the process to talk to does not run, or cannot be reached
  5    verify found blocks that differ
  130  interrupted before the work was done"""

GOOD_STATES = {
    "primary": {State.PROTECTED},
    "backup": {State.PROTECTED, State.STANDBY, State.PROMOTED},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        command: Callable[[argparse.Namespace], int] = arguments.command
        code = command(arguments)
        sys.stdout.flush()
        return code
    except ResourceFileError as error:
        for problem in error.problems:
            _serve.say(problem)
        return USAGE
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (RemusError, OSError) as error:
        _serve.say(str(error))
        return _code_of(error)
    except KeyboardInterrupt:
        _serve.say("interrupted")
        return INTERRUPTED


def _code_of(error: Exception) -> int:
    if isinstance(error, DeviceErrors):
        codes = [_code_of(each) for each in error.errors]
        return UNPROTECTED if UNPROTECTED in codes else codes[0]
    if isinstance(error, NotRunning):
        return NOT_RUNNING
    if isinstance(error, ReplicationLost):
        return UNPROTECTED
    if isinstance(error, ConfigError):
        return USAGE
    return FAILED


def _load(arguments: argparse.Namespace) -> ResourceFile:
    resource = load(arguments.file)
    return resource.swapped() if arguments.swapped else resource


# ---- backup, primary, run, demo ----------------------------------------------------


def _backup(arguments: argparse.Namespace) -> int:
    return _serve.serve_backup(
        _load(arguments),
        create=arguments.create,
        discard_local=arguments.discard_local,
    )


def _primary(arguments: argparse.Namespace) -> int:
    return _serve.serve_primary(_load(arguments))


def _run(arguments: argparse.Namespace) -> int:
    return run.run(
        _load(arguments),
        interval_s=arguments.interval,
        timeout_s=arguments.timeout,
        qmp=arguments.qmp,
        count=arguments.count,
        duration_s=arguments.duration,
    )


def _demo(arguments: argparse.Namespace) -> int:
    from . import demo

    return demo.main(arguments)


# ---- status ----------------------------------------------------------------------


def _status(arguments: argparse.Namespace) -> int:
    resource = _load(arguments)
    sides: list[Side] = [arguments.side] if arguments.side else ["primary", "backup"]
    answers: dict[Side, dict[str, Any] | None] = {}
    silent: dict[Side, str] = {}
    for side in sides:
        try:
            answers[side] = _status_of(resource, side)
        except CheckpointTimeout as error:
            answers[side] = None
            silent[side] = str(error)
    found = {side: answer for side, answer in answers.items() if answer}
    if arguments.json:
        print(json.dumps({"resource": resource.name, **answers}, indent=2))
    else:
        for side, answer in found.items():
            print(_status_text(side, answer))
        for side in sides:
            if side not in found and side not in silent:
                print(f"{resource.name} {side}: not running on this host")
    for side, why in silent.items():
        _serve.say(
            f"{side} of {resource.name}: its process is there and does not answer, "
            f"it may be stopped or held up by a disk: {why}"
        )
    if silent:
        return FAILED
    if not any(answer["running"] for answer in found.values()):
        return NOT_RUNNING
    good = all(answer["state"] in GOOD_STATES[side] for side, answer in found.items())
    return OK if good else UNPROTECTED


def _status_of(resource: ResourceFile, side: Side) -> dict[str, Any] | None:
    """The status of one side; a backup that does not run is opened for it."""
    try:
        answer = control.call(resource.state(side), "status", timeout_s=STATUS_S)
        running = True
        if side == "primary":
            answer["statistics"] = _statistics.of_state_dir(resource.primary.state)
        else:
            answer["checkpoints"] = control.call(
                resource.backup.state, "checkpoints", timeout_s=STATUS_S
            )
            answer["refusals"] = control.call(
                resource.backup.state, "refusals", timeout_s=STATUS_S
            )
    except NotRunning:
        if side == "primary" or not has_state(resource, "backup"):
            return None
        running = False
        with _open_backup(resource, look=True) as backup:
            answer = dataclasses.asdict(backup.status())
            answer["checkpoints"] = [
                _serve.checkpoint_object(cp) for cp in backup.checkpoints()
            ]
            answer["refusals"] = []
    return {"running": running, **answer}


def _status_text(side: Side, status: dict[str, Any]) -> str:
    head = f"{status['resource']} {side}: {status['state']}"
    if not status["running"]:
        head += " (not running; as its state directory has it)"
    rows = [
        ("reason", status["reason"]),
        ("connected", _connected_text(status)),
        (
            "epochs",
            f"prepared {status['prepared_epoch']}, "
            f"committed {status['committed_epoch']}"
            + (f", applied {status['applied_epoch']}" if side == "backup" else ""),
        ),
        ("replicated", bytes_text(status["bytes_written"] + status["bytes_zeroed"])),
    ]
    if side == "primary":
        rows.append(
            (
                "send queue",
                f"{bytes_text(status['queue_bytes'])} of "
                f"{bytes_text(status['queue_limit'])}, {status['stalls']} stalls",
            )
        )
        if status["state"] == State.CATCHING_UP and status["resync_total"]:
            done, total = status["resync_done"], status["resync_total"]
            rows.append(("copied", f"{bytes_text(done)} of {bytes_text(total)}"))
        for who, summary in status["statistics"].items():
            rows += _statistics.rows(who, summary)
    else:
        rows.append(
            (
                "journal",
                f"{bytes_text(status['journal_bytes'])} of "
                f"{bytes_text(status['journal_limit'])}",
            )
        )
        rows.append(("coalesced", bytes_text(status["bytes_coalesced"])))
        rows.append(("can promote to", _checkpoints_text(status["checkpoints"])))
        if status["refusals"]:
            rows.append(("refused", _refusals_text(status["refusals"])))
    return f"{head}\n{table(rows)}"


def _connected_text(status: dict[str, Any]) -> str:
    if not status["connected"]:
        return "no"
    return f"yes, proven by {status['security']}".replace(
        "proven by none", "without any proof"
    )


def _refusals_text(refusals: list[dict[str, Any]]) -> str:
    newest = max(refusals, key=lambda one: int(one["last_ns"]))
    return (
        f"{sum(one['count'] for one in refusals)} connections, last one from "
        f"{newest['source']}: {newest['text']}"
    )


def _checkpoints_text(checkpoints: list[dict[str, Any]]) -> str:
    if not checkpoints:
        return "nothing yet"
    shown = [
        f"{cp['epoch']}"
        + (f" (tag {cp['tag']})" if cp["tag"] else "")
        + (" committed" if cp["committed"] else "")
        for cp in checkpoints
    ]
    if len(shown) > 4:
        shown = [shown[0], f"... {len(shown) - 2} more ...", shown[-1]]
    return ", ".join(shown)


# ---- promote and commit -----------------------------------------------------------


@contextlib.contextmanager
def _open_backup(resource: ResourceFile, *, look: bool = False) -> Iterator[Backup]:
    """The backup of a process that does not run; never makes a new one."""
    if not has_state(resource, "backup"):
        raise NotRunning(
            f"backup of {resource.name}: no process runs, and "
            f"{resource.backup.state} holds no state of a backup: is this the "
            "backup's host?"
        )
    backup = with_progress(
        lambda: _serve.backup_of(resource, look=look),
        lambda: f"reading the journal of {resource.name}",
    )
    with backup:
        yield backup


def _promote(arguments: argparse.Namespace) -> int:
    resource = _load(arguments)
    names = {
        "checkpoint": arguments.checkpoint,
        "tag": arguments.tag,
        "force": arguments.force,
        "fenced": arguments.fenced,
    }

    def through_process() -> dict[str, Any]:
        result: dict[str, Any] = control.call(
            resource.backup.state, "promote", timeout_s=None, **names
        )
        return result

    if control.is_running(resource.backup.state):
        result = with_progress(
            through_process,
            lambda: _promote_progress(
                resource,
                lambda: control.call(resource.backup.state, "status", timeout_s=1.0),
            ),
        )
    else:
        with _open_backup(resource) as backup:
            result = with_progress(
                lambda: _serve.promote_and_tell(resource, backup, **names),
                lambda: _promote_progress(
                    resource, lambda: dataclasses.asdict(backup.status())
                ),
            )
    if arguments.json:
        print(json.dumps({"resource": resource.name, **result}))
        return OK
    tag = f" (tag {result['tag']})" if result["tag"] else ""
    print(
        f"{resource.name} promoted to checkpoint {result['checkpoint']}{tag} "
        f"in {seconds_text(result['seconds'])}"
    )
    for volume in resource.volumes:
        print(f"  {volume.name}: {volume.backup}")
    return OK


def _promote_progress(resource: ResourceFile, ask: Callable[[], dict[str, Any]]) -> str:
    try:
        status = ask()
    except CheckpointTimeout:
        return (
            f"promoting {resource.name}: waiting for the backup's process, which "
            "does not answer: is it stopped?"
        )
    except RemusError:
        return f"promoting {resource.name}"
    return (
        f"promoting {resource.name}: applied up to {status['applied_epoch']} "
        f"of {max(status['promoted_epoch'], status['prepared_epoch'])}, "
        f"{bytes_text(status['bytes_applied'])} written"
    )


def _swap(arguments: argparse.Namespace) -> int:
    resource = _load(arguments)
    resource.swapped()  # a file that can't be swapped says so before anything
    result = with_progress(
        lambda: control.call(
            resource.backup.state, "promote", timeout_s=None, turn=True
        ),
        lambda: f"swapping the roles of {resource.name}",
    )
    print(
        f"{resource.name} swapped at checkpoint {result['checkpoint']}: this host is "
        "the primary now, the other one the backup (use --swapped)"
    )
    return OK


def _verify(arguments: argparse.Namespace) -> int:
    resource = _load(arguments)
    found = verify(resource, repair=arguments.repair, rate=arguments.rate)
    if arguments.json:
        print(json.dumps({"resource": resource.name, **found}))
    elif not found["blocks_different"]:
        print(f"{resource.name}: equal, {bytes_text(found['bytes_done'])} compared")
    else:
        print(
            f"{resource.name}: {found['blocks_different']} blocks of 16 KiB differ, "
            f"{bytes_text(found['bytes_done'])} compared"
        )
        for volume, offset in found["different"]:
            print(f"  {volume}: at {offset}")
        if len(found["different"]) < found["blocks_different"]:
            print("  ...")
        if arguments.repair:
            print(
                f"{bytes_text(found['bytes_repaired'])} were sent again and are in "
                "the next checkpoint; verify once more after it"
            )
    return DIFFERENT if found["blocks_different"] else OK


def _resume(arguments: argparse.Namespace) -> int:
    resource = _load(arguments)
    control.call(resource.primary.state, "resume", timeout_s=60.0)
    print(f"{resource.name}: the guest goes on without its backup")
    return OK


def _commit(arguments: argparse.Namespace) -> int:
    resource = _load(arguments)
    try:
        control.call(
            resource.backup.state, "commit", timeout_s=60.0, epoch=arguments.number
        )
    except NotRunning:
        with _open_backup(resource) as backup:
            backup.commit(arguments.number)
    print(f"{resource.name} committed up to checkpoint {arguments.number}")
    return OK


# ---- arguments --------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """Tells in one line what is wrong, as every other error here."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: {message}\n{self.format_usage()}")


def duration(text: str) -> float:
    """An argument such as "50ms" or "10s"."""
    try:
        return parse_duration_ms(text) / 1000
    except ValueError:
        raise argparse.ArgumentTypeError(
            f'expected a duration such as "50ms" or "3s", got "{text}"'
        ) from None


def size(text: str) -> int:
    """A number of bytes, as a resource file has it."""
    try:
        return parse_size(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f'a size such as "50MiB", got "{text}"'
        ) from None


def count(text: str) -> int:
    """An argument that is a whole number from 1 on."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f'expected a number from 1 on, got "{text}"')
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="remus-native",
        description="Checkpointed disk replication for highly available guests.",
        epilog=f"{EXIT_CODES}\n\nexample:\n  remus-native demo",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (
        _add_backup,
        _add_primary,
        _add_run,
        _add_status,
        _add_promote,
        _add_commit,
        _add_verify,
        _add_swap,
        _add_resume,
        _add_demo,
    ):
        add(commands)
    return parser


def _add(
    commands: Any,
    name: str,
    command: Callable[[argparse.Namespace], int],
    summary: str,
    text: str,
    example: str,
    *,
    file: bool = True,
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=text,
        epilog=f"example:\n  {example}\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=command)
    if file:
        parser.add_argument("file", metavar="FILE", help="the resource file (TOML)")
        parser.add_argument(
            "--swapped",
            action="store_true",
            help="the two sides of the file have exchanged their roles",
        )
    return parser


def _add_backup(commands: Any) -> None:
    parser = _add(
        commands,
        "backup",
        _backup,
        "serve as the backup, in the foreground",
        "Listen for the primary, keep every epoch in the journal, apply the\n"
        "committed ones. Ends on SIGTERM or SIGINT. After a promote the process\n"
        "stays and answers status; the disks are free.",
        "remus-native backup --create guest0.toml",
    )
    parser.add_argument(
        "--create",
        action="store_true",
        help="at the first start, create images that are missing, as sparse files "
        "of the size that FILE gives; what is there is never touched",
    )
    parser.add_argument(
        "--discard-local",
        action="store_true",
        help="in a split brain: lose what this side wrote by itself",
    )


def _add_primary(commands: Any) -> None:
    _add(
        commands,
        "primary",
        _primary,
        "serve the disks to the guest, in the foreground",
        "Mount the volumes as files and replicate what is written to them.\n"
        "Ends on SIGTERM or SIGINT, unmounts. Needs root and /dev/fuse.",
        "remus-native primary guest0.toml",
    )


def _add_run(commands: Any) -> None:
    parser = _add(
        commands,
        "run",
        _run,
        "take checkpoints in a loop",
        "Take a checkpoint of all volumes each interval, through the nodes of a\n"
        "running primary. Ends on SIGINT or SIGTERM with a summary.",
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
    parser.add_argument("--count", type=count, metavar="N", help="end after N")
    parser.add_argument(
        "--duration", type=duration, metavar="TIME", help="end after this time"
    )


def _add_status(commands: Any) -> None:
    parser = _add(
        commands,
        "status",
        _status,
        "say what each side does",
        "Ask the processes of this host. A backup that does not run is read from\n"
        "its state directory; the exit code is 4 all the same.",
        "remus-native status --json guest0.toml",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    parser.add_argument(
        "--side", choices=("primary", "backup"), help="ask this side only"
    )


def _add_promote(commands: Any) -> None:
    parser = _add(
        commands,
        "promote",
        _promote,
        "fail over to the backup",
        "Make the backup's disks exactly what the primary's were at one checkpoint\n"
        "and give them free. Without a name: the last committed checkpoint; the\n"
        "last prepared one if the checkpoints come through ioctls (run, libxl).",
        "remus-native promote --checkpoint 812 guest0.toml",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--checkpoint", type=count, metavar="N", help="the checkpoint of this number"
    )
    which.add_argument("--tag", metavar="T", help="the checkpoint with this tag")
    parser.add_argument(
        "--force",
        action="store_true",
        help="cut a connected primary off instead of asking it to give way: what "
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
        _verify,
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
        _swap,
        "exchange the roles of the two sides, with nothing lost",
        "On the backup's host. The primary gives way with a last checkpoint (no file\n"
        "of its volumes may be open for writing), the backup is promoted to it, and\n"
        "both processes go on in the other role.",
        "remus-native swap guest0.toml",
    )


def _add_resume(commands: Any) -> None:
    _add(
        commands,
        "resume",
        _resume,
        "let the guest go on without its backup",
        "On the primary's host. An operator's word in place of the fence command's:\n"
        "the backup is not, and will not be, promoted.",
        "remus-native resume guest0.toml",
    )


def _add_commit(commands: Any) -> None:
    parser = _add(
        commands,
        "commit",
        _commit,
        "commit a checkpoint on the backup",
        "Say on the backup that checkpoint N, memory too, is complete. It and every\n"
        "prepared one before it are applied.",
        "remus-native commit guest0.toml 812",
    )
    parser.add_argument("number", metavar="N", type=count, help="the checkpoint")


def _add_demo(commands: Any) -> None:
    from . import demo

    demo.add_arguments(
        _add(
            commands,
            "demo",
            _demo,
            "show and prove a failover, on an empty machine",
            "Replicate an ext4 disk on which SQLite inserts rows, kill the primary\n"
            "with SIGKILL at a random moment, promote the backup, and prove that\n"
            "every row of the promoted checkpoint is there. Needs root and /dev/fuse;\n"
            "without them the same proof runs on the in-process API and plain files.",
            "remus-native demo --seconds 5 --seed 7",
            file=False,
        )
    )
