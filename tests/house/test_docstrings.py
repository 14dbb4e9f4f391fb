# SPDX-License-Identifier: LGPL-2.1-or-later
"""Each public name of Python says what a caller has to know.

What holds of all methods of a class stands once in the class's own docstring;
what can block is a list here, and says so by itself.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import re
from typing import Any

import pytest

import remus_native
from remus_native import RemusError

PUBLIC = {name: getattr(remus_native, name) for name in remus_native.__all__}
CLASSES = {name: one for name, one in PUBLIC.items() if inspect.isclass(one)}
VALUES = {n: c for n, c in CLASSES.items() if dataclasses.is_dataclass(c)}
#: Classes that do something: neither a value, nor an enum, nor an error.
ACTORS = {
    name: one
    for name, one in CLASSES.items()
    if name not in VALUES and not issubclass(one, (enum.Enum, BaseException))
}
#: Everything that waits for a disk, another host, a process or a thread.
BLOCKING = {
    "Backup": "of commit ask promote close",
    "CheckpointDevices": "setup preresume wait_ready is_ready teardown",
    "Checkpointer": "once run",
    "DrbdDisk": "setup wait_ready is_ready preresume teardown",
    "EpochStatistics": "attach close",
    "Export": "close",
    "Primary": "of pread pread_into preadv pwrite pwritev discard write_zeroes flush "
    "wait_protected preresume verify close",
    "ReplicaResource": "setup preresume is_ready",
    "Standby": "release switch close",
}
#: Numbers that need no unit, or have it by their name.
PLAIN = re.compile(
    r"\w*_(ms|ns|s|bytes|epoch|count|limit)|bytes|epochs?|count|number|numbers"
    r"|checkpoints?|offset|length|uid|gid|size|errno"
    r"|(bytes|blocks|queue|journal|resync)_\w+"
)
LISTED = [(name, way) for name, ways in BLOCKING.items() for way in ways.split()]


def doc(one: Any) -> str:
    return " ".join((inspect.getdoc(one) or "").split())


def methods(cls: type) -> list[str]:
    return [
        name
        for name, one in inspect.getmembers(cls)
        if not name.startswith("_")
        and (inspect.isroutine(one) or isinstance(one, property))
    ]


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_says_what_it_is(name):
    own = CLASSES[name].__doc__ or ""
    assert len(own.split()) > 3
    assert not own.startswith(f"{name}("), "the generated one of a dataclass"


@pytest.mark.parametrize("name", ACTORS)
def test_a_class_says_what_holds_of_its_methods(name):
    """From which threads, whether they block, what they raise."""
    said = doc(ACTORS[name])
    assert re.search(r"\bthreads?\b", said)
    assert re.search(r"\bblocks?\b", said, re.IGNORECASE)
    assert re.search(r"\braises?\b", said, re.IGNORECASE)


@pytest.mark.parametrize("name", ACTORS)
def test_each_method_has_words(name):
    cls = ACTORS[name]
    if getattr(cls, "_is_protocol", False):
        return  # its phases are in the words of the class
    assert [way for way in methods(cls) if not doc(getattr(cls, way))] == []


@pytest.mark.parametrize(("name", "method"), LISTED)
def test_what_blocks_says_so(name, method):
    assert re.search(r"\bblock", doc(getattr(CLASSES[name], method)), re.IGNORECASE)


def is_number(annotation: Any) -> bool:
    return bool(re.fullmatch(r"(int|float)( \| None)?", str(annotation)))


@pytest.mark.parametrize("actor", ACTORS)
def test_each_number_has_its_unit_or_its_word(actor):
    cls = ACTORS[actor]
    wrong = []
    for way in [*methods(cls), "__init__"]:
        function = inspect.getattr_static(cls, way)
        function = getattr(function, "__func__", function)
        if not inspect.isfunction(function):
            continue
        said = doc(function if way != "__init__" else cls)
        for parameter in inspect.signature(function).parameters.values():
            name = parameter.name
            plain = PLAIN.fullmatch(name) or name == "volume" or f"``{name}``" in said
            if is_number(parameter.annotation) and not plain:
                wrong.append(f"{way}: {name}")
    assert wrong == []


@pytest.mark.parametrize("name", VALUES)
def test_each_number_of_a_value_has_its_unit_or_its_word(name):
    cls = VALUES[name]
    source = inspect.getsource(cls)
    wrong = []
    for field in dataclasses.fields(cls):
        if is_number(field.type) and not PLAIN.fullmatch(field.name):
            after = re.search(rf'^    {field.name}: [^\n]*\n    """', source, re.M)
            if not after and not re.search(rf"\b{field.name}\b", doc(cls)):
                wrong.append(field.name)
    assert wrong == []


def test_what_is_listed_is_all_that_is_left():
    """An actor without a list has nothing that blocks, or says it of all."""
    rest = set(ACTORS) - set(BLOCKING)
    assert rest == {
        "AsyncCheckpointDevices",
        "CheckpointDevice",
        "Guest",
        "NullGuest",
        "QmpGuest",
    }
    assert issubclass(remus_native.StateError, RemusError)
