# SPDX-License-Identifier: LGPL-2.1-or-later
"""The doctor's look at disks: sizes, space, a journal's sync, the mount point."""

from __future__ import annotations

import os
import stat
import statistics
import tempfile
import time
from collections.abc import Iterator

from ..resource_file import ResourceFile, ResourceFileError, Side
from ..resource_file._disks import check_disks, check_overlap, has_state
from ..resource_file._values import Problems
from ..shared.progress import bytes_text, seconds_text
from ._finding import ERROR, OK, WARNING, Finding, Subject, existing

__all__ = ["images", "is_here", "journal", "mount", "space"]

STATE_ROOM = 64 << 20  # bytes that a state directory may need beside a journal
SYNC_BYTES, SYNCS = 8192, 40
SYNC_SLOW_S = 0.01


def is_here(resource: ResourceFile, side: Side) -> bool:
    """Whether this host has anything of ``side``."""
    return has_state(resource, side) or any(
        os.path.exists(volume.path(side)) for volume in resource.volumes
    )


# ---- sizes ------------------------------------------------------------------------


def images(subject: Subject) -> Iterator[Finding]:
    resource, side = subject.resource, subject.side
    problems = Problems(resource.file)
    try:
        check_overlap(resource, problems, (side,), resolve=True)
        check_disks(resource, side, problems, create=False)
    except ResourceFileError as error:
        for problem in error.problems:
            words = problem.removeprefix(f"{resource.file}: ")
            found, _, fix = words.partition("; fix: ")
            yield subject.says("images", ERROR, found, fix)
        return
    sizes = ", ".join(
        f"{volume.name} {bytes_text(_size(volume.path(side)))}"
        for volume in resource.volumes
    )
    yield subject.says("images", OK, sizes)


def _size(path: str) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.lseek(fd, 0, os.SEEK_END)
    finally:
        os.close(fd)


# ---- free space -------------------------------------------------------------------


