# SPDX-License-Identifier: LGPL-2.1-or-later
"""Disks that share bytes: what must be refused, whoever asks."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remus_native import ConfigError, Primary, Volume
from support.mounted import run


@contextlib.contextmanager
def loop_device(image: Path) -> Iterator[str]:
    device = run("losetup", "--find", "--show", image).strip()
    try:
        yield device
    finally:
        run("losetup", "--detach", device)


def refused_as_second_disk(folder: Path, first: Any, second: Any) -> None:
    (folder / "state").mkdir(exist_ok=True)
    for order in ((first, second), (second, first)):
        with pytest.raises(ConfigError, match="made of the same bytes") as caught:
            Primary(
                "guest0",
                state_dir=folder / "state",
                volumes=[Volume("xvda", order[0]), Volume("xvdb", order[1])],
                address=f"unix:{folder}/sock",
            )
        assert caught.value.errno == errno.EINVAL


def check_mapped(folder: Path, mapped: Path, images: list[Path]) -> None:
    """It is a linear target on a loop device on the first image."""
    with loop_device(images[0]) as other:
        refused_as_second_disk(folder, images[0], mapped)
        refused_as_second_disk(folder, other, mapped)
