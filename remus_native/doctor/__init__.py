# SPDX-License-Identifier: LGPL-2.1-or-later
"""``remus-native doctor``: would this resource work on this host, and well?

Each check looks at one thing and changes nothing that is there.  It says
`OK`, `WARNING` (it works, but not as well or as safely as it could) or
`ERROR` (it would not work), what it found, and what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ..resource_file import ResourceFile, Side
from . import _disks, _host, _network
from ._finding import ERROR, OK, WARNING, Finding, Subject

__all__ = [
    "ERROR",
    "NAMES",
    "OK",
    "WARNING",
    "Finding",
    "Subject",
    "examine",
    "sides_here",
]

#: In the order in which they are told; each is asked once for each side.
CHECKS: tuple[Callable[[Subject], Iterator[Finding]], ...] = (
    _network.key,
    _network.listen,
    _network.connect,
    _host.clock,
    _disks.images,
    _disks.space,
    _disks.journal,
    _host.fence,
    _host.hardening,
    _host.kernel,
    _disks.mount,
)

#: What is the same for both sides of a host is asked once.
OF_THE_HOST = (_network.key, _host.clock, _host.fence, _host.hardening, _host.kernel)
NAMES = tuple(check.__name__ for check in CHECKS)


def sides_here(resource: ResourceFile) -> list[Side]:
    """The sides that this host has: those whose state or disks are here.

    None found: it is a new host, so both are looked at.
    """
    both: list[Side] = ["primary", "backup"]
    found = [side for side in both if _disks.is_here(resource, side)]
    return found or both


def examine(
    resource: ResourceFile,
    sides: Sequence[Side],
    run_fence: Callable[[], None] | None = None,
    only: str | None = None,
) -> Iterator[Finding]:
    """What the checks find, or the one named ``only``.

    ``run_fence`` runs the fence command and raises if it fails.
    """
    for side in sides:
        subject = Subject(resource, side, run_fence)
        for check in CHECKS:
            if only not in (None, check.__name__):
                continue
            if check in OF_THE_HOST and side != sides[0]:
                continue
            try:
                yield from check(subject)
            except Exception as error:
                # A fault of one check must not hide the others.
                yield subject.says(
                    check.__name__,
                    WARNING,
                    f"could not be checked: {type(error).__name__}: {error}",
                    "check it by hand",
                )
