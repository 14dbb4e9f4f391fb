# SPDX-License-Identifier: LGPL-2.1-or-later
"""Builds `remus_native._core`: csrc/ compiled into one abi3 extension.

Run by setup.py (`cffi_modules`), never imported by the package. What Python
can call is what stands in csrc/remus.h and csrc/remus_testing.h between the
lines `/* cffi:begin */` and `/* cffi:end */`: there is no second list to keep.
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
HEADERS = [name for name in ("remus.h", "remus_testing.h") if (CSRC / name).is_file()]
LIBRARIES = ["fuse3", "gnutls"]  # pkg-config's names; setup.py checks that they are there


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
    """`#define NAME value` as `#define NAME ...`; other directives vanish."""
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


ffibuilder = FFI()
for _name in HEADERS:
    ffibuilder.cdef(cdef_of((CSRC / _name).read_text(encoding="utf-8")))
ffibuilder.set_source(
    "remus_native._core",
    "".join(f'#include "{name}"\n' for name in HEADERS),
    sources=sorted(f"csrc/{path.name}" for path in CSRC.glob("*.c")),
    depends=sorted(f"csrc/{path.name}" for path in CSRC.glob("*.[ch]")),
    # -iquote: csrc/ has headers whose names other libraries use in <...>.
    extra_compile_args=[
        "-std=c11",
        "-D_GNU_SOURCE",
        "-O2",
        "-fvisibility=hidden",
        "-pthread",
        "-iquote",
        "csrc",
        *pkg_config("--cflags"),
    ],
    # Our calls stay inside the extension, also beside a loaded libremus_native.
    extra_link_args=["-pthread", "-Wl,-Bsymbolic-functions", *pkg_config("--libs")],
    py_limited_api=True,
)
