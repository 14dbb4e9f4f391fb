# SPDX-License-Identifier: LGPL-2.1-or-later
"""Disks that are somebody else's are refused."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from remus_native import Primary, StateError, Volume
from support.mounted import (
    need,
    run,
)
from support.paths import TESTS
from support.shared_bytes import check_mapped, loop_device, refused_as_second_disk

pytestmark = pytest.mark.fuse


def test_a_mounted_block_device_is_refused(tmp_path):
    need("losetup")
    need("mkfs.ext4")
    image, mount = tmp_path / "image", tmp_path / "mount"
    image.write_bytes(bytes(8 << 20))
    mount.mkdir()
    (tmp_path / "state").mkdir()

    def open_it() -> Any:
        return Primary(
            "guest0",
            state_dir=tmp_path / "state",
            volumes=[Volume("xvda", device)],
            address=f"unix:{tmp_path}/sock",
        )

    with loop_device(image) as device:
        run("mkfs.ext4", "-q", device)
        run("mount", device, mount)
        try:
            with pytest.raises(StateError, match="in use: mounted") as caught:
                open_it()
            assert caught.value.errno == errno.EBUSY
        finally:
            run("umount", mount)
        with open_it():
            # And nobody mounts it under us.
            done = subprocess.run(
                ["mount", device, mount], capture_output=True, check=False
            )
            assert done.returncode != 0


def test_a_loop_device_on_another_volumes_image_is_no_second_disk(tmp_path):
    need("losetup")
    image = tmp_path / "image"
    image.write_bytes(bytes(8 << 20))
    with loop_device(image) as one, loop_device(image) as two:
        refused_as_second_disk(tmp_path, image, one)
        refused_as_second_disk(tmp_path, one, two)  # on the same bytes
        with loop_device(Path(one)) as above:
            refused_as_second_disk(tmp_path, image, above)
            refused_as_second_disk(tmp_path, one, above)


def partition(device: str, number: int, start: int, folder: Path) -> Path:
    """4 MiB from sector `start` on; its node, which nobody makes where /dev is
    no devtmpfs."""
    need("addpart")
    run("addpart", device, str(number), str(start), "8192")
    name = f"{os.path.basename(device)}p{number}"
    made = Path("/dev") / name
    return made if made.exists() else node(folder / name, name)


def node(path: Path, name: str) -> Path:
    major, minor = Path("/sys/class/block", name, "dev").read_text().split(":")
    os.mknod(path, 0o600 | stat.S_IFBLK, os.makedev(int(major), int(minor)))
    return path


def accepted(folder: Path, first: Any, second: Any) -> None:
    (folder / "state").mkdir(exist_ok=True)
    Primary(
        "guest0",
        state_dir=folder / "state",
        volumes=[Volume("xvda", first), Volume("xvdb", second)],
        address=f"unix:{folder}/sock",
    ).close()


def test_nor_is_a_partition_of_it(tmp_path):
    need("losetup")
    image = tmp_path / "image"
    image.write_bytes(bytes(16 << 20))
    device = run("losetup", "--find", "--partscan", "--show", image).strip()
    try:
        one = partition(device, 1, 2048, tmp_path)
        two = partition(device, 2, 10240, tmp_path)
        refused_as_second_disk(tmp_path, image, one)
        refused_as_second_disk(tmp_path, device, one)
        with loop_device(image) as other:
            refused_as_second_disk(tmp_path, other, one)
        with loop_device(Path(one)) as above:
            refused_as_second_disk(tmp_path, image, above)
            accepted(tmp_path, above, two)
        accepted(tmp_path, one, two)  # two parts of one disk are two disks
    finally:
        for number in (1, 2):
            subprocess.run(["delpart", device, str(number)], check=False)
        run("losetup", "--detach", device)


def test_parts_of_one_image_are_disks_if_they_do_not_overlap(tmp_path):
    need("losetup")
    image = tmp_path / "image"
    image.write_bytes(bytes(8 << 20))

    def part(start_mib: int, mib: int) -> str:
        return run(
            "losetup", "--find", "--show", f"--offset={start_mib}MiB",
            f"--sizelimit={mib}MiB", image,
        ).strip()  # fmt: skip

    with ExitStack() as stack:
        parts = [part(0, 4), part(4, 4), part(3, 2)]
        for device in parts:
            stack.callback(run, "losetup", "--detach", device)
        accepted(tmp_path, parts[0], parts[1])
        refused_as_second_disk(tmp_path, parts[0], parts[2])
        refused_as_second_disk(tmp_path, parts[1], parts[2])
        refused_as_second_disk(tmp_path, image, parts[1])


def two_images(folder: Path) -> list[Path]:
    images = [folder / "one.img", folder / "two.img"]
    for image in images:
        image.write_bytes(bytes(8 << 20))
    return images


def test_nor_is_a_device_mapped_on_it(tmp_path):
    need("losetup")
    if " device-mapper" not in Path("/proc/devices").read_text():
        pytest.skip("allowed: this kernel has no device-mapper")
    need("dmsetup")
    images = two_images(tmp_path)
    name = f"remus-test-{os.getpid()}"
    with loop_device(images[0]) as loop:
        run("dmsetup", "create", name, "--table", f"0 8192 linear {loop} 0")
        try:
            mapped = Path("/dev/mapper", name)
            refused_as_second_disk(tmp_path, loop, mapped)
            check_mapped(tmp_path, mapped, images)
            accepted(tmp_path, images[1], mapped)
        finally:
            run("dmsetup", "remove", name)


AS_IF_MAPPED = """
import os, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from support.shared_bytes import check_mapped, refused_as_second_disk
folder, loop, images = Path(sys.argv[2]), sys.argv[3], sys.argv[4:]
check_mapped(folder, folder / "mapped", [Path(image) for image in images])
refused_as_second_disk(folder, loop, folder / "mapped")
print("all refused")
"""


def test_nor_is_what_sysfs_shows_as_mapped_on_it(tmp_path):
    """As the device-mapper looks, for kernels that have none: a folder over
    /sys/dev/block, and a node of a number that no driver has."""
    need("losetup")
    need("unshare")
    images = two_images(tmp_path)
    with loop_device(images[0]) as loop:
        number = "4095:7"
        shape = tmp_path / "block"
        slaves = shape / number / "slaves"
        slaves.mkdir(parents=True)
        (shape / number / "dev").write_text(f"{number}\n")
        for entry in Path("/sys/dev/block").iterdir():
            (shape / entry.name).symlink_to(entry.resolve())
        name = os.path.basename(loop)
        (slaves / name).symlink_to(Path("/sys/block", name).resolve())
        os.mknod(tmp_path / "mapped", 0o600 | stat.S_IFBLK, os.makedev(4095, 7))
        done = subprocess.run(
            [
                "unshare", "--mount", "sh", "-c",
                'mount --bind "$1" /sys/dev/block && shift && exec "$@"',
                "sh", shape, sys.executable, "-c", AS_IF_MAPPED,
                TESTS, tmp_path, loop, *images,
            ],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "all refused" in done.stdout, done.stderr
