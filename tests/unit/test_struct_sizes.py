# SPDX-License-Identifier: LGPL-2.1-or-later
"""Structs that a caller allocates can grow: each begins with its size.

tests/c/test_versions.c has an older and a newer caller.
"""

from __future__ import annotations

import errno
import re
from typing import Any

import pytest
from remus_native._core import ffi, lib

from remus_native._binding import last_error
from support.public_headers import HEADER

STRUCTS = re.findall(r"^struct (remus_\w+) \{", HEADER, re.M)
# These are as they are for good: a ring of the one is a file that other
# processes read, the other is three numbers.
FIXED = {"remus_epoch_sample", "remus_epochs_bucket"}
GROWING = [name for name in STRUCTS if name not in FIXED]


def fields(name: str) -> list[tuple[str, Any]]:
    return list(ffi.typeof(f"struct {name}").fields)


def test_every_struct_is_looked_at():
    assert len(GROWING) >= 13
    assert set(STRUCTS) > FIXED


@pytest.mark.parametrize("name", GROWING)
def test_it_begins_with_its_size(name):
    first, field = fields(name)[0]
    assert (first, field.offset, field.type.cname) == ("struct_size", 0, "uint32_t")


@pytest.mark.parametrize("name", GROWING)
def test_it_ends_with_its_last_member(name):
    """No padding behind it: what grows would begin in bytes that no older
    caller ever set, and its size would not tell them apart."""
    _, last = fields(name)[-1]
    end = last.offset + ffi.sizeof(last.type)
    assert end == ffi.sizeof(f"struct {name}")


@pytest.mark.parametrize("size", [0, 3, 1 << 17, (1 << 32) - 1])
@pytest.mark.parametrize("side", ["primary", "backup"])
def test_a_size_that_can_not_be_is_named(side, size):
    config = ffi.new(f"struct remus_{side}_config *")
    config.struct_size = size
    out = ffi.new(f"remus_{side} **")
    assert getattr(lib, f"remus_{side}_open")(config, out) == -errno.EINVAL
    assert f"config.struct_size is {size}: set it" in last_error()
