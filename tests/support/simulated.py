# SPDX-License-Identifier: LGPL-2.1-or-later
"""Importing this makes `remus_native` use the tests' own extension.

`remus_sim` (tests/sim) has the library's sources with their run-time checks
on, and the simulated world beside them. It stands in for `remus_native._core`
in this process only: the commands that tests start run what users get.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

#: `make coverage` has one that counts what is run.
BUILT = Path(
    os.environ.get("REMUS_TESTED")
    or Path(__file__).resolve().parents[2] / "build" / "sim"
)

if "remus_native._core" not in sys.modules:
    sys.path.insert(0, str(BUILT))
    try:
        import remus_sim
    except ImportError as error:
        raise ImportError(f"{error}: run `make setup` first") from error
    finally:
        sys.path.remove(str(BUILT))
    sys.modules["remus_native._core"] = remus_sim
