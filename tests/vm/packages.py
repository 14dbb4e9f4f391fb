# SPDX-License-Identifier: LGPL-2.1-or-later
"""Debian's packages: fetched once, unpacked beside the build, never installed.

The kernel is the one that Debian's metapackage stands for today. Fetched with
apt-get as it is set up on this machine; if that fails, with package lists of
our own, for the machine's may be missing or older than what the mirror has.
"""

from __future__ import annotations

import fcntl
import re
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

KERNEL = "linux-image-amd64"
TOOLS = (
    "busybox-static",
    "coreutils",
    "dash",
    "drbd-utils",
    "libc6",
    "libpcre2-8-0",
    "libselinux1",
)
# A kernel is 400 MB unpacked; these files are 10.
FROM_KERNEL = re.compile(
    r"(vmlinuz-.*|(crc32c_generic|libcrc32c|lru_cache|brd|drbd)\.ko(\.xz)?)"
)
LIMIT_S = 300

APT_OPTIONS = [
    "-q",
    "-o", "APT::Sandbox::User=root",  # _apt can't write to our directories
    "-o", "APT::Architecture=amd64",
    "-o", "Acquire::Retries=2",
    "-o", "Acquire::http::Timeout=20",
    "-o", "Acquire::https::Timeout=20",
]  # fmt: skip


class Unavailable(Exception):
    """The packages are not to be had on this machine; says why."""


class _Apt:
    """apt-get in a directory of its own, with one deadline for all calls."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._options: list[str] = []
        self._deadline = time.monotonic() + LIMIT_S

    def _run(self, *arguments: str) -> None:
        try:
            done = subprocess.run(
                ["apt-get", *APT_OPTIONS, *self._options, *arguments],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=max(1, self._deadline - time.monotonic()),
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Unavailable(f"apt-get: not done in {LIMIT_S} s") from None
        if done.returncode:
            lines = done.stdout.splitlines()
            complaints = [line for line in lines if line.startswith("E:")]
            raise Unavailable(f"apt-get: {' '.join(complaints or lines[-3:])}")

    def _download(self, *names: str) -> list[Path]:
        """The files of these packages, newly fetched."""
        before = set(self._folder.glob("*.deb"))
        self._run("download", *names)
        return sorted(set(self._folder.glob("*.deb")) - before)

    def fetch(self) -> tuple[Path, list[Path]]:
        """The kernel's package and the others."""
        meta, *_ = self._download(KERNEL)
        depends = subprocess.check_output(
            ["dpkg-deb", "--field", meta, "Depends"], text=True
        )
        # Exactly one: linux-image-<version>-amd64 (= <version>)
        kernel, *_ = self._download(depends.split()[0])
        return kernel, self._download(*TOOLS)

    def renew(self) -> None:
        """Forget what was fetched; from now on with new lists of our own."""
        for package in self._folder.glob("*.deb"):
            package.unlink()
        lists = self._folder / "lists"
        (lists / "partial").mkdir(parents=True)
        for setting in (
            f"Dir::State::Lists={lists}",
            "Dir::Cache::pkgcache=",
            "Dir::Cache::srcpkgcache=",
        ):
            self._options += ["-o", setting]
        with suppress(Unavailable):  # may be for a list that is not Debian's
            self._run("update")


def _fetch(folder: Path) -> tuple[Path, list[Path]]:
    apt = _Apt(folder)
    try:
        return apt.fetch()
    except Unavailable as reason:
        complaint = str(reason)
    apt.renew()
    try:
        return apt.fetch()
    except Unavailable as reason:
        raise Unavailable(f"{complaint}; with new lists: {reason}") from None


def _unpack_kernel(package: Path, tree: Path) -> None:
    """The few files that are wanted of it, side by side."""
    with subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE
    ) as unpacked:
        assert unpacked.stdout is not None
        with tarfile.open(fileobj=unpacked.stdout, mode="r|") as archive:
            for member in archive:
                name = Path(member.name).name
                if member.isreg() and FROM_KERNEL.fullmatch(name):
                    content = archive.extractfile(member)
                    assert content is not None
                    (tree / name).write_bytes(content.read())
        unpacked.stdout.read()  # the padding; without it dpkg-deb complains
    there = sorted(path.name for path in tree.iterdir())
    for name in ("vmlinuz-", "drbd.ko", "brd.ko"):
        if unpacked.returncode or not any(file.startswith(name) for file in there):
            raise RuntimeError(f"{package}: no {name} in it, only {there}")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two runs of the tests at once fetch one after the other."""
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def unpacked(folder: Path) -> Path:
    """The unpacked packages; fetched if they are not below ``folder`` yet.

    In it, `kernel` has the kernel and modules side by side, `tools` the
    files of the other packages in their places.
    """
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise Unavailable(f"{program} is not installed; Debian is needed")
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        tree = folder / "packages"
        if not tree.exists():
            new = folder / "new"
            shutil.rmtree(new, ignore_errors=True)
            for part in ("debs", "tree/kernel", "tree/tools"):
                (new / part).mkdir(parents=True)
            kernel, others = _fetch(new / "debs")
            _unpack_kernel(kernel, new / "tree/kernel")
            for package in others:
                subprocess.run(
                    ["dpkg-deb", "--extract", package, new / "tree/tools"], check=True
                )
            (new / "tree").rename(tree)  # all of it or nothing
            shutil.rmtree(new)
    return tree