def space(subject: Subject) -> Iterator[Finding]:
    resource = subject.resource
    state = existing(subject.state)
    yield _room(subject, f"state in {state}", state, STATE_ROOM)
    if subject.side == "backup":
        folder = resource.backup.journal
        there = _allocated(folder)
        need = max(0, resource.limits.journal - there)
        yield _room(subject, f"journal in {folder}", existing(folder), need)
    yield from _sparse_images(subject)
    if subject.side == "primary":
        run_dir = resource.run_dir or (
            "/run/remus-native" if in_memory("/run") else "/dev/shm/remus-native"
        )
        if not in_memory(existing(run_dir)):
            yield subject.says(
                "space",
                ERROR,
                f"dirty map: {run_dir} is not on a tmpfs",
                "choose a run_dir on one: a store into the map must not wait for a "
                "disk",
            )
        size = sum(_size_or_0(v.path("primary")) for v in resource.volumes)
        # Four sets of a bit for each block of 16 KiB.
        yield _room(
            subject,
            f"dirty map in {run_dir}",
            existing(run_dir),
            4 * (size // (16 << 10) // 8) + (1 << 20),
        )


def in_memory(path: str) -> bool:
    """Whether a directory lies on a tmpfs, as /proc/self/mountinfo has it."""
    number = os.stat(path).st_dev
    wanted = f"{os.major(number)}:{os.minor(number)}"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            left, _, right = line.partition(" - ")
            if left.split(" ")[2] == wanted:
                return right.split(" ")[0] == "tmpfs"
    return False


def _room(subject: Subject, what: str, folder: str, need: int) -> Finding:
    found = os.statvfs(folder)
    free = found.f_bavail * found.f_frsize
    words = f"{what}: {bytes_text(need)} needed, {bytes_text(free)} free"
    if free < need:
        return subject.says("space", ERROR, words, "make room, or choose another place")
    if free < need + STATE_ROOM:
        return subject.says("space", WARNING, words, "make room before it is full")
    return subject.says("space", OK, words)


def _allocated(folder: str) -> int:
    try:
        with os.scandir(folder) as entries:
            return sum(entry.stat().st_blocks * 512 for entry in entries)
    except OSError:
        return 0


def _size_or_0(path: str) -> int:
    try:
        return _size(path)
    except OSError:
        return 0


def _sparse_images(subject: Subject) -> Iterator[Finding]:
    """Holes that may be written one day, beside what is free for them."""
    holes: dict[int, int] = {}
    where: dict[int, str] = {}
    for volume in subject.resource.volumes:
        path = volume.path(subject.side)
        try:
            found = os.stat(path)
        except OSError:
            continue  # `images` names it
        if stat.S_ISREG(found.st_mode):
            missing = max(0, found.st_size - found.st_blocks * 512)
            holes[found.st_dev] = holes.get(found.st_dev, 0) + missing
            where[found.st_dev] = os.path.dirname(path)
    for device, need in holes.items():
        folder = where[device]
        found_fs = os.statvfs(folder)
        free = found_fs.f_bavail * found_fs.f_frsize
        words = (
            f"images in {folder}: {bytes_text(need)} not allocated yet, "
            f"{bytes_text(free)} free"
        )
        if need > free:
            yield subject.says(
                "space",
                WARNING,
                words,
                "a full file system fails writes: make room, or allocate the "
                "images (fallocate)",
            )
        else:
            yield subject.says("space", OK, words)


# ---- the journal's sync -----------------------------------------------------------


def journal(subject: Subject) -> Iterator[Finding]:
    """What each checkpoint waits for at the least with ack = "durable"."""
    if subject.side != "backup":
        return
    folder = existing(subject.resource.backup.journal)
    try:
        times = _sync_times(folder)
    except OSError as error:
        yield subject.says(
            "journal",
            ERROR,
            f"{folder}: a test file could not be written: {error.strerror}",
            "run it as the journal's owner; check the disk",
        )
        return
    middle, longest = statistics.median(times), max(times)
    words = (
        f"{folder}: fdatasync of {bytes_text(SYNC_BYTES)} takes "
        f"{seconds_text(middle)}, at most {seconds_text(longest)}"
    )
    if subject.resource.ack == "memory":
        yield subject.says("journal", OK, f'{words}; ack = "memory" does not wait')
    elif middle >= SYNC_SLOW_S:
        yield subject.says(
            "journal",
            WARNING,
            words,
            "each checkpoint waits for it: a disk of its own makes it faster",
        )
    else:
        yield subject.says("journal", OK, words)


def _sync_times(folder: str) -> list[float]:
    """Of a file without a name that was written once, as a segment is."""
    times = []
    with tempfile.TemporaryFile(dir=folder) as file:
        fd = file.fileno()
        os.pwrite(fd, bytes(SYNC_BYTES * SYNCS), 0)
        os.fsync(fd)
        for i in range(SYNCS):
            os.pwrite(fd, b"x" * SYNC_BYTES, i * SYNC_BYTES)
            started = time.monotonic()
            os.fdatasync(fd)
            times.append(time.monotonic() - started)
    return times


# ---- the mount point --------------------------------------------------------------


def mount(subject: Subject) -> Iterator[Finding]:
    """Where the disks appear: nobody else may put anything there."""
    own = subject.own
    if subject.side == "backup" and not own.serves:
        return
    path = own.mount
    if subject.runs:
        yield subject.says("mount", OK, f"{path}: served by the process that runs")
        return
    yield from _unsafe_parents(subject, path)
    try:
        os.statvfs(path)
        found = os.lstat(path)
    except FileNotFoundError:
        yield subject.says("mount", OK, f"{path}: not there yet, made at the start")
        return
    except OSError as error:
        yield subject.says(
            "mount",
            WARNING,
            f"{path}: {error.strerror}: the mount of a process that was killed",
            "the next start takes it away, if it is this resource's",
        )
        return
    if stat.S_ISLNK(found.st_mode) or not stat.S_ISDIR(found.st_mode):
        yield subject.says(
            "mount", ERROR, f"{path}: no directory", "name a directory of its own"
        )
    elif os.path.ismount(path):
        yield subject.says(
            "mount", ERROR, f"{path}: another file system is mounted there",
            f"umount {path}",
        )  # fmt: skip
    elif os.listdir(path):
        yield subject.says(
            "mount",
            ERROR,
            f"{path}: not empty: {os.listdir(path)[0]}",
            "move what is in it away: it may be a disk that was meant for the guest",
        )
    else:
        yield subject.says("mount", OK, f"{path}: an empty directory")


def _unsafe_parents(subject: Subject, path: str) -> Iterator[Finding]:
    parent = path
    while parent != "/":
        parent = os.path.dirname(parent)
        try:
            found = os.stat(parent)
        except OSError:
            continue
        others = stat.S_IMODE(found.st_mode) & 0o022
        if found.st_uid not in (0, os.geteuid()) or (
            others and not found.st_mode & stat.S_ISVTX
        ):
            yield subject.says(
                "mount",
                WARNING,
                f"{parent}: users other than root can replace it",
                f"chown root {parent}; chmod go-w {parent}",
            )
            return
