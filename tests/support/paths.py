# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where things are in the tree."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
PROBE = ROOT / "hotplug" / "block-drbd-probe"
