# SPDX-License-Identifier: LGPL-2.1-or-later
"""Clang's thread safety analysis, fed from the comments that we write.

Which lock guards a field is written beside it, and "(lock held)" stands above
a function that wants one: see the headers. Here these words become clang's
attributes, in memory only, and each call that takes or gives up a lock
becomes one that clang knows. A lock stands for all locks of its kind: two
volumes' locks are one here. What may be taken while what is held is the order
of `LOCKS`.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from support.c_source import CSRC, Function, Source, product, without_comments
from support.paths import ROOT

#: The locks of each side, in the order in which they may be taken.
#: name: (folder, struct that has it, its field).
LOCKS = {
    "source_lock": ("node", "remus_export", "source"),
    "interrupt_lock": ("node", "remus_export", "interrupt_lock"),
    # A group's is taken from a primary's receiver, and a primary's under it.
    "state_lock": ("primary", "remus_primary", "state_lock"),
    "rx_lock": ("primary", "remus_primary", "rx_lock"),
    "group_lock": ("group", "remus_group", "lock"),
    "wake_lock": ("primary", "remus_sendq", "wake_lock"),
    "send_lock": ("primary", "remus_sendq", "send_lock"),
    "volume_lock": ("primary", "remus_pvolume", "lock"),
    "primary_lock": ("primary", "remus_primary", "lock"),
    "completion_lock": ("primary", "completion", "lock"),
    "net_lock": ("backup", "remus_backup_net", "lock"),
    "apply_lock": ("backup", "remus_backup", "apply_lock"),
    "view_lock": ("backup", "remus_backup", "view_lock"),
    "sync_lock": ("journal", "remus_journal", "sync_lock"),
    "backup_lock": ("backup", "remus_backup", "lock"),
    "net_send_lock": ("backup", "remus_backup_net", "send_lock"),
    "shown_lock": ("backup", "remus_backup", "shown_lock"),
    "former_lock": ("backup", "remus_former", "lock"),
    "refusals_lock": ("link", "remus_refusals", "lock"),
    "drbd_lock": ("group", "remus_drbd", "lock"),
    "disk_lock": ("node", "remus_export", "disk_lock"),
    "export_lock": ("node", "remus_export", "lock"),
    "keys_lock": ("link", "remus_tls_keys", "lock"),
    "tls_rx_lock": ("link", "remus_tls", "rx"),
    "tls_tx_lock": ("link", "remus_tls", "tx"),
}

#: Words of a comment, by the folder that it stands in, for a lock.
WORDS = {
    "primary": {
        "lock": "primary_lock", "owner": "primary_lock",
        "primary's lock": "primary_lock", "volume.lock": "volume_lock",
        "state_lock": "state_lock", "rx_lock": "rx_lock",
        "send_lock": "send_lock", "wake_lock": "wake_lock",
        "completion.lock": "completion_lock",
    },
    "backup": {
        "lock": "backup_lock", "apply_lock": "apply_lock", "view_lock": "view_lock",
        "sync_lock": "sync_lock", "send_lock": "net_send_lock",
        "shown_lock": "shown_lock",
    },
    "journal": {"owner": "backup_lock", "sync_lock": "sync_lock"},
    "group": {"lock": "group_lock"},
    "node": {
        "lock": "export_lock", "export.lock": "export_lock", "source": "source_lock",
        "disk_lock": "disk_lock", "interrupt_lock": "interrupt_lock",
    },
    "link": {"lock": "refusals_lock", "rx": "tls_rx_lock", "tx": "tls_tx_lock"},
}  # fmt: skip
#: Where "lock" is another one than the folder's.
IN_FILE = {
    "csrc/backup/former.c": {"lock": "former_lock"},
    "csrc/link/tls_keys.c": {"lock": "keys_lock"},
    "csrc/link/tls.c": {"rx": "tls_rx_lock", "tx": "tls_tx_lock"},
    "csrc/group/drbd.c": {"lock": "drbd_lock"},
    "csrc/group/drbd.h": {"lock": "drbd_lock"},
    "csrc/group/drbd_wait.c": {"lock": "drbd_lock"},
    "csrc/group/drbd_int.h": {"lock": "drbd_lock"},
    "csrc/backup/net.h": {"lock": "net_lock", "send_lock": "net_send_lock"},
    "csrc/backup/net.c": {"lock": "net_lock", "send_lock": "net_send_lock"},
}

#: How a lock is written where it is taken.
TAKEN = [
    (r"&?\w*->rx_lock|&p->rx_lock", "rx_lock"),
    (r"&\w+->state_lock", "state_lock"),
    (r"&(?:p->queue\.|q->)send_lock", "send_lock"),
    (r"&\w+->wake_lock", "wake_lock"),
    (r"&v->lock", "volume_lock"),
    (r"&(?:v->|s->)?p->lock", "primary_lock"),
    (r"&c(?:->|\.)lock", "completion_lock"),
    (r"&g->lock", "group_lock"),
    (r"&(?:d->)?group->lock", "group_lock"),
    (r"&dev->lock", "drbd_lock"),
    (r"&\w+->apply_lock", "apply_lock"),
    (r"&\w+->view_lock", "view_lock"),
    (r"&\w+->shown_lock", "shown_lock"),
    (r"&(?:b->journal\.|j->)sync_lock", "sync_lock"),
    (r"&(?:net->)?b->lock|j->owner", "backup_lock"),
    (r"&net->lock", "net_lock"),
    (r"&net->send_lock", "net_send_lock"),
    (r"&r->lock", "refusals_lock"),
    (r"&keys->lock", "keys_lock"),
    (r"&f->lock", "former_lock"),
    (r"&e->source", "source_lock"),
    (r"&e->disk_lock", "disk_lock"),
    (r"&e->interrupt_lock", "interrupt_lock"),
    (r"&e->lock", "export_lock"),
    (r"&\w+->rx", "tls_rx_lock"),
    (r"&\w+->tx", "tls_tx_lock"),
]

CALL = re.compile(r"\bpthread_(mutex|rwlock)_(un|try|)(lock|rdlock|wrlock)\(([^()]*)\)")


#: gcc's header says it in builtins that clang has not.
ATOMIC = """
#define _STDATOMIC_H
typedef _Atomic(int) atomic_int;
typedef _Atomic(unsigned int) atomic_uint;
enum { memory_order_relaxed, memory_order_consume, memory_order_acquire,
       memory_order_release, memory_order_acq_rel, memory_order_seq_cst };
