#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""check_skips.py JUNIT.xml...: was a test skipped that must run here?

As root with /dev/fuse every test must run, except those whose reason for
the skip begins with "allowed:". Prints each other one and exits 1. Elsewhere
skips are no fault. A test that is expected to fail was run, so it passes.
"""

from __future__ import annotations

import os
import re
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path


def reason_of(skipped: ET.Element) -> str:
    """Why a test was skipped; a whole module has it in the text, quoted."""
    message = skipped.get("message", "")
    if message != "collection skipped":
        return message
    quoted = re.search(r"""['"]Skipped: (.*)['"]\)\s*$""", skipped.text or "", re.S)
    return quoted[1] if quoted else (skipped.text or "")


def forbidden(report: Path) -> Iterator[str]:
    """One line for each test of a report that was skipped without leave."""
    for case in ET.parse(report).iter("testcase"):
        for skipped in case.findall("skipped"):
            if skipped.get("type") == "pytest.xfail":
                continue
            reason = reason_of(skipped)
            if not reason.startswith("allowed:"):
                where = "::".join(
                    filter(None, (case.get("classname"), case.get("name")))
                )
                yield f"{report.name}: {where}: skipped: {reason}"


def main(reports: list[str]) -> int:
    if not reports:
        print(__doc__, file=sys.stderr)
        return 2
    lines = [line for report in reports for line in forbidden(Path(report))]
    must_run = os.geteuid() == 0 and Path("/dev/fuse").exists()
    for line in lines:
        print(line if must_run else f"{line} (not root with /dev/fuse: let pass)")
    return 1 if lines and must_run else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
