# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command line: ``remus-native``.

Each command reads one resource file (docs/resource-file.md).  ``backup`` and
``primary`` serve in the foreground until a signal; the others talk to them
over the control socket (control/), or to the nodes of the primary.

What belongs to a result goes to standard output, everything else to standard
error.  `EXIT_CODES` is the whole list of exit codes.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .. import control
from .._text import printable
from ..control import NotRunning
from ..errors import (
    CheckpointTimeout,
    ConfigError,
    DeviceErrors,
    RemusError,
    ReplicationLost,
)
from ..replica import Backup
from ..resource_file import (
    LogSettings,
    ResourceFile,
    ResourceFileError,
)
from ..resource_file._disks import has_state
from ..shared.log import open_standard_descriptors, say, silence, use
from ..shared.log_options import log_options
from ..shared.progress import bytes_text, seconds_text, with_progress
from . import _run as run
from . import _up
from ._arguments import EXIT_CODES
from ._arguments import parser as _parser
from ._doctor import check, doctor
from ._many import down, up
from ._metrics import metrics
from ._promote import (
    checkpoint_object,
    force_costs,
    listen_first,
    promote_and_tell,
)
from ._serve import backup_of, serve, serve_backup, serve_primary
from ._show import events, status
from ._verify import verify

__all__ = ["EXIT_CODES", "main"]

OK, FAILED, USAGE, UNPROTECTED, NOT_RUNNING, DIFFERENT, INTERRUPTED = (
    0,
    1,
    2,
    3,
    4,
    5,
    130,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    open_standard_descriptors()
    use(LogSettings())  # until a resource file or an option says otherwise
    code = _run_command(argv)
    return code if _flush_output() else code or FAILED


def _run_command(argv: Sequence[str] | None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        if getattr(arguments, "check", False):
            return check(arguments)
        return COMMANDS[arguments.command](arguments)
    except ResourceFileError as error:
        for problem in error.problems:
            say(problem, logging.ERROR)
        return USAGE
    except BrokenPipeError:
        return FAILED  # whoever read our output has seen enough
    except (RemusError, OSError) as error:
        say(str(error), logging.ERROR)
        return _code_of(error)
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED


def _flush_output() -> bool:
    """Whether standard output took all; if not, it is silent from now on.

    Else the interpreter would try again at its end, and fail once more.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        silence(sys.stdout)
    except (OSError, ValueError) as error:
        silence(sys.stdout)
        say(f"standard output: {error}: the output is not complete", logging.ERROR)
    else:
        return True
    return False


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
    return _up.load_view(arguments.file, swapped=arguments.swapped)


def _load_to_serve(arguments: argparse.Namespace) -> ResourceFile:
    return _up.load_written(arguments.file, swapped=arguments.swapped)


# ---- backup, primary, run, demo ----------------------------------------------------


def _backup(arguments: argparse.Namespace) -> int:
    resource = _load_to_serve(arguments)
    return serve(
        lambda: serve_backup(
            resource,
            create=arguments.create,
            discard_local=arguments.discard_local,
        ),
        resource,
        log_options(arguments),
    )


def _primary(arguments: argparse.Namespace) -> int:
    resource = _load_to_serve(arguments)
    return serve(lambda: serve_primary(resource), resource, log_options(arguments))


def _run(arguments: argparse.Namespace) -> int:
    return run.run(
        _load(arguments),
        interval_s=arguments.interval,
        timeout_s=arguments.timeout,
        qmp=arguments.qmp,
        count=arguments.count,
        duration_s=arguments.duration,
        on_loss=arguments.on_loss,
    )


def _demo(arguments: argparse.Namespace) -> int:
    from .. import demo

    return demo.main(arguments)


# ---- promote and commit -----------------------------------------------------------


@contextlib.contextmanager
def _open_backup(
    resource: ResourceFile, *, read_only: bool = False
) -> Iterator[Backup]:
    """The backup of a process that does not run; never makes a new one."""
    if not has_state(resource, "backup"):
        raise NotRunning(
            f"backup of {resource.name}: no process runs, and "
            f"{resource.backup.state} holds no state of a backup: is this the "
            "backup's host?"
        )
    backup = with_progress(
        lambda: backup_of(resource, read_only=read_only),
        lambda: f"reading the journal of {resource.name}",
    )
    with backup:
        yield backup


def _read_backup(resource: ResourceFile) -> contextlib.AbstractContextManager[Backup]:
    return _open_backup(resource, read_only=True)


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
        if arguments.force:
            _say_costs(resource, names)
        result = with_progress(
            through_process,
            lambda: _promote_progress(
                resource,
                lambda: control.call(resource.backup.state, "status", timeout_s=1.0),
            ),
        )
    else:
        with _open_backup(resource) as backup:
            if arguments.force:
                _say_costs(resource, names, backup)

            def by_ourselves() -> dict[str, Any]:
                if not arguments.force:
                    listen_first(resource, backup)
                return promote_and_tell(resource, backup, **names)

            result = with_progress(
                by_ourselves,
                lambda: _promote_progress(
                    resource, lambda: dataclasses.asdict(backup.status())
                ),
            )
    if arguments.json:
        print(json.dumps({"resource": resource.name, **result}))
        return OK
    tag = f" (tag {printable(result['tag'])})" if result["tag"] else ""
    print(
        f"{resource.name} promoted to checkpoint {result['checkpoint']}{tag} "
        f"in {seconds_text(result['seconds'])}"
    )
    for volume in resource.volumes:
        print(f"  {volume.name}: {printable(volume.backup)}")
    return OK


def _say_costs(
    resource: ResourceFile, names: dict[str, Any], backup: Backup | None = None
) -> None:
    """What --force costs, before it is done.  An error: it would not be."""
    which = {key: names[key] for key in ("checkpoint", "tag")}
    status: dict[str, Any]
    if backup is not None:
        status = dataclasses.asdict(backup.status())
        known = [checkpoint_object(cp) for cp in backup.checkpoints()]
        target = backup.target(**which)
    else:
        state = resource.backup.state
        status = control.call(state, "status")
        known = control.call(state, "checkpoints")
        target = control.call(state, "target", **which)["checkpoint"]
    for line in force_costs(status, known, target):
        say(line)


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
            resource.backup.state, "promote", timeout_s=None, swap=True
        ),
        lambda: f"swapping the roles of {resource.name}",
    )
    hint = "leave out --swapped" if arguments.swapped else "use --swapped"
    hint = "" if resource.host("primary") else f" ({hint})"
    print(
        f"{resource.name} swapped at checkpoint {result['checkpoint']}: this host is "
        f"the primary now, the other one the backup{hint}"
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


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "up": up,
    "down": down,
    "restart": _up.restart,
    "reload": _up.reload,
    "role": _up.role,
    "backup": _backup,
    "primary": _primary,
    "run": _run,
    "status": lambda arguments: status(arguments, _read_backup),
    "events": events,
    "metrics": lambda arguments: metrics(arguments, _read_backup),
    "doctor": doctor,
    "promote": _promote,
    "commit": _commit,
    "verify": _verify,
    "swap": _swap,
    "resume": _resume,
    "demo": _demo,
}
