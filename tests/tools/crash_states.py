#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""crash_states.py AT_LEAST JUNIT.xml...: how many states after a crash?

Adds up what the crash tests of these reports looked at, prints it by module,
and exits 1 if it is less than AT_LEAST.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from collections import Counter


def counted(report: str) -> Counter[str]:
    found: Counter[str] = Counter()
    for case in ET.parse(report).iter("testcase"):
        for one in case.iter("property"):
            if one.get("name") == "crash_states":
                module = (case.get("classname") or "").rpartition(".")[2]
                found[module] += int(one.get("value", "0"))
    return found


def main(least: int, reports: list[str]) -> int:
    total: Counter[str] = Counter()
    for report in reports:
        total += counted(report)
    for module, states in sorted(total.items()):
        print(f"{states:>8}  {module}")
    states = sum(total.values())
    print(f"{states:>8}  states after a crash, all checked")
    if states < least:
        print(f"crash_states: {least} were expected", file=sys.stderr)
    return 1 if states < least else 0


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
