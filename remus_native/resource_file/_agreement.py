# SPDX-License-Identifier: LGPL-2.1-or-later
"""Keys of a resource file that must go together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ._values import Problems, show

__all__ = [
    "check_auto_promote",
    "check_hosts",
    "check_keys",
    "check_listen",
    "check_proof",
    "check_swapped",
]


def check_hosts(primary: str, backup: str, problems: Problems) -> None:
    if bool(primary) != bool(backup):
        problems.add(
            "primary.host" if backup else "backup.host",
            "the name of the other host, too",
            None,
            "name both hosts, or neither",
        )
    elif primary and primary.lower() == backup.lower():
        problems.add(
            "backup.host",
            "another host than that of [primary]",
            show(backup),
            "where both sides are on one host leave host out, and say --host",
        )


def check_auto_promote(
    fence: tuple[str, ...] | None, backup_serves: bool, problems: Problems
) -> None:
    if fence is None:
        problems.add(
            "fence",
            'a command, or "none", beside auto_promote = true',
            None,
            "name the command that makes sure that the other host does not write",
        )
    if not backup_serves:
        problems.add(
            "backup.mount",
            "a directory for the nodes that auto_promote is about",
            None,
            "add mount to [backup]; usually the same as in [primary]",
        )


def check_swapped(
    address: str | None, address_swapped: str | None, problems: Problems
) -> None:
    """With nodes of its own the backup is the primary once it is promoted."""
    if address_swapped is None and (address or "").startswith("tcp:"):
        problems.add(
            "address_swapped",
            "the address where the primary's host listens once it is the backup, "
            "beside mount in [backup]",
            None,
            'add address_swapped = "tcp:HOST:PORT"',
        )


def check_listen(
    key: str, listen: str | None, beside: str, address: str | None, problems: Problems
) -> None:
    """A TCP address is one way to the host, listening another matter."""
    if listen is None or (address is None and beside == "address"):
        return  # what is missing is told anyway
    if not listen.startswith("tcp:") or not (address or "").startswith("tcp:"):
        problems.add(
            key,
            f"tcp:HOST:PORT, beside a tcp: {beside}",
            show(listen),
            "leave it out where a Unix socket is used: both sides name its path",
        )


def check_proof(
    values: Mapping[str, Any], key: str, address: str | None, problems: Problems
) -> None:
    """TCP with TLS, or without only where the file says so."""
    if address is not None and address.startswith("tcp:") and "tls" not in values:
        problems.add(
            key,
            'tls = "psk" beside a tcp: address',
            f"{show(address)} without authentication",
            'add tls = "psk" and a psk_file; or tls = "off", if whoever can '
            "connect there may replace the disks",
        )


def check_keys(values: Mapping[str, Any], problems: Problems) -> None:
    """TLS with its key file; no half of it."""
    tls = values.get("tls")
    if tls == "psk" and "psk_file" not in values:
        problems.add(
            "psk_file",
            'a key file beside tls = "psk"',
            None,
            f"make one with psktool -u {values.get('name', 'NAME')} -p FILE, copy "
            "it to the other host, and name it as psk_file",
        )
    for key in ("psk_file", "psk_identity"):
        if key in values and tls in (None, "off"):
            problems.add(
                key,
                'tls = "psk" beside it',
                "no tls" if tls is None else 'tls = "off"',
                f'say tls = "psk", or remove {key}',
            )
