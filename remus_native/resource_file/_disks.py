# SPDX-License-Identifier: LGPL-2.1-or-later
"""The paths of a resource file: do they overlap, and what lies there.

Two volumes on one disk, or a disk among the files of the state, would be
written by two hands at once: nothing would notice until a failover.  Hence
paths are compared as text, through symlinks, and by device and inode.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .._binding import last_error, lib
from ._values import SECTOR, Problems, Side

if TYPE_CHECKING:
    from . import ResourceFile

__all__ = [
    "CONTROL_SOCKET",
    "check_disks",
    "check_key",
    "check_overlap",
    "group_number",
    "has_state",
    "user_number",
]

CONTROL_SOCKET = "control.sock"  # in each side's state directory
TWO_HOSTS = (
    "; if the sides are on two hosts (the socket carried over ssh), "
    "say same_host = false"
)


# ---- the key file ------------------------------------------------------------


def check_key(psk_file: str, identity: str, problems: Problems) -> None:
    """Would the library take this key?  It says itself what to do."""
    if lib.remus_psk_check(os.fsencode(psk_file), os.fsencode(identity)) < 0:
        problems.tell(last_error())


# ---- overlapping paths -----------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """A path that the file names, and what it is for."""

    key: str
    path: str
    kind: str  # "disk", "state", "journal", "mount" or "socket"
    side: Side | None  # None: both
    real: str = ""  # where the path leads, without symlinks
    identity: tuple[int, ...] | None = None  # of the file or device, if known

    def __post_init__(self) -> None:
        if not self.real:
            object.__setattr__(self, "real", self.path)


def _places(resource: ResourceFile, sides: Sequence[Side]) -> Iterator[_Place]:
    for side in sides:
        yield _Place(f"{side}.state", resource.state(side), "state", side)
        own = resource.primary if side == "primary" else resource.backup
        yield _Place(f"{side}.mount", own.mount, "mount", side)
        yield _Place(f"{side}.journal", own.journal, "journal", side)
    if resource.address.startswith("unix:"):
        yield _Place("address", resource.address[5:], "socket", None)
    for i, volume in enumerate(resource.volumes):
        for side in sides:
            yield _Place(f"volume[{i}].{side}", volume.path(side), "disk", side)


def check_overlap(
    resource: ResourceFile,
    problems: Problems,
    sides: Sequence[Side],
    *,
    resolve: bool,
) -> None:
    """Refuse paths of ``sides`` that are one file or lie in each other.

    ``resolve``: the paths are this host's: follow symlinks, compare inodes.
    Otherwise they are compared as text, and each side by itself.
    """
    across = resource.same_host
    seen: list[_Place] = []
    for place in _places(resource, sides):
        if resolve:
            place = _resolved(place)
        for earlier in seen:
            crossing = None not in (place.side, earlier.side) and (
                place.side != earlier.side
            )
            clash = None if crossing and not across else _clash(earlier, place)
            if clash:
                problems.add(
                    place.key,
                    clash,
                    f"{place.path}, where {earlier.key} is {earlier.path}",
                    "choose another path" + (TWO_HOSTS if crossing else ""),
                )
                break
        seen.append(place)


def _resolved(place: _Place) -> _Place:
    """With what this host says about the path.

    A mount point itself is never inspected: a primary that hangs would hold
    up whoever asks, ``status`` too.
    """
    if place.kind == "mount":
        parent, name = os.path.split(place.path)
        return replace(place, real=os.path.join(os.path.realpath(parent), name))
    try:
        found = os.stat(place.path)
    except OSError:
        identity = None
    else:
        disk = stat.S_ISBLK(found.st_mode)
        identity = (found.st_rdev,) if disk else (found.st_dev, found.st_ino)
    return replace(place, real=os.path.realpath(place.path), identity=identity)


def _clash(a: _Place, b: _Place) -> str | None:
    """What was expected of two places that are too close; None if they are not."""
    same = a.identity is not None and a.identity == b.identity
    if same or a.real == b.real:
        return "a disk of its own" if b.kind == "disk" else "a path of its own"
    for inner, outer in ((b, a), (a, b)):
        if _inside(inner.real, outer.real) and not _may_hold(outer, inner):
            where = "outside" if inner is b else "not around"
            return f"a path {where} {a.key}"
    return None


def _may_hold(outer: _Place, inner: _Place) -> bool:
    """Whether ``outer`` is a directory in which ``inner`` does no harm.

    A state directory is a good place for its own journal, for a mount point
    and for the socket (but see `CONTROL_SOCKET`); a mounted directory hides
    whatever lies in it.
    """
    return (
        outer.kind == "state"
        and inner.kind in ("journal", "mount", "socket")
        and os.path.basename(inner.path) != CONTROL_SOCKET
        and inner.side in (outer.side, None)
    )


def _inside(path: str, directory: str) -> bool:
    return path.startswith(directory.rstrip("/") + "/")


# ---- disks ------------------------------------------------------------------


def check_disks(
    resource: ResourceFile, side: Side, problems: Problems, *, create: bool
) -> None:
    """What `ResourceFile.check` promises about the disks of ``side``."""
    missing: list[tuple[str, int]] = []
    # Under a state that knows its disks an empty one would pass for the old.
    lost = has_state(resource, side)
    for i, volume in enumerate(resource.volumes):
        path, key = volume.path(side), f"volume[{i}].{side}"
        wanted, source = _expected_size(resource, i, side)
        if lost and not os.path.exists(path):
            problems.add(
                key,
                f"the disk that {resource.state(side)} belongs to, at {path}",
                "no such file",
                "mount or restore it; only if it is lost, empty the state "
                "directory"
                + (" and the journal" if side == "backup" else "")
                + " and let the primary copy the disks again",
            )
            continue
        if create and side == "backup" and not os.path.lexists(path):
            if wanted is not None:
                missing.append((path, wanted))
            else:
                problems.add(
                    f"volume[{i}].size",
                    "a size, to create the image with",
                    None,
                    'say size = "8GiB", the size of the primary\'s disk',
                )
            continue
        found = _disk_size(path, key, side, wanted, problems)
        if found is None:
            continue
        if found == 0 or found % SECTOR:
            problems.add(
                key,
                f"a disk of a multiple of {SECTOR} bytes",
                f"{found} bytes in {path}",
                "give it the size of the other side's disk",
            )
        elif wanted is not None and found != wanted:
            problems.add(
                f"volume[{i}].size",
                f"{wanted} bytes ({source}) in {path}",
                f"{found} bytes",
                "correct the size in the file or replace the image: "
                "both sides must have the same",
            )
    problems.raise_if_any()
    made = []
    for path, size in missing:
        if _create_image(path, size, problems):
            made.append(path)
    if problems.lines:  # all of them, or none
        for path in made:
            with contextlib.suppress(OSError):
                os.unlink(path)
    problems.raise_if_any()


def has_state(resource: ResourceFile, side: Side) -> bool:
    """Whether this side ever ran with its state directory."""
    return os.path.exists(os.path.join(resource.state(side), f"{side}.state"))


def _expected_size(
    resource: ResourceFile, i: int, side: Side
) -> tuple[int | None, str]:
    """The size that a disk must have, and who says so."""
    volume = resource.volumes[i]
    if volume.size is not None:
        return volume.size, "configured"
    if resource.same_host:
        other: Side = "backup" if side == "primary" else "primary"
        try:
            path = volume.path(other)
            return _size_of(path), f"the size of the {other}'s {path}"
        except (OSError, ValueError):
            pass
    return None, ""


def _size_of(path: str) -> int:
    """The size of a disk.  OSError; ValueError if it is something else."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        raise ValueError("neither a regular file nor a block device")
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.lseek(fd, 0, os.SEEK_END)
    finally:
        os.close(fd)


