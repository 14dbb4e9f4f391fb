# SPDX-License-Identifier: LGPL-2.1-or-later
"""Locks: what is guarded says by which, is only used under it, in one order.

Clang's thread safety analysis reads our comments: see support/lock_check.py.
"""

from __future__ import annotations

import re

import pytest

from support import lock_check
from support.c_source import CSRC, product, source
from support.lock_check import LOCKS, check, fields, guard_of

#: What may stand beside a field that no single lock guards.
SAID = re.compile(
    r"constant|open close only|see |once|.*\bthread\b|.*its owner lock is|its own lock"
    r"|.*also \w+ to change|written with|.*then constant|receiving: |set once"
)


@pytest.fixture(scope="module")
def said() -> list[str]:
    pytest.importorskip("clang.cindex", reason="libclang is missing: make setup")
    return check()


def test_what_wants_a_lock_is_used_under_it(said):
    """Fields, and functions marked "lock held", and the order of locks."""
    assert said == []


def test_a_field_beside_a_lock_names_its_guard():
    silent = []
    for file in product():
        of_file = fields(file)
        locked = {
            field.struct
            for field in of_file
            if re.match(r"pthread_(mutex|rwlock)_t \w", field.declared)
        }
        silent += [
            f"{file.name}: {field.struct}.{field.name}"
            for field in of_file
            if field.struct in locked
            and not re.match(r"_Atomic|atomic_|pthread_", field.declared)
            and guard_of(file, field) is None
            and not SAID.match(field.said)
            and not lock_check.OWNER.search(field.section)
        ]
    assert silent == []


def test_every_lock_is_in_the_table():
    declared = {
        (file.folder, field.struct, field.name)
        for file in product()
        for field in fields(file)
        if re.match(r"pthread_(mutex|rwlock)_t \w", field.declared)
    }
    assert declared == {
        (folder, struct, name) for folder, struct, name in LOCKS.values()
    }


@pytest.mark.parametrize(
    ("name", "prefix"), [("primary/state.h", "primary"), ("backup/backup.h", "backup")]
)
def test_the_order_in_the_header_is_the_one_that_is_checked(name, prefix):
    text = (CSRC / name).read_text()
    (told,) = re.findall(
        r"in the order in which they may be taken:\n(.*?)\n \*/", text, re.S
    )
    words = lock_check.WORDS[prefix]
    order = [
        words[name.split(".")[-1] if name != "volume.lock" else name]
        for name in re.findall(r"^ \*   (\S+)", told, re.M)
    ]
    assert len(order) > 4
    assert order == sorted(order, key=list(LOCKS).index)


def test_no_function_is_left_out_that_is_gone():
    for name, functions in lock_check.EXEMPT.items():
        there = {function.name for function in source(CSRC.parent / name).functions()}
        assert functions <= there, name


# ---- the analysis sees what it should -------------------------------------------


def seen(name: str, old: str, new: str) -> str:
    text = (CSRC.parent / name).read_text()
    assert text.count(old) >= 1
    return "\n".join(check({name: text.replace(old, new, 1)}))


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        pytest.param(
            "csrc/backup/state.c",
            "    pthread_mutex_lock(&b->lock);\n    b->super = *s;\n",
            "    b->super = *s;\n",
            "releasing mutex 'backup_lock' that was not held",
            id="a-lock-that-is-not-taken",
        ),
        pytest.param(
            "csrc/backup/apply.c",
            "    pthread_mutex_lock(&b->lock);\n    uint64_t last = b->last_epoch;\n"
            "    remus_backup_unlock(b);\n",
            "    uint64_t last = b->last_epoch;\n",
            "reading variable 'last_epoch' requires holding mutex 'backup_lock'",
            id="a-field",
        ),
        pytest.param(
            "csrc/primary/wait.c",
            "/* lock held */\nstatic",
            "static",
            "requires holding mutex 'primary_lock'",
            id="a-function-without-its-mark",
        ),
        pytest.param(
            "csrc/primary/engine.c",
            "    pthread_mutex_lock(&p->queue.send_lock);\n"
            "    remus_primary_lock(p);\n",
            "    remus_primary_lock(p);\n"
            "    pthread_mutex_lock(&p->queue.send_lock);\n",
            "mutex 'send_lock' must be acquired before 'primary_lock'",
            id="the-order",
        ),
        pytest.param(
            "csrc/link/refusals.c",
            "    pthread_mutex_unlock(&r->lock);\n}",
            "}",
            "mutex 'refusals_lock' is still held at the end of function",
            id="a-lock-that-is-kept",
        ),
    ],
)
def test_the_analysis_sees(said, name, old, new, words):
    assert words in seen(name, old, new)
