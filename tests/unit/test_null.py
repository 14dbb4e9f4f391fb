# SPDX-License-Identifier: LGPL-2.1-or-later
"""NULL is -EINVAL for every call of remus.h, and nothing crashes on it.

The functions and their parameters are read from the header, so a new one is
tested from its first day.
"""

from __future__ import annotations

import errno
import re
import subprocess
import sys
import threading
from typing import Any

import pytest
from remus_native._core import ffi, lib

from remus_native import CheckpointDevices, EpochStatistics
from remus_native._binding import sized
from support.paths import ROOT
from support.public_headers import DECLARED, HEADER

# Pointers that may be NULL, as their comments say.
OPTIONAL = {
    ("remus_crc32c", "data"),
    ("remus_drbd_barriers", "empty"),
    ("remus_primary_postsuspend", "tag"),
    ("remus_primary_verify", "out"),
    ("remus_backup_promote", "tag"),
    ("remus_backup_target", "tag"),
    ("remus_export_open", "nodes"),
    ("remus_standby_open", "nodes"),
    ("remus_epochs_create", "path"),
    ("remus_group_add_device", "opaque"),
    ("remus_group_postsuspend", "tag"),
}


def parameters(name: str) -> list[tuple[str, Any]]:
    """Names and types; the types are those that cffi compiled."""
    words = dict(DECLARED)[name]
    names = [re.search(r"(\w+)$", part.strip())[1] for part in words.split(",")]  # type: ignore[index]
    args = ffi.typeof(getattr(lib, name)).args
    return list(zip(names, args, strict=True)) if args else []


def is_pointer(kind: Any) -> bool:
    return kind.kind == "pointer"


def with_pointers() -> list[str]:
    return [
        name
        for name, _ in DECLARED
        if any(is_pointer(kind) for _, kind in parameters(name))
        and name != "remus_crc32c"
    ]


def test_every_function_of_the_header_is_looked_at():
    assert len(DECLARED) == HEADER.count("\nREMUS_API ")
    known = {name for name, _ in DECLARED}
    for name, parameter in OPTIONAL:
        assert name in known
        assert parameter in [each for each, _ in parameters(name)]


def refused(name: str, result: Any) -> bool:
    """Is this what the rule says of a NULL that is not optional?"""
    kind = ffi.typeof(getattr(lib, name)).result
    if kind.kind == "void":
        return result is None
    if kind.kind == "pointer":
        return bool(result == ffi.NULL)
    if kind.cname == "int":
        return bool(result == -errno.EINVAL)
    return bool(result == 0)


def call_all_null(name: str) -> Any:
    args = [ffi.NULL if is_pointer(kind) else 0 for _, kind in parameters(name)]
    return getattr(lib, name)(*args)


def test_a_call_with_nothing_but_nulls_is_refused():
    """In a process of its own: what crashes is named."""
    code = """
import sys
from support import simulated
from tests.unit import test_null as t
for name in t.with_pointers():
    print("calling", name, flush=True)
    result = t.call_all_null(name)
    if not t.refused(name, result):
        print("WRONG", name, result, flush=True)
print("end")
"""
    out = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{ROOT}/tests"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    lines = out.stdout.splitlines()
    assert lines and lines[-1] == "end", (lines[-1:], out.stderr)
    assert [line for line in lines if line.startswith("WRONG")] == []


@pytest.fixture
def handles(make_pair: Any) -> Any:
    """One living handle of each kind, by the type of its pointer."""
    pair = make_pair([1 << 20])
    group = ffi.new("remus_group **")
    assert lib.remus_group_open(b"guest", group) == 0
    device = ffi.new("remus_drbd **")
    assert lib.remus_drbd_open(b"/dev/null", device) == 0
    with EpochStatistics("guest") as epochs:
        yield {
            "struct remus_primary *": pair.primary._raw,
            "struct remus_backup *": pair.backup._raw,
            "struct remus_group *": group[0],
            "struct remus_drbd *": device[0],
            "struct remus_drbd const *": device[0],
            "struct remus_epochs *": epochs._raw,
        }
    lib.remus_group_close(group[0])
    lib.remus_drbd_close(device[0])


# What would end a handle, or wait; and exports, which need a mount.
LEFT_OUT = re.compile(r"_close$|_stop$|^remus_export|^remus_standby|_open$|_verify$")


def value(kind: Any, handles: Any, keep: list[Any]) -> Any:
    """Something usable for a parameter of this type."""
    if not is_pointer(kind):
        return 1
    if kind.cname in handles:
        return handles[kind.cname]
    if kind.cname == "char const *":
        keep.append(ffi.new("char[]", b"unix:/nowhere/at/all"))
    elif kind.item.kind == "void":
        keep.append(ffi.new("char[]", 4096))
    else:
        new = ffi.new(f"{kind.item.cname.removesuffix(' const')}[4]")
        if kind.item.kind == "struct" and kind.item.fields[0][0] == "struct_size":
            for each in new:
                each.struct_size = ffi.sizeof(each)
        keep.append(new)
    return keep[-1]


def test_each_pointer_alone_is_refused(handles):
    looked_at = 0
    for name in with_pointers():
        given = parameters(name)
        if LEFT_OUT.search(name) or given[0][1].cname not in handles:
            continue
        for nulled, (parameter, kind) in enumerate(given):
            if not is_pointer(kind) or (name, parameter) in OPTIONAL:
                continue
            keep: list[Any] = []
            args = [
                ffi.NULL if i == nulled else value(kind, handles, keep)
                for i, (_, kind) in enumerate(given)
            ]
            result = getattr(lib, name)(*args)
            assert refused(name, result), (name, parameter, result)
            looked_at += 1
    assert looked_at > 60


@pytest.mark.parametrize(
    "name", ["remus_primary_postsuspend", "remus_backup_target",
             "remus_backup_promote", "remus_group_postsuspend"]
)  # fmt: skip
def test_a_tag_with_a_length_must_be_there(handles, name):
    keep: list[Any] = []
    args = []
    for parameter, kind in parameters(name):
        if parameter == "tag":
            args.append(ffi.NULL)
        elif parameter == "tag_len":
            args.append(5)
        else:
            args.append(value(kind, handles, keep))
    assert getattr(lib, name)(*args) == -errno.EINVAL


def test_an_empty_configuration_is_refused():
    for side in ("primary", "backup"):
        config = sized(f"{side}_config")
        out = ffi.new(f"remus_{side} **")
        assert getattr(lib, f"remus_{side}_open")(config, out) == -errno.EINVAL
        assert out[0] == ffi.NULL


def test_an_older_text_is_not_kept_where_nothing_is_ready():
    """-EAGAIN has a text of its own."""
    acked = threading.Event()

    class Slow:
        kind = name = "slow"

        def postsuspend(self, tag: Any = None) -> int:
            return 1

        def preresume(self, timeout_s: Any = None) -> None:
            acked.wait(20)

    with CheckpointDevices([Slow()], event_loop=True) as devices:
        devices.postsuspend()
        devices.preresume_begin(20)
        assert lib.remus_psk_check(b"/no/such/file", b"x") < 0
        assert b"such" in ffi.string(lib.remus_last_error())
        assert not devices.preresume_finish()
        text = ffi.string(lib.remus_last_error())
        assert b"not every device has answered" in text
        acked.set()
