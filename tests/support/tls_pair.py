# SPDX-License-Identifier: LGPL-2.1-or-later
"""A backup that wants the shared key, and a proxy before it."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path

import pytest

from remus_native import Backup, Primary, Volume
from support.pair import MIB, QUIET, SMALL

IDENTITY = "guest0"
KEY = "5a" * 32


def key_file(folder: Path, name: str = "key", *lines: str, mode: int = 0o600) -> Path:
    path = folder / name
    path.write_text("".join(f"{line}\n" for line in lines or [f"{IDENTITY}:{KEY}"]))
    path.chmod(mode)
    return path


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Tls:
    """A backup that wants the key, on 127.0.0.1, and primaries for it."""

    def __init__(self, folder: Path, size: int = MIB) -> None:
        self.folder, self.port = folder, free_port()
        self.key = key_file(folder)
        for side in "pb":
            (folder / side).mkdir()
            with (folder / f"{side}.img").open("wb") as image:
                image.truncate(size)
        self.opened: list[Primary | Backup] = []
        self.backup = Backup(
            "guest0", state_dir=folder / "b",
            volumes=[Volume("xvda", folder / "b.img")], psk_file=self.key,
            **{**SMALL, "journal_bytes": 4 * MIB},
        )  # fmt: skip
        self.opened.append(self.backup)
        self.backup.serve(f"tcp:127.0.0.1:{self.port}")

    def primary(self, **options) -> Primary:
        settings = {"psk_file": self.key, "port": self.port, **QUIET, **options}
        port = settings.pop("port")
        primary = Primary(
            "guest0", state_dir=self.folder / "p",
            volumes=[Volume("xvda", self.folder / "p.img")],
            address=f"tcp:127.0.0.1:{port}", connect_ms=10, **settings,
        )  # fmt: skip
        self.opened.append(primary)
        return primary

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def refused(self, cause: str) -> int:
        return sum(one.count for one in self.backup.refusals() if one.cause == cause)

    def close(self) -> None:
        for side in reversed(self.opened):
            side.close()


@pytest.fixture
def tls(tmp_path):
    made = Tls(tmp_path)
    yield made
    made.close()


class Proxy(threading.Thread):
    """Carries one connection and keeps what the client sent; cuts it after
    `limit` bytes of that, or flips a bit of what comes next."""

    limit: int | None = None
    flip = False

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.target = port
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.sent = bytearray()
        self.start()

    def run(self) -> None:
        client, _ = self.listener.accept()
        server = socket.create_connection(("127.0.0.1", self.target))
        back = threading.Thread(target=self.carry, args=(server, client, None))
        back.start()
        self.carry(client, server, self.sent)
        back.join()

    def carry(self, source: socket.socket, to: socket.socket, keep) -> None:
        try:
            while data := source.recv(65536):
                if keep is not None:
                    if self.flip:
                        data = data[:-9] + bytes([data[-9] ^ 4]) + data[-8:]
                    if self.limit is not None:
                        data = data[: self.limit - len(keep)]
                    keep += data
                to.sendall(data)
                if keep is not None and len(keep) == self.limit:
                    break
        except OSError:
            pass
        for sock in (source, to):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