def _disk_size(
    path: str, key: str, side: Side, wanted: int | None, problems: Problems
) -> int | None:
    try:
        return _size_of(path)
    except FileNotFoundError:
        size = wanted if wanted is not None else "SIZE"
        hint = f"create it: truncate -s {size} {path}"
        if side == "backup":
            hint += ", or start the backup with --create"
        problems.add(key, f"a disk at {path}", "no such file", hint)
    except OSError as error:
        problems.add(
            key,
            f"a readable disk at {path}",
            error.strerror or str(error),
            "check its rights and run as the user who owns it",
        )
    except ValueError as error:
        problems.add(
            key,
            f"a regular file or block device at {path}",
            str(error),
            "name the disk itself",
        )
    return None


def _create_image(path: str, size: int, problems: Problems) -> bool:
    """A sparse file of ``size`` bytes, 0600.  Never an existing one.

    Whether it is there; a failure leaves nothing.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        problems.add(
            "--create",
            f"to create {path}",
            error.strerror or str(error),
            "create the image or its directory by hand",
        )
        return False
    try:
        os.ftruncate(fd, size)
        os.fsync(fd)
    except (OSError, OverflowError) as error:
        with contextlib.suppress(OSError):
            os.unlink(path)
        why = getattr(error, "strerror", None) or str(error)
        problems.add(
            "--create",
            f"to create {path} with {size} bytes",
            why,
            "give a smaller size, or put the image on a file system that allows it",
        )
        return False
    finally:
        os.close(fd)
    return True


# ---- owners ----------------------------------------------------------------


def user_number(who: str | int, key: str, problems: Problems) -> int:
    """The uid of a user, by name or number."""
    return _number(who, lambda name: pwd.getpwnam(name).pw_uid, "user", key, problems)


def group_number(who: str | int, key: str, problems: Problems) -> int:
    """The gid of a group, by name or number."""
    return _number(who, lambda name: grp.getgrnam(name).gr_gid, "group", key, problems)


def _number(
    who: str | int,
    look_up: Callable[[str], int],
    kind: str,
    key: str,
    problems: Problems,
) -> int:
    if isinstance(who, int):
        return who
    try:
        return look_up(who)
    except KeyError:
        problems.add(
            key,
            f"a {kind} of this host",
            f'"{who}"',
            f"create the {kind}, or give its number",
        )
        return 0
