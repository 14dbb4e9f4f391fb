# SPDX-License-Identifier: LGPL-2.1-or-later
"""Two hosts of netfault.py for the time of a test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.netfault import Hosts


@pytest.fixture
def namespaces(tmp_path: Path) -> Iterator[Hosts]:
    made = Hosts(tmp_path)
    try:
        yield made
    finally:
        made.close()
