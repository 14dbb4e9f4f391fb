# SPDX-License-Identifier: LGPL-2.1-or-later
"""The public C headers: remus.h and what it includes."""

from __future__ import annotations

import re

from support.paths import ROOT

CSRC = ROOT / "csrc"
PUBLIC = [CSRC / "remus.h", *sorted((CSRC / "remus").glob("*.h"))]
HEADER = "".join(path.read_text() for path in PUBLIC)
#: The functions, by their name and the text of their parameters.
DECLARED = re.findall(r"^REMUS_API\s[^;]*?\b(remus_\w+)\(([^;]*?)\);", HEADER, re.M)
