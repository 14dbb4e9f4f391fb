# SPDX-License-Identifier: LGPL-2.1-or-later
"""An image that is in use is told in QEMU's way, and QEMU's word is heard."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from remus_native import Backup, Primary, Volume
from support.pair import QUIET, SMALL

SIZE = 1 << 20

pytestmark = pytest.mark.skipif(
    not shutil.which("qemu-io"), reason="there is no qemu-io (qemu-utils)"
)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(SIZE))
    return path


def opened(side: type[Any], image: Path, state: Path) -> Any:
    state.mkdir(exist_ok=True)
    more = SMALL if side is Backup else {"address": f"unix:{state}/sock", **QUIET}
    return closing(
        side("guest0", state_dir=state, volumes=[Volume("xvda", image)], **more)
    )


def qemu(*words: str | Path) -> str:
    """What the tool says of an error; empty if it met none."""
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, check=False
    )
    assert (done.returncode != 0) == bool(done.stderr), done
    return done.stderr


@contextmanager
def held_by_qemu(image: Path, *options: str) -> Iterator[None]:
    """A qemu-io that has opened the image and waits for its next command."""
    with subprocess.Popen(
        ["qemu-io", "-f", "raw", *options, str(image)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as tool:  # fmt: skip
        assert tool.stdin is not None
        assert tool.stdout is not None
        tool.stdin.write("read 0 512\n")
        tool.stdin.flush()
        while "read 512/512" not in tool.stdout.readline():
            assert tool.poll() is None
        try:
            yield
        finally:
            tool.stdin.close()


WRITE = ("-c", "write -P 7 0 512")


@pytest.mark.parametrize("side", [Primary, Backup])
def test_qemu_refuses_an_image_in_use(side: type[Any], image: Path, tmp_path: Path):
    other = tmp_path / "copy.img"
    with opened(side, image, tmp_path / "state"):
        for tool in (
            ("qemu-io", "-f", "raw", *WRITE, image),
            ("qemu-img", "resize", "-f", "raw", image, "2M"),
            ("qemu-img", "convert", "-f", "raw", "-O", "raw", image, other),
        ):
            assert "lock" in qemu(*tool)
        # Who says that he knows may look.
        assert qemu("qemu-img", "info", "-U", "-f", "raw", image) == ""
    assert image.read_bytes() == bytes(SIZE)
    assert qemu("qemu-io", "-f", "raw", *WRITE, image) == ""


@pytest.mark.parametrize("side", [Primary, Backup])
def test_an_image_that_qemu_has_is_refused(
    side: type[Any], image: Path, tmp_path: Path
):
    with held_by_qemu(image), pytest.raises(OSError, match="in use by QEMU"):
        opened(side, image, tmp_path / "state")
    # One that only reads, and lets others write, is no reason.
    with held_by_qemu(image, "-r"), opened(side, image, tmp_path / "state"):
        pass
    opened(side, image, tmp_path / "state").thing.close()


def test_ours_are_told_from_qemus(image: Path, tmp_path: Path):
    with (
        opened(Backup, image, tmp_path / "one"),
        pytest.raises(OSError, match="in use by another resource or process"),
    ):
        opened(Backup, image, tmp_path / "two")


def test_what_was_promoted_is_free(image: Path, tmp_path: Path):
    """Its guest is started on the image while the backup's process lives."""
    backup, primary = tmp_path / "b", tmp_path / "p.img"
    primary.write_bytes(bytes(SIZE))
    with opened(Backup, image, backup) as there:
        there.serve(f"unix:{tmp_path}/sock")
        (tmp_path / "p").mkdir()
        with Primary(
            "guest0",
            state_dir=tmp_path / "p",
            volumes=[Volume("xvda", primary)],
            address=f"unix:{tmp_path}/sock",
            connect_ms=10,
            **QUIET,
        ) as here:
            here.wait_protected(timeout_s=30)
        there.promote()
        assert qemu("qemu-io", "-f", "raw", *WRITE, image) == ""
