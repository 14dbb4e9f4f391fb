# SPDX-License-Identifier: LGPL-2.1-or-later
"""The doctor's look at the network: the key, and the ports of both ways."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import time
from collections.abc import Iterator

from ..resource_file import ResourceFileError
from ..resource_file._disks import check_key
from ..resource_file._values import Problems
from ._finding import ERROR, OK, WARNING, Finding, Subject

__all__ = ["connect", "key", "listen"]

CONNECT_S = 3.0


def key(subject: Subject) -> Iterator[Finding]:
    resource = subject.resource
    if resource.psk_file is not None:
        problems = Problems(resource.file)
        check_key(resource.psk_file, resource.psk_identity or resource.name, problems)
        for line in problems.lines:
            yield subject.says(
                "key",
                ERROR,
                line.removeprefix(f"{resource.file}: "),
                "copy the same key file to both hosts, mode 0600",
                of_host=True,
            )
        if not problems.lines:
            who = resource.psk_identity or resource.name
            yield subject.says(
                "key",
                OK,
                f"{resource.psk_file} has a key for {who}",
                of_host=True,
            )
    elif resource.address.startswith("unix:"):
        yield subject.says(
            "key", OK, "none: a Unix socket proves the user", of_host=True
        )
    else:
        yield subject.says(
            "key",
            WARNING,
            'tls = "off": whoever can connect can replace the disks',
            'make a key with psktool and say tls = "psk"',
            of_host=True,
        )


def _addresses(address: str) -> list[tuple[int, tuple[str, int]]]:
    """Each family and socket address of a ``tcp:`` one.  OSError."""
    host, _, port = address[4:].rpartition(":")
    found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    return [(one[0], (str(one[4][0]), int(one[4][1]))) for one in found]


# ---- where this host listens ----------------------------------------------------


def listen(subject: Subject) -> Iterator[Finding]:
    """The backup's address, and the primary's of the time after a swap."""
    resource = subject.resource
    name = "listen"
    if subject.side == "backup":
        address = resource.listens
    else:
        try:
            address = resource.swapped().listens
        except ResourceFileError:
            yield subject.says(
                name,
                WARNING,
                "no address_swapped: after a failover this host can't be the backup",
                'add address_swapped = "tcp:HOST:PORT", with this host\'s address',
            )
            return
        if address == resource.listens and address.startswith("unix:"):
            return  # one socket for both
    if address.startswith("unix:"):
        yield _socket_place(subject, address[5:])
    elif subject.side == "backup" and subject.runs:
        yield subject.says(name, OK, f"{address}: the backup's process listens there")
    else:
        yield _bindable(subject, address)


def _socket_place(subject: Subject, path: str) -> Finding:
    folder = os.path.dirname(path)
    if os.path.isdir(folder) and not os.access(folder, os.W_OK | os.X_OK):
        return subject.says(
            "listen", ERROR, f"{folder} can't be written to", "run it as its owner"
        )
    return subject.says("listen", OK, f"unix:{path} can be made")


def _bindable(subject: Subject, address: str) -> Finding:
    try:
        addresses = _addresses(address)
    except OSError as error:
        return subject.says(
            "listen",
            ERROR,
            f"{address}: the name was not resolved: {error.strerror or error}",
            "correct the name, or write the address as numbers",
        )
    why: OSError | None = None
    for family, place in addresses:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(place)
            except OSError as error:
                why = why or error
                continue
        return _bound(subject, address, place[0])
    assert why is not None
    if why.errno == errno.EADDRINUSE:
        fix = "end what listens there (ss -ltnp), or choose another port"
    elif why.errno == errno.EADDRNOTAVAIL:
        fix = 'not of this host: correct it, or set listen = "tcp:0.0.0.0:..."'
    else:
        fix = "repair what it reports"
    return subject.says("listen", ERROR, f"{address}: {why.strerror}", fix)


def _bound(subject: Subject, address: str, numbers: str) -> Finding:
    loopback = ipaddress.ip_address(numbers.partition("%")[0]).is_loopback
    if loopback and not subject.resource.same_host:
        return subject.says(
            "listen",
            WARNING,
            f"{address} is {numbers}, which only this host can connect to",
            'give the address of its network, or listen = "tcp:0.0.0.0:PORT"',
        )
    return subject.says("listen", OK, f"{address} ({numbers}) is free")


# ---- where this host connects to ------------------------------------------------


def connect(subject: Subject) -> Iterator[Finding]:
    """The backup from the primary; from the backup, the host of the primary."""
    resource = subject.resource
    if subject.side == "primary":
        address = resource.address
        needed = True
    else:
        address = resource.address_swapped or ""
        needed = False
        if not address.startswith("tcp:"):
            return  # nothing to connect to before a swap
    if address.startswith("unix:"):
        yield _unix(subject, address[5:])
        return
    try:
        addresses = _addresses(address)
    except OSError as error:
        yield subject.says(
            "connect",
            ERROR,
            f"{address}: the name was not resolved: {error.strerror or error}",
            "correct the name or the name server (getent ahosts NAME)",
        )
        return
    yield _reached(subject, address, addresses, needed)


def _unix(subject: Subject, path: str) -> Finding:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(CONNECT_S)
        try:
            sock.connect(path)
        except OSError as error:
            return subject.says(
                "connect",
                WARNING,
                f"unix:{path}: {error.strerror or error}",
                "start the backup (or the ssh that carries its socket)",
            )
    return subject.says("connect", OK, f"unix:{path}: somebody listens")


def _reached(
    subject: Subject,
    address: str,
    addresses: list[tuple[int, tuple[str, int]]],
    needed: bool,
) -> Finding:
    refused, why = False, ""
    for family, place in addresses:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.settimeout(CONNECT_S)
            started = time.monotonic()
            try:
                sock.connect(place)
            except ConnectionRefusedError:
                refused = True
                continue
            except OSError as error:
                why = why or f"{place[0]}: {error.strerror or error}"
                continue
            took = (time.monotonic() - started) * 1000
            return subject.says(
                "connect", OK, f"{address}: somebody listens ({took:.1f} ms)"
            )
    if refused and needed:
        return subject.says(
            "connect",
            WARNING,
            f"{address}: the host answers, nobody listens there",
            "start the backup, or correct the port",
        )
    if refused:
        return subject.says(
            "connect",
            OK,
            f"{address}: the host answers; nobody listens there before a swap",
        )
    return subject.says(
        "connect",
        ERROR if needed else WARNING,
        f"{address}: not reachable: {why}",
        "check the address, the route and both firewalls",
    )
