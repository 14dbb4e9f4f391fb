# SPDX-License-Identifier: LGPL-2.1-or-later
"""An initramfs of Debian's packages, the probe and the C program."""

from __future__ import annotations

import gzip
import lzma
import re
import stat
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
PROBE = HERE.parent.parent / "hotplug" / "block-drbd-probe"

# What the probe calls on a Debian host, and dash, which runs it there.
SHELL_TOOLS = (
    "dash", "cat", "head", "readlink", "stat", "timeout", "tr", "env", "true",
)  # fmt: skip
DRBD_TOOLS = ("drbdadm", "drbdsetup", "drbdmeta")
DRBD_HELPERS = ("drbdadm-84", "drbdsetup-84")
LINKS = {  # as on every Debian since 12
    "bin": "usr/bin",
    "sbin": "usr/sbin",
    "lib": "usr/lib",
    "lib64": "usr/lib64",
    "usr/bin/sh": "dash",
    "busybox/sh": "busybox",
}
LIBRARIES = "usr/lib/x86_64-linux-gnu"


class Archive:
    """A cpio archive in the one form that the kernel reads (newc)."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._inode = 0
        self._folders: set[str] = set()

    def _entry(self, name: str, mode: int, content: bytes = b"") -> None:
        self._inode += 1
        fields = (
            self._inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0,
            len(name) + 1, 0,
        )  # fmt: skip
        header = "070701" + "".join(f"{field:08x}" for field in fields)
        for part in (header.encode() + name.encode() + b"\0", content):
            self._parts += [part, bytes(-len(part) % 4)]

    def _parents(self, name: str) -> None:
        for folder in [str(p) for p in Path(name).parents][-2::-1]:
            if folder not in self._folders:
                self._folders.add(folder)
                self._entry(folder, stat.S_IFDIR | 0o755)

    def file(self, name: str, content: bytes, mode: int = 0o755) -> None:
        self._parents(name)
        self._entry(name, stat.S_IFREG | mode, content)

    def link(self, name: str, target: str) -> None:
        self._parents(name)
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def bytes(self) -> bytes:
        parts = self._parts
        self._parts = []
        self._entry("TRAILER!!!", 0)
        parts += self._parts
        self._parts = parts[:-4]
        return b"".join(parts)


class Tools:
    """The unpacked packages."""

    def __init__(self, tree: Path) -> None:
        self._tree = tree

    def find(self, name: str, *below: str) -> Path:
        """The file of this name in one of some folders."""
        for folder in below:
            for root in ("", "usr"):
                path = self._tree / root / folder / name
                if path.is_file():
                    return path
        raise FileNotFoundError(f"{name} is in none of the packages ({self._tree})")

    def libraries(self, programs: list[Path]) -> dict[str, Path]:
        """All shared libraries that these programs need, by name."""
        found: dict[str, Path] = {}
        todo = list(programs)
        while todo:
            dynamic = subprocess.check_output(
                ["readelf", "--dynamic", "--wide", todo.pop()], text=True
            )
            for name in re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic):
                if name not in found:
                    found[name] = self.find(name, "lib/x86_64-linux-gnu")
                    todo.append(found[name])
        return found


def _module(path: Path) -> bytes:
    content = path.read_bytes()
    return lzma.decompress(content) if path.suffix == ".xz" else content


def write_initramfs(packages: Path, drbd_disk: Path, out: Path) -> None:
    """Make ``out``; ``drbd_disk`` is the statically linked C program."""
    tools = Tools(packages / "tools")
    archive = Archive()
    for link, target in LINKS.items():
        archive.link(link, target)
    archive.file("init", (HERE / "init.sh").read_bytes())
    archive.file("etc/drbd.conf", (HERE / "drbd.conf").read_bytes(), 0o644)
    archive.file("hotplug/block-drbd-probe", PROBE.read_bytes())
    archive.file("drbd_disk", drbd_disk.read_bytes())
    archive.file("busybox/busybox", tools.find("busybox", "bin").read_bytes())

    programs: list[Path] = []
    for names, folder in (
        (SHELL_TOOLS, "bin"), (DRBD_TOOLS, "sbin"), (DRBD_HELPERS, "lib/drbd")
    ):  # fmt: skip
        for name in names:
            programs.append(tools.find(name, folder))
            archive.file(f"usr/{folder}/{name}", programs[-1].read_bytes())
    for name, path in tools.libraries(programs).items():
        archive.file(f"{LIBRARIES}/{name}", path.read_bytes())
    loader = tools.find("ld-linux-x86-64.so.2", "lib/x86_64-linux-gnu")
    archive.file("usr/lib64/ld-linux-x86-64.so.2", loader.read_bytes())

    for path in (packages / "kernel").iterdir():
        if ".ko" in path.name:
            name = path.name.removesuffix(".xz")
            archive.file(f"modules/{name}", _module(path), 0o644)
    out.write_bytes(gzip.compress(archive.bytes(), compresslevel=1))
