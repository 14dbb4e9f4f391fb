# SPDX-License-Identifier: LGPL-2.1-or-later
"""The package's face: names, what an import does, versions, errors."""

from __future__ import annotations

import os
import pickle
import re
import shlex
import subprocess
import sys

import pytest
from remus_native._core import ffi, lib

import remus_native
from remus_native import errors
from support.public_headers import CSRC, HEADER, PUBLIC


def test_every_public_name_is_there():
    for name in remus_native.__all__:
        assert getattr(remus_native, name) is not None
    assert remus_native.__all__ == sorted(remus_native.__all__, key=sort_key)


def sort_key(name: str) -> tuple[bool, str]:
    return (not name[0].isupper(), name)


def test_importing_needs_only_cffi_and_starts_nothing():
    code = """
import sys, threading
before = set(sys.modules)
import remus_native
new = {name.split(".")[0] for name in set(sys.modules) - before}
third = new - set(sys.stdlib_module_names) - {"remus_native", "_cffi_backend", "cffi"}
assert not third, third
assert threading.active_count() == 1
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_versions_agree():
    """Header, library, package: one version."""
    assert ffi.string(lib.remus_version()).decode() == remus_native.__version__
    numbers = [
        lib.REMUS_VERSION_MAJOR,
        lib.REMUS_VERSION_MINOR,
        lib.REMUS_VERSION_PATCH,
    ]
    assert ".".join(map(str, numbers)) == remus_native.__version__
    major, minor, patch = numbers
    assert (major * 1000 + minor) * 1000 + patch == lib.REMUS_VERSION


@pytest.mark.parametrize("header", PUBLIC, ids=lambda path: path.name)
@pytest.mark.parametrize("language", ["c", "c++"])
def test_each_header_can_be_included_alone(header, language, tmp_path):
    """From where it is installed, and twice."""
    include = f"#include <{header.relative_to(CSRC)}>\n"
    compiler = shlex.split(os.environ.get("CC", "gcc"))
    subprocess.run(
        [*compiler, "-x", language, "-fsyntax-only", "-Wall", "-Wextra", "-Werror",
         "-pedantic", f"-I{CSRC}", "-"],
        input=include * 2 + "const char *(*version)(void) = remus_version;\n",
        text=True, check=True, timeout=60,
    )  # fmt: skip


def test_remus_h_includes_every_public_header():
    included = re.findall(r'^#include "(.*)"', (CSRC / "remus.h").read_text(), re.M)
    assert included == [str(path.relative_to(CSRC)) for path in PUBLIC[1:]]


def test_every_function_of_the_header_has_words_before_it():
    """Each public declaration stands behind a comment."""
    marked = re.findall(r"cffi:begin \*/(.*?)/\* cffi:end", HEADER, re.DOTALL)
    assert len(marked) == len(PUBLIC) - 1
    for part in re.split(r"\n\n", "\n\n".join(marked)):
        if "REMUS_API" in part:
            assert "/*" in part.split("REMUS_API")[0], part


def test_what_is_one_of_several_is_an_enum():
    """No bare int whose comment names the enum, and no macro that is a flag."""
    assert not re.search(r"\bint (\w+;|\w+,)?\s*/\* [^*]*\benum remus_", HEADER)
    enums = set(re.findall(r"^enum (remus_\w+) \{", HEADER, re.M))
    assert len(enums) > 12
    assert set(re.findall(r"\benum (remus_\w+)", HEADER)) == enums
    macros = set(re.findall(r"^#define (REMUS_\w+) \d", HEADER, re.M))
    limits = r"_(MAX|BYTES|RING|BUCKETS|KEPT|CANCEL|CHECKPOINT|CHECKPOINT_ACK)$"
    versions = {f"REMUS_VERSION_{part}" for part in ("MAJOR", "MINOR", "PATCH")}
    assert {name for name in macros if not re.search(limits, name)} == versions


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_is_a_remus_error_and_pickles(name):
    cls = getattr(errors, name)
    if name in ("raise_for", "RemusWarning"):
        return
    assert issubclass(cls, errors.RemusError)
    assert cls.__doc__
    if cls is errors.DeviceErrors:
        error = cls("two", [errors.StateError("a", errno=5), ValueError("b")])
    else:
        error = cls("words", errno=5, volume="xvda", phase="commit", epoch=3)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is cls
    assert str(again) == str(error)
    assert again.errno == error.errno == 5


@pytest.mark.parametrize(
    ("cls", "builtin"),
    [
        (errors.ReplicationLost, ConnectionError),
        (errors.CheckpointTimeout, TimeoutError),
        (errors.NotProtocolD, OSError),
        (errors.DeviceNotReady, OSError),
        (errors.DeviceNotSupported, OSError),
        (errors.PhaseError, RuntimeError),
        (errors.ConfigError, ValueError),
        (errors.StateError, OSError),
    ],
)
def test_errors_are_also_builtins(cls, builtin):
    assert issubclass(cls, builtin)
