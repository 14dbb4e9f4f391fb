# SPDX-License-Identifier: LGPL-2.1-or-later
"""Writes the C source of `remus_sim`, the extension that the tests use.

    python tests/sim/emit.py FILE.c

`remus_sim` is all of `remus_native._core`, compiled from the same sources with
their run-time checks on (REMUS_CHECKED), and the simulated world of
remus_testing.h. The Makefile compiles it into build/sim; what is installed
holds nothing of it. tests/support/simulated.py loads it.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def main(target: Path) -> None:
    build = runpy.run_path(str(ROOT / "remus_native" / "_build.py"))
    headers = [ROOT / "csrc" / "remus.h", HERE / "remus_testing.h"]
    ffi = build["builder"]("remus_sim", ["csrc", "tests/sim"], headers)
    target.parent.mkdir(parents=True, exist_ok=True)
    ffi.emit_c_code(str(target))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