typedef int memory_order;
#define ATOMIC_VAR_INIT(x) (x)
#define ATOMIC_LLONG_LOCK_FREE 2
#define atomic_init(p, x) __c11_atomic_init(p, x)
#define atomic_thread_fence(o) __c11_atomic_thread_fence(5)
#define atomic_load_explicit(p, o) __c11_atomic_load(p, 5)
#define atomic_load(p) __c11_atomic_load(p, 5)
#define atomic_store_explicit(p, x, o) __c11_atomic_store(p, x, 5)
#define atomic_store(p, x) __c11_atomic_store(p, x, 5)
#define atomic_exchange(p, x) __c11_atomic_exchange(p, x, 5)
#define atomic_exchange_explicit(p, x, o) __c11_atomic_exchange(p, x, 5)
#define atomic_fetch_add(p, x) __c11_atomic_fetch_add(p, x, 5)
#define atomic_fetch_add_explicit(p, x, o) __c11_atomic_fetch_add(p, x, 5)
#define atomic_fetch_sub(p, x) __c11_atomic_fetch_sub(p, x, 5)
#define atomic_fetch_sub_explicit(p, x, o) __c11_atomic_fetch_sub(p, x, 5)
#define atomic_fetch_or(p, x) __c11_atomic_fetch_or(p, x, 5)
#define atomic_fetch_or_explicit(p, x, o) __c11_atomic_fetch_or(p, x, 5)
#define atomic_fetch_and(p, x) __c11_atomic_fetch_and(p, x, 5)
#define atomic_fetch_and_explicit(p, x, o) __c11_atomic_fetch_and(p, x, 5)
#define atomic_compare_exchange_strong(p, e, x) \\
    __c11_atomic_compare_exchange_strong(p, e, x, 5, 5)
