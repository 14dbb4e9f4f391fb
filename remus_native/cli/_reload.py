# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reading the resource file again under a running guest: SIGHUP and ``reload``.

The keys, the log, and the commands that the file names with their timeouts
change at once.  Everything else stays as it is until the next start, and is
named.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from ..resource_file import Limits, ResourceFile, load
from ..shared.log import say

__all__ = ["reader"]

Use = Callable[[ResourceFile], None]
#: Each field, and the key of the file that it stands for.
LIVE = {"fence": "fence", "notify": "notify", "log": "log"}
LIVE_LIMITS = {"fence_ms": "fence_timeout", "notify_ms": "notify_timeout"}
#: Where a field of `Limits` has another name than its key.
KEYS = {
    "max_pause_ms": "max_pause",
    "loss_ms": "loss",
    "stall_ms": "stall",
    "idle_ms": "idle_interval",
    "grace_ms": "session_grace",
    "stale_ms": "stale_after",
    **LIVE_LIMITS,
}


def reader(
    resource: ResourceFile, keys: Sequence[Callable[[], None]], uses: Sequence[Use]
) -> Callable[[], dict[str, Any]]:
    """What reads the file of ``resource`` again: for SIGHUP, and for a request.

    ``keys`` read the key file again; ``uses`` take the file's new values, of
    which only those in `LIVE` have changed.  Raises `RemusError` if a file is
    wrong: then nothing has changed.
    """
    now = resource

    def read() -> dict[str, Any]:
        nonlocal now
        new = load(resource.file)
        if new.is_swapped != resource.is_swapped:
            new = new.swapped()
        for one in keys:
            one()
        merged, changed, kept = merge(now, new)
        for use in uses:
            use(merged)
        now = merged
        name = resource.name
        what = ["the key file"] * bool(keys and resource.psk_file) + changed
        say(f"{name}: read again: {', '.join(what) if what else 'nothing changed'}")
        if kept:
            say(
                f"{name}: these take effect with `remus-native restart "
                f"{resource.file}`, or the next start: {', '.join(kept)}"
            )
        return {"changed": what, "kept": kept}

    return read


def merge(
    now: ResourceFile, new: ResourceFile
) -> tuple[ResourceFile, list[str], list[str]]:
    """``now`` with what can change, the keys that do, and those that can not."""
    changed, kept = [], []
    values: dict[str, Any] = {}
    for field in dataclasses.fields(ResourceFile):
        key = field.name
        before, after = getattr(now, key), getattr(new, key)
        if before == after or key == "limits":
            continue
        # Whether there is a command at all decides how a side begins.
        if key in LIVE and (key == "log" or bool(before) == bool(after)):
            values[key] = after
            changed.append(LIVE[key])
        else:
            kept.append(key)
    limits: dict[str, Any] = {}
    for field in dataclasses.fields(Limits):
        key = field.name
        after = getattr(new.limits, key)
        if getattr(now.limits, key) == after:
            continue
        name = f"limits.{KEYS.get(key, key)}"
        if key in LIVE_LIMITS:
            limits[key] = after
            changed.append(name)
        else:
            kept.append(name)
    values["limits"] = dataclasses.replace(now.limits, **limits)
    return dataclasses.replace(now, **values), changed, kept
