# SPDX-License-Identifier: LGPL-2.1-or-later
"""Builds `remus_native._core`: csrc/ compiled into one abi3 extension.

Run by setup.py (`cffi_modules`), never imported by the package. What Python
can call is what stands in csrc/remus.h and its parts between the lines
`/* cffi:begin */` and `/* cffi:end */`: there is no second list to keep.
tests/sim/emit.py makes the tests' own extension of the same sources and its
simulated world.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

from cffi import FFI

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
FLAGS = dict(re.findall(r"^(\w+) = (.*)$", (CSRC / "flags.mk").read_text(), re.M))
# pkg-config names; setup.py checks that they are there.
LIBRARIES = ["fuse3", "gnutls"]


def with_parts(header: Path) -> list[Path]:
    """A header and those of the public ones that it includes, uses last."""
    found: list[Path] = []

    def add(path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r'^#include "(remus[^"]*)"', text, re.MULTILINE):
            if CSRC / name not in found:
                add(CSRC / name)
        found.append(path)

    add(header)
    return found


def cdef_of(header: str) -> str:
    """The marked part of a header, reduced to what cffi reads.

    The values of macros and enum members become `...`: the compiler fills
    them in, so a value that Python sees is always the one that C was
    compiled with.
    """
    marked = re.search(
        r"/\* cffi:begin \*/(.*?)/\* cffi:end \*/", header, flags=re.DOTALL
    )
    if marked is None:
        raise ValueError("no part between /* cffi:begin */ and /* cffi:end */")
    text = re.sub(r"/\*.*?\*/|//[^\n]*", " ", marked[1], flags=re.DOTALL)
    text = text.replace("\\\n", " ")
    text = re.sub(r"^[ \t]*#[^\n]*", _define, text, flags=re.MULTILINE)
    text = re.sub(r"\bREMUS_API\b", "", text)
    return re.sub(r"(\benum\b[^{};()]*)\{([^}]*)\}", _enum, text)


def _define(line: re.Match[str]) -> str:
    """`#define NAME value` as `#define NAME ...`; other directives vanish.

    So do macros with arguments.
    """
    constant = re.match(r"\s*#\s*define\s+(\w+)[ \t]+\S", line[0])
    return f"#define {constant[1]} ..." if constant else ""


def _enum(enum: re.Match[str]) -> str:
    names = [part.split("=")[0].strip() for part in enum[2].split(",")]
    members = ", ".join(f"{name} = ..." for name in names if name)
    return f"{enum[1]}{{ {members} }}"


def pkg_config(*what: str) -> list[str]:
    """The flags that pkg-config gives for the libraries we link."""
    tool = os.environ.get("PKG_CONFIG", "pkg-config")
    return shlex.split(subprocess.check_output([tool, *what, *LIBRARIES], text=True))


# Devices written in Python (see _group.py), and the phases of a group that
# holds replicas only.
BINDING = """
extern "Python" int remus_py_postsuspend(void *, const void *, size_t, uint64_t *);
extern "Python" int remus_py_preresume(void *, uint64_t, int64_t);
extern "Python" int remus_py_commit(void *, uint64_t);
extern "Python" void remus_py_cancel(void *);
int remus_py_postsuspend_held(remus_group *, const void *, size_t);
int remus_py_commit_held(remus_group *);
"""

# cffi's wrappers give up the GIL around every call.  Round one that can't
# block that is a loss: another thread that takes it keeps it for a switch
# interval, 5 ms by default, in which the guest stays suspended.  So these
# keep it; the comparison is folded when it is compiled.
KEEP_GIL = (
    "remus_backup_event_fd",
    "remus_backup_events",
    "remus_drbd_is_node",
    "remus_group_epochs",
    "remus_group_fd",
    "remus_group_preresume_begin",
    "remus_group_preresume_finish",
    "remus_group_results",
    "remus_last_error",
    "remus_primary_commit",
    "remus_primary_event_fd",
    "remus_primary_events",
    "remus_primary_postsuspend",
    "remus_primary_preresume_fd",
    "remus_py_commit_held",
    "remus_py_postsuspend_held",
    "remus_state_name",
    "remus_version",
)
PREAMBLE = """
#include <string.h>
static inline __attribute__((always_inline)) int remus_keeps_gil(const char *f)
{
    return REMUS_KEEPS_GIL;
}
#undef Py_BEGIN_ALLOW_THREADS
#undef Py_END_ALLOW_THREADS
#define Py_BEGIN_ALLOW_THREADS                                              \\
    {                                                                       \\
        PyThreadState *_save =                                              \\
            remus_keeps_gil(__func__) ? NULL : PyEval_SaveThread();
#define Py_END_ALLOW_THREADS                                                \\
        if (_save)                                                          \\
            PyEval_RestoreThread(_save);                                    \\
    }

static int remus_py_postsuspend_held(remus_group *g, const void *tag, size_t len)
{
    return remus_group_postsuspend(g, tag, len);
}
static int remus_py_commit_held(remus_group *g)
{
    return remus_group_commit(g);
}
"""
TESTS = " || ".join(f'!strcmp(f, "_cffi_f_{name}")' for name in KEEP_GIL)


def sources(folder: Path) -> list[str]:
    """The C files below a folder of the project, as setuptools wants them."""
    return sorted(str(path.relative_to(ROOT)) for path in folder.rglob("*.c"))


def builder(module: str, folders: list[str], headers: list[Path], *flags: str) -> FFI:
    """An extension of the C files below ``folders``, called by ``headers``."""
    ffi = FFI()
    ffi.cdef("struct iovec { void *iov_base; size_t iov_len; ...; };")  # sys/uio.h
    marked = dict.fromkeys(part for header in headers for part in with_parts(header))
    for part in marked:
        text = part.read_text(encoding="utf-8")
        if part.name != "remus.h":  # which has nothing but its parts
            ffi.cdef(cdef_of(text))
    ffi.cdef(BINDING)
    ffi.set_source(
        module,
        "".join(f'#include "{header.name}"\n' for header in headers)
        + PREAMBLE.replace("REMUS_KEEPS_GIL", TESTS),
        sources=[source for folder in folders for source in sources(ROOT / folder)],
        depends=[
            str(path.relative_to(ROOT))
            for folder in folders
            for path in sorted((ROOT / folder).rglob("*.[ch]"))
        ],
        # -iquote: csrc/ has headers whose names other libraries use in <...>.
        extra_compile_args=[
            *FLAGS["LANGUAGE"].split(),
            "-O2",
            *[flag for folder in folders for flag in ("-iquote", folder)],
            *pkg_config("--cflags"),
            *flags,
        ],
        # Our calls stay inside the extension, also beside a loaded
        # libremus_native.
        extra_link_args=["-pthread", "-Wl,-Bsymbolic-functions", *pkg_config("--libs")],
        py_limited_api=True,
    )
    return ffi


ffibuilder = builder("remus_native._core", ["csrc"], [CSRC / "remus.h"])