#define atomic_compare_exchange_strong_explicit(p, e, x, o, f) \\
    __c11_atomic_compare_exchange_strong(p, e, x, 5, 5)
#define atomic_compare_exchange_weak(p, e, x) \\
    __c11_atomic_compare_exchange_weak(p, e, x, 5, 5)
#define atomic_compare_exchange_weak_explicit(p, e, x, o, f) \\
    __c11_atomic_compare_exchange_weak(p, e, x, 5, 5)
"""
#: What takes no lock, and is written in gcc's own words.
SKIPPED = {"csrc/base/crc32c.c"}


def shim() -> str:
    """Declarations that clang reads before everything else."""
    lines = [
        "#define __cap(x) __attribute__((x))",
        'struct __cap(capability("mutex")) house_lock { int it; };',
    ]
    before = ""
    for name in LOCKS:
        after = f" __cap(acquired_after({before}))" if before else ""
        lines += [
            f"extern struct house_lock {name}{after};",
            f"int house_lock_{name}(void) __cap(acquire_capability({name}));",
            f"int house_unlock_{name}(void) __cap(release_generic_capability({name}));",
            f"int house_trylock_{name}(void) __cap(try_acquire_capability(0, {name}));",
            f"int house_rdlock_{name}(void) __cap(acquire_shared_capability({name}));",
            f"int house_tryrdlock_{name}(void) "
            f"__cap(try_acquire_shared_capability(0, {name}));",
        ]  # fmt: skip
        before = name
    return ATOMIC + "\n".join(lines) + "\n"


def words_for(file: Source) -> dict[str, str]:
    return {**WORDS.get(file.folder, {}), **IN_FILE.get(file.name, {})}


# ---- fields ----------------------------------------------------------------

STRUCT = re.compile(r"^struct (\w+) \{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
#: Who a section's fields belong to, if not to a lock.
OWNER = re.compile(r"thread\b|^The one sender|^The \w+'s until ")
SECTION = re.compile(r"(?:All|Guard|Guarded by)(?:: | )(?:the )?([\w.]+(?:'s lock)?)\b")


@dataclass(frozen=True)
class Field:
    struct: str
    name: str
    declared: str
    said: str  # the comment beside it
    section: str  # the lock of the section that it stands in, or ""
    end: int  # of its declaration in the text, before the semicolon


def fields(file: Source) -> list[Field]:
    """The fields of all structs, with what is said beside each."""
    found: list[Field] = []
    locks = words_for(file)
    for struct in STRUCT.finditer(file.text):
        above = file.text[: struct.start()].rstrip()
        guard = ""
        if above.endswith("*/"):
            said = above[above.rindex("/*") :]
            guard = match[1] if (match := re.search(r"Guard: ([\w.]+)", said)) else ""
        at, end = struct.start(2), struct.end(2)
        depth_end = at
        while at < end:
            token = re.compile(
                r"\s*(/\*.*?\*/|(?:[^;/{}]|/(?!\*))+?;|(?:[^;/{}]|/(?!\*))*\{|\}[^;]*;)",
                re.S,
            )
            item = token.match(file.text, at, end)
            if item is None:
                break
            at = item.end()
            text = item[1]
            if text.startswith("/*"):
                line_start = file.text.rindex("\n", 0, item.start(1)) + 1
                own_line = not file.text[line_start : item.start(1)].strip()
                words = " ".join(re.sub(r"[/*]", " ", text).split())
                if not own_line and found and depth_end == found[-1].end + 1:
                    last = found.pop()
                    found.append(
                        Field(last.struct, last.name, last.declared, words,
                              last.section, last.end)
                    )  # fmt: skip
                elif section := SECTION.match(words):
                    guard = section[1]
                elif OWNER.search(words):
                    guard = words
                elif any(re.search(rf"\b{re.escape(lock)}\b", words) for lock in locks):
                    guard = ""
            elif text.endswith("{"):
                continue
            else:
                text = text.removeprefix("}").lstrip()
                names = re.sub(r"\[[^]]*\]|:\s*\d+", "", text[:-1]).split(",")
                name = re.findall(r"\w+", names[0])
                if name:
                    found.append(
                        Field(struct[1], name[-1], " ".join(text.split()), "", guard,
                              item.end() - 1)
                    )  # fmt: skip
                    depth_end = item.end()
    return found


def guard_of(file: Source, field: Field) -> str | None:
    """The lock in `LOCKS` that guards a field, if one does."""
    if "_Atomic" in field.declared or "pthread_" in field.declared:
        return None
    words = words_for(file)
    if re.search(r"\balso \w+ to change", field.said):
        return None  # either lock is enough to read it
    said = re.match(r"([\w.]+(?:'s lock)?)(?=$|[:;,. ])", field.said)
    if said and said[1] in words:
        rest = field.said[said.end() :]
        return None if re.match(r" while|,? also| to ", rest) else words[said[1]]
    if re.match(r"constant|.* thread\b|open/close|see |once|ditto", field.said):
        return None
    return words.get(field.section)


# ---- functions --------------------------------------------------------------


def wanted(file: Source, comment: str) -> tuple[list[str], bool]:
    """The locks that a function wants by its comment; whether it wants none."""
    words = words_for(file)
    text = " ".join(re.sub(r"[/*`(),.;]", " ", comment).split())
    needs = []
    for held in re.finditer(r" held\b", text):
        before = text[: held.start()].replace("'s lock", "'s_lock").split()
        while before:
            word = before.pop().replace("'s_lock", "'s lock")
            if word in words:
                needs.append(words[word])
            elif word in ("with", "no") or word not in ("and", "the", "journal's"):
                if word == "no" or (word == "with" and before[-1:] == ["called"]):
                    needs.clear()
                break
    return list(dict.fromkeys(needs)), "no lock held" in text


#: What a header says of all that follows, or where that ends.
HEADING = re.compile(
    r"^/\* (?:-+ )?(?:The rest: .*|all below: .*|\S+\.c)(?: -+)? \*/$", re.MULTILINE
)


def wrapper(function: Function) -> str | None:
    """The attribute of a function that does no more than take a lock, or give
    one up."""
    calls = list(CALL.finditer(function.body))
    if len(calls) != 1 or not re.search(r"_(un)?lock$", function.name):
        return None
    if calls[0][2] == "try":
        return f"try_acquire_capability(0, {_lock_of(calls[0])})"
    verb = "release" if calls[0][2] == "un" else "acquire"
    return f"{verb}_capability({_lock_of(calls[0])})"


@cache
def wrappers_of() -> dict[str, str]:
    return {
        function.name: kind
        for file in product()
        for function in file.functions()
        if function.body and (kind := wrapper(function))
    }


#: Functions that come back with locks that they took.
LEAVES = {"remus_journal_settle": ["sync_lock", "backup_lock"]}


def _lock_of(call: re.Match[str]) -> str:
    for pattern, name in TAKEN:
        if re.fullmatch(pattern, call[4]):
            return name
    raise ValueError(f"{call[0]}: which lock is this?  See LOCKS and TAKEN")


def taken(files: list[Source]) -> dict[tuple[str, str], set[str]]:
    """The locks that each function waits for, itself or in what it calls.

    By file and name; by "" and name where others can call it. What is called
    by a pointer is not seen.
    """
    locks: dict[tuple[str, str], set[str]] = {}
    calls: dict[tuple[str, str], set[tuple[str, str]]] = {}
    bodies = {
        (file.name, function.name): function.body
        for file in files
        for function in file.functions()
        if function.body
    }
    where: dict[str, list[str]] = {}
    for name, function in bodies:
        where.setdefault(function, []).append(name)
    for key, body in bodies.items():
        locks[key] = {
            _lock_of(call)
            for call in CALL.finditer(body)
            if call[2] == ""  # who only tries never waits
        }
        calls[key] = {
            (key[0] if key[0] in where[name] else where[name][0], name)
            for name in re.findall(r"\b(\w+)\(", body)
            if name in where
        }
    grown = True
    while grown:
        grown = False
        for key, callees in calls.items():
            more = set().union(*(locks[callee] for callee in callees)) - locks[key]
            locks[key] |= more
            grown = grown or bool(more)
    for (_, function), found in list(locks.items()):
        if len(where[function]) == 1:
            locks["", function] = found
    return locks


def forbidden(function: set[str], needs: list[str]) -> list[str]:
    """Which locks nobody may hold who calls what waits for these ones."""
    order = list(LOCKS)
    first = min((order.index(lock) for lock in function), default=len(order))
    return [lock for lock in order[first:] if lock not in needs]


def marks_of(files: list[Source]) -> dict[str, list[str]]:
    """What functions that others can call want by the words above their body."""
    return {
        function.name: needs
        for file in files
        for function in file.functions()
        if function.body
        and not re.match(r"static\b", file.text[function.at :])
        and (needs := wanted(file, function.comment)[0])
    }


def annotated(
    file: Source, waits: dict[tuple[str, str], set[str]], marks: dict[str, list[str]]
) -> str:
    """The text of a file with clang's attributes for what its comments say."""
    inserts: list[tuple[int, str]] = []
    for field in fields(file):
        if guard := guard_of(file, field):
            inserts.append((field.end, f" __cap(guarded_by({guard}))"))
    wrappers = wrappers_of()
    rest: list[str] = []
    for function in file.functions():
        needs, _ = wanted(file, function.comment)
        above = file.text[max(0, function.at - 2000) : function.at]
        if file.path.suffix == ".h":
            # "The rest: x held" holds up to the next heading.
            if heading := HEADING.findall(above):
                rest = wanted(file, heading[-1])[0] if ":" in heading[-1] else []
            if rest and not re.search(
                r"no lock|lock needed|not held", function.comment
            ):
                needs = list(dict.fromkeys([*rest, *needs]))
        needs = list(dict.fromkeys([*needs, *marks.get(function.name, [])]))
        mark = "".join(f" __cap(requires_capability({lock}))" for lock in needs)
        for lock in LEAVES.get(function.name, ()):
            mark += f" __cap(acquire_capability({lock}))"
        own = waits.get((file.name, function.name)) or waits.get(("", function.name))
        if own and file.folder and not needs:
            mark += f" __cap(locks_excluded({', '.join(forbidden(own, needs))}))"
        if kind := wrappers.get(function.name):
            mark = f" __cap({kind})"
        if function.body and (
            function.name in EXEMPT.get(file.name, ()) or file.name in ALONE
        ):
            mark += " __cap(no_thread_safety_analysis)"
        if mark:
            inserts.append((function.end_of_head, mark))
    text = file.text
    for at, what in sorted(inserts, reverse=True):
        text = text[:at] + what + text[at:]
    return CALL.sub(_call, text)


