# SPDX-License-Identifier: LGPL-2.1-or-later
"""The package's face: names, what an import does, versions, errors."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
from remus_native._core import ffi, lib

import remus_native
from remus_native import errors

ROOT = Path(__file__).parent.parent


def test_every_public_name_is_there():
    for name in remus_native.__all__:
        assert getattr(remus_native, name) is not None
    assert remus_native.__all__ == sorted(remus_native.__all__, key=sort_key)


def sort_key(name: str) -> tuple[bool, str]:
    return (name.startswith("_"), name)


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
    assert ffi.string(lib.remus_version()).decode() == remus_native.__version__


def test_every_function_of_the_header_has_words_before_it():
    """Each declaration of remus.h stands behind a comment."""
    header = (ROOT / "csrc" / "remus.h").read_text()
    marked = re.search(r"cffi:begin \*/(.*)/\* cffi:end", header, re.DOTALL)
    assert marked
    parts = re.split(r"\n\n", marked[1])
    for part in parts:
        if "REMUS_API" in part:
            assert "/*" in part.split("REMUS_API")[0], part


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
