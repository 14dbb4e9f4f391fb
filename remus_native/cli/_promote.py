# SPDX-License-Identifier: LGPL-2.1-or-later
"""The way to a promote: who is asked, who is fenced, what it costs; and after
it, what an old primary is told."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import RemusError, StateError
from ..replica import Backup, Checkpoint, Primary, State
from ..replica._former import OldAddress
from ..resource_file import ResourceFile
from ..shared.log import say
from ._fence import run_fence

__all__ = [
    "FormerAddress",
    "checkpoint_object",
    "force_costs",
    "listen_first",
    "promote_and_tell",
]

LOOK_S = 0.02  # between looks whether a primary has come
CATCH_UP_S = 30.0  # for one that is just being caught up with
#: The address is another host's, or a name that nobody knows now.
NOT_HERE = (errno.EADDRNOTAVAIL, errno.EHOSTUNREACH)


def checkpoint_object(checkpoint: Checkpoint) -> dict[str, Any]:
    """A checkpoint as JSON has it."""
    return {**dataclasses.asdict(checkpoint), "tag": _tag_text(checkpoint.tag)}


def _tag_text(tag: bytes) -> str | None:
    return tag.decode("utf-8", "backslashreplace") if tag else None


def listen_first(resource: ResourceFile, backup: Backup) -> None:
    """Serve ``backup``, whose process does not run, for as long as a loss takes.

    So a primary that lives has the time to come and be asked, as that process
    would ask it: nobody is fenced who would have answered.  Where the address
    is none of this host's now, nobody can come, and that is said.  Raises what
    `Backup.serve` raises.
    """
    if backup.status().promoted_epoch:
        return
    loss_ms = resource.limits.loss_ms
    try:
        backup.serve(resource.listens, tls=resource.tls, loss_ms=loss_ms)
    except RemusError as error:
        if error.errno not in NOT_HERE:
            raise
        say(
            f"{resource.name}: a primary that lives can't be asked whether it steps "
            f"down, for this host can't listen: {error}"
        )
        return
    end = time.monotonic() + loss_ms / 1000
    while not backup.status().connected and time.monotonic() < end:
        time.sleep(LOOK_S)
    # It answers no as long as it is not Protected, and would at each try.
    end = time.monotonic() + CATCH_UP_S
    while (
        (status := backup.status()).connected
        and status.state is not State.PROTECTED
        and time.monotonic() < end
    ):
        time.sleep(LOOK_S)


def promote_and_tell(
    resource: ResourceFile,
    backup: Backup,
    checkpoint: int | None = None,
    tag: str | None = None,
    force: bool = False,
    fenced: bool = False,
    swap: bool = False,
    stop: int | None = None,
) -> dict[str, Any]:
    """Promote; which checkpoint it was, its tag, and how long it took.

    Without the primary's word the fence command must succeed first;
    ``fenced``: the caller has seen to it.  ``swap``: only with its word.
    ``stop``: as for `run_fence`.
    """
    if swap and not backup.status().connected:
        raise _nobody_to_swap_with(resource)
    # What can't be promoted to must neither stop a primary nor fence it.
    backup.target(checkpoint, tag=tag)
    named = checkpoint is not None or tag is not None
    given = False
    if swap or not force:
        given = backup.ask(keep=named, switch=swap)
    if swap and not given:
        raise _nobody_to_swap_with(resource)
    if not given and not fenced and not backup.status().promoted_epoch:
        facts = {"side": "backup", "why": "the primary did not step down"}
        if named:
            facts["checkpoint"] = str(checkpoint if tag is None else tag)
        run_fence(resource, "promote", facts, stop=stop)
    tags = {cp.epoch: cp.tag for cp in backup.checkpoints()}
    start = time.monotonic()
    number = backup.promote(checkpoint, tag=tag, force=force)
    seconds = time.monotonic() - start
    tags.update({cp.epoch: cp.tag for cp in backup.checkpoints()})
    return {
        "checkpoint": number,
        "tag": _tag_text(tags.get(number, b"")),
        "seconds": seconds,
    }


def _nobody_to_swap_with(resource: ResourceFile) -> StateError:
    return StateError(
        f"backup of {resource.name}: no primary is connected that could step "
        "down: roles are swapped only between two sides that are up; to fail "
        "over, promote",
        errno=errno.ENOTCONN,
    )


def force_costs(
    status: Mapping[str, Any],
    checkpoints: Sequence[Mapping[str, Any]],
    target: int,
) -> list[str]:
    """What a promote with --force costs, said before it is done."""
    newer = [cp["epoch"] for cp in checkpoints if cp["epoch"] > target]
    lost = f"what the guest wrote after checkpoint {target} is lost"
    if newer:
        lost += f", also what {len(newer)} newer checkpoints hold (up to {newer[-1]})"
    if not status["connected"]:
        return [
            "warning: --force: no primary is connected that could be asked: "
            f"{lost}; if one lives and its guest goes on, that is a split brain"
        ]
    return [
        "warning: --force: a primary is connected and is not asked: it is cut off; "
        f"{lost}",
        "warning: stop its guest: what that writes from now on is lost as well, or a "
        "split brain once it goes on alone",
    ]


class FormerAddress:
    """Where this side listened as the backup, if it was one: an old primary
    that comes back there must hear what became of it."""

    def __init__(self, resource: ResourceFile, primary: Primary) -> None:
        self._primary = primary
        self._name = resource.name
        self._told = ""
        self._address: OldAddress | None = None
        if not os.path.exists(os.path.join(resource.primary.state, "backup.state")):
            return
        try:
            before = resource.swapped()
            if before.address == resource.address:
                # That is where our backup listens.
                say(
                    f"{resource.name}: an old primary that starts again on this "
                    "socket is not told what became of it, and takes writes: "
                    "give address_swapped a socket of its own"
                )
                return
            self._address = OldAddress(
                resource.name,
                state_dir=resource.primary.state,
                address=before.listens,
                tls=before.tls,
                psk_file=before.psk_file,
                psk_identity=before.psk_identity,
            )
        except RemusError as error:
            # The guest's disk does not depend on this, and is served all the same.
            say(
                f"{resource.name}: an old primary that comes back can't be told "
                f"what became of it: {error}",
                logging.WARNING,
            )

    def reload_keys(self) -> None:
        if self._address is not None:
            self._address.reload_keys()

    def look(self) -> None:
        """Say, once, what somebody was told there."""
        if self._address is None:
            return
        told, split = self._address.news()
        if told == self._told:
            return
        self._told = told
        say(f"{self._name}: {told}", logging.WARNING)
        if split:
            self._primary.name_split(told)

    def close(self) -> None:
        if self._address is not None:
            self._address.close()