def _call(call: re.Match[str]) -> str:
    verb = {"un": "unlock", "try": "trylock", "": "lock"}[call[2]]
    if call[3] == "rdlock":
        verb = "rdlock" if verb == "lock" else "tryrdlock"
    return f"house_{verb}_{_lock_of(call)}()"


#: Files all of whose functions run before anybody else has the object.
ALONE = {"csrc/backup/recover.c", "csrc/journal/recover.c"}
#: Functions that clang does not look into, and why that is right.
EXEMPT: dict[str, set[str]] = {
    # Nobody else has the object yet, or any more.
    "csrc/backup/backup.c": {
        "allocate", "open_disks", "remus_backup_close", "remus_backup_free",
        "remus_backup_open_io", "was_primary",
    },
    "csrc/backup/net.c": {"new_net", "remus_backup_serve"},
    "csrc/backup/state.c": {"remus_backup_try_lock"},  # in a loop
    "csrc/backup/former.c": {"remus_former_open_io"},
    "csrc/group/group.c": {"remus_group_open"},
    "csrc/journal/journal.c": {
        "remus_journal_abandon", "remus_journal_open", "zero_fill",
    },
    "csrc/node/fuse_export.c": {"make_tables", "new_export", "take_nodes"},
    "csrc/node/fuse_slots.c": {
        "remus_slots_init",
        "unlock",  # a wait that is cancelled has the lock
    },
    "csrc/node/fuse_files.c": {"remus_files_free"},
    "csrc/node/fuse_names.c": {"remus_standby_init"},
    "csrc/primary/alone.c": {
        "load_leave",
        "remus_primary_state_load",
        "change",  # state_lock is enough to read what is stored
    },
    "csrc/primary/dirty.c": {"load_sets", "remus_dirty_forget_all", "remus_dirty_open"},
    "csrc/primary/primary.c": {
        "close_disks", "free_primary", "init", "open_disks", "preallocate",
        "remus_primary_close", "remus_primary_open_io",
    },
    "csrc/link/tls.c": {
        "remus_tls_free", "remus_tls_handshake",
        # An update of keys takes `tx` in the middle of GnuTLS: `hooked` says so.
        "decrypt", "encrypt", "on_key_update", "pull",
    },
    # The first field of what nobody else can see yet.
    "csrc/node/fuse_standby.c": {"answer"},
    # What was taken off the list is the taker's.
    "csrc/primary/waiters.c": {"remus_primary_answer"},
    # A device that is parked does not change.
    "csrc/group/wait.c": {"on_ack"},
    # Only this thread ever writes `connected`.
    "csrc/backup/session.c": {"serve_one"},
}  # fmt: skip


