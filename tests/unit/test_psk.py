# SPDX-License-Identifier: LGPL-2.1-or-later
"""Key files: what psktool writes, what people make of it, and what is refused."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remus_native._binding import ffi, lib, text

KEY = "5a" * 32


def check(path: Path | str, identity: str = "guest0") -> str:
    """What is wrong with it; "" if nothing is."""
    if lib.remus_psk_check(os.fsencode(path), identity.encode()) == 0:
        return ""
    said = text(lib.remus_last_error())
    assert str(path) in said and KEY not in said
    return said


def write(path: Path, data: bytes | str, mode: int = 0o600) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    path.chmod(mode)
    return path


@pytest.mark.skipif(not shutil.which("psktool"), reason="psktool is missing")
@pytest.mark.parametrize("identity", ["guest0", "a:b", "gäst", "sp ace", "x" * 128])
@pytest.mark.parametrize("size", ["16", "32", "64"])
def test_what_psktool_writes(tmp_path, identity, size):
    path = tmp_path / "keys"
    for name in ("before", identity, "after"):  # it adds to the file
        subprocess.run(["psktool", "-u", name, "-p", str(path), "-s", size],
                       check=True, capture_output=True)  # fmt: skip
    assert check(path, identity) == check(path, "after") == ""
    assert "only for: before" in check(path, "somebody")


@pytest.mark.parametrize(
    "data",
    [
        f"guest0:{KEY}\n",
        f"guest0:{KEY}",  # no end of line
        f"guest0:{KEY}\r\n",
        f"\n\r\nguest0:{KEY.upper()}\n\n",
        f"#677565737430:{KEY}\n",
        f"other:{KEY}\nguest0:{KEY}\nthird:{KEY}\n",
        f"a:{KEY}\na:{KEY}\nguest0:{KEY}\n",  # twice, but not ours
        "guest0:" + "00" * 16,
        "guest0:" + "ff" * 64,
    ],
)
def test_a_good_file(tmp_path, data):
    assert check(write(tmp_path / "keys", data)) == ""


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("", "only for: (none)"),
        (f"# made by hand\nguest0:{KEY}\n", "line 1: expected identity:hexkey"),
        (f"guest0:{KEY} # mine\n", "line 1: the key is not"),
        (f"guest0: {KEY}\n", "line 1: the key is not"),
        (f"guest0:{KEY}\nguest0:{'00' * 32}\n", "line 2: a second key"),
        (f"guest0:{KEY}\nguest0:{KEY}\n", "line 2: a second key"),
        (f"guest0:{KEY}\n#677565737430:{KEY}\n", "line 2: a second key"),
        (f"guest0:{KEY}\n:{KEY}\n", "line 2: expected"),
        (f"#:{KEY}\n", "line 1: expected"),
        (f"#00:{KEY}\n", "line 1: expected"),
        (f"gue\0st0:{KEY}\n", "line 1: expected"),
        (f"{'x' * 129}:{KEY}\n", "more than 128 bytes"),
        (f"#{'61' * 129}:{KEY}\n", "line 1: expected"),
        ("guest0:" + "00" * 15, "16 to 64 bytes"),
        ("guest0:" + "00" * 65, "16 to 64 bytes"),
        ("guest0:" + "0" * 33, "16 to 64 bytes"),
        ("guest0:" + "0g" * 16, "16 to 64 bytes"),
        ("guest0:" + "00" * 40_000, "bytes, less than 65536"),
        ("\ufeffguest0:" + KEY, "no key for the identity guest0"),
        ("\n" * 65_536, "bytes, less than 65536"),
    ],
)
def test_a_bad_file(tmp_path, data, words):
    assert words in check(write(tmp_path / "keys", data))


def test_who_may_read_it(tmp_path):
    good = write(tmp_path / "keys", f"guest0:{KEY}\n")
    for mode in (0o400, 0o600, 0o700):
        good.chmod(mode)
        assert check(good) == ""
    for mode in (0o640, 0o604, 0o620, 0o602, 0o610, 0o666):
        good.chmod(mode)
        assert f"mode {mode:04o}" in check(good)
    good.chmod(0o600)
    link = tmp_path / "link"
    link.symlink_to(good)
    assert check(link) == ""  # what counts is what it leads to
    good.chmod(0o640)
    assert "mode 0640" in check(link)
    assert "make it with psktool" in check(tmp_path / "missing")
    assert "not a regular file" in check(tmp_path)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "symbolic links" in check(tmp_path / "loop")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_whose_it_is(tmp_path):
    theirs = write(tmp_path / "keys", f"guest0:{KEY}\n")
    os.chown(theirs, 12345, 12345)
    assert "belongs to uid 12345" in check(theirs)


def test_nothing_that_waits_or_has_no_end(tmp_path):
    os.mkfifo(tmp_path / "pipe", 0o600)
    assert "not a regular file" in check(tmp_path / "pipe")
    assert "not a regular file" in check("/dev/zero")


def test_an_identity_that_can_not_be(tmp_path):
    good = write(tmp_path / "keys", f"guest0:{KEY}\n")
    for identity in ("", "x" * 129):
        lib.remus_psk_check(os.fsencode(good), identity.encode())
        assert "give 1 to 128" in text(lib.remus_last_error())
    assert lib.remus_psk_check(ffi.NULL, b"guest0") < 0


@given(st.binary(max_size=300) | st.text(alphabet="#:0a\n\r\0", max_size=60))
def test_any_bytes(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.keys"
    check(write(path, data))
