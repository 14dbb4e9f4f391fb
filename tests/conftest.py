# SPDX-License-Identifier: LGPL-2.1-or-later
"""What holds for every test. Fixtures that some share are in support/."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("support")  # these fail with words, too

from support import simulated  # noqa: E402, F401  before all of remus_native

# isort: split
from remus_native._binding import ffi, lib, text  # noqa: E402
from remus_native.shared.mounts import unguard  # noqa: E402

# A shell that starts the suite with & or nohup lets it, and all that it starts,
# ignore an interrupt; tests interrupt what they start.  Nor do they depend on
# its umask: state directories that others can write to are refused.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# And one under nohup a SIGHUP, which children inherit.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
os.umask(0o022)

pytest_plugins = [
    "support.crash_counts",
    "support.drbd_tools",
    "support.host",
    "support.maps",
    "support.ioctl_node",
    "support.lanes",
    "support.mounted",
    "support.namespaces",
    "support.node_lab",
    "support.pair",
    "support.peer",
    "support.session",
    "support.tls_pair",
    "support.two_hosts",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `fuse` where it can't run, and say why."""
    if os.geteuid() == 0 and Path("/dev/fuse").exists():
        return
    skip = pytest.mark.skip(reason="needs root and /dev/fuse")
    for item in items:
        if "fuse" in item.keywords:
            item.add_marker(skip)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """What was a mount point can be removed again (pytest keeps a few runs)."""
    factory = getattr(session.config, "_tmp_path_factory", None)
    for folder, names, _ in os.walk(factory.getbasetemp() if factory else ""):
        for name in names:
            path = os.path.join(folder, name)
            if os.lstat(path).st_mode & 0o777 == 0:
                unguard(path)


@pytest.fixture(autouse=True)
def states_follow_the_table() -> Iterator[None]:
    """No side goes from a state to one that can't follow it."""
    yield
    source, target = ffi.new("int *"), ffi.new("int *")
    if lib.remus_test_odd_transition(source, target):
        names = [text(lib.remus_state_name(one[0])) for one in (source, target)]
        raise AssertionError(f"from {names[0]} to {names[1]}: not in the table")