def check(changed: dict[str, str] | None = None) -> list[str]:
    """What clang has to say, as `file: text`; with other texts for some files."""
    from clang import cindex

    files = [
        replace(file, text=text, code=without_comments(text))
        if (text := (changed or {}).get(file.name)) is not None
        else file
        for file in product()
    ]
    waits = taken(files)
    marks = marks_of(files)
    unsaved = [(str(file.path), annotated(file, waits, marks)) for file in files]
    unsaved.append((str(CSRC / "house_locks.h"), shim()))
    builtin = subprocess.check_output(["gcc", "-print-file-name=include"], text=True)
    flags = shlex.split(
        subprocess.check_output(
            ["pkg-config", "--cflags", "fuse3", "gnutls"], text=True
        )
    )
    found = set()
    index = cindex.Index.create()
    for file in files:
        if file.path.suffix != ".c" or file.name in SKIPPED:
            continue
        if changed and file.name not in changed:
            continue
        unit = index.parse(
            str(file.path),
            ["-std=c11", "-D_GNU_SOURCE", "-DREMUS_CHECKED", "-iquote", str(CSRC),
             "-isystem", builtin.strip(), *flags,
             "-include", str(CSRC / "house_locks.h"),
             "-Wno-everything", "-Wthread-safety", "-Wthread-safety-beta"],
            unsaved_files=unsaved,
        )  # fmt: skip
        for said in unit.diagnostics:
            where = Path(said.location.file.name) if said.location.file else file.path
            if where.is_relative_to(ROOT):
                where = where.relative_to(ROOT)
            found.add(f"{where}:{said.location.line}: {said.spelling}")
    return sorted(found)
