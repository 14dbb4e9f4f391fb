# SPDX-License-Identifier: LGPL-2.1-or-later
"""``/metrics`` and ``/healthz`` over HTTP, by the extra ``metrics``.

Runs in a process of its own, never in one that serves a disk: whatever a
client does, no guest waits for it.
"""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from ..errors import ConfigError
from ._ask import Told
from ._metrics import families

__all__ = ["MetricsServer"]

Health = Callable[[Sequence[Told]], tuple[bool, str]]
Environ = dict[str, Any]
REQUEST_S = 10.0  # for a client to say what it wants


class _Quiet(WSGIRequestHandler):
    timeout = REQUEST_S

    def log_message(self, *_: object) -> None:
        """A line for each scrape would say nothing."""


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        """Without the look-up of this host's name that its parent does."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "localhost", self.server_address[1]
        self.setup_environ()


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Collector:
    def __init__(self, look: Callable[[], Sequence[Told]]) -> None:
        self._look = look

    def collect(self) -> Iterator[Any]:
        from prometheus_client import Metric

        for family, samples in families(self._look()):
            # The library wants a counter's name without its "_total".
            name = family.name.removesuffix("_total")
            metric = Metric(name, family.help, family.kind)
            end = "_total" if family.kind == "counter" else ""
            for suffix, labels, value in samples:
                metric.add_sample(name + end + suffix, labels, value)
            yield metric


class MetricsServer:
    """Answers until `close`.  ``look`` asks the resources, for each request."""

    def __init__(
        self,
        host: str,
        port: int,
        look: Callable[[], Sequence[Told]],
        health: Health,
    ) -> None:
        try:
            from prometheus_client import CollectorRegistry, make_wsgi_app
        except ImportError as error:
            raise ConfigError(
                "metrics over HTTP needs prometheus-client: pip install "
                "'remus-native[metrics]', or use --textfile, which needs nothing"
            ) from error
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Collector(look))
        self._metrics = make_wsgi_app(registry)
        self._look = look
        self._health = health
        self._lock = threading.Lock()  # one look at a time
        try:
            kind = _Server6 if ":" in host else _Server
            self._server = kind((host, port), _Quiet)
        except OSError as error:
            raise ConfigError(
                f"{host}:{port}: {error.strerror or error}", errno=error.errno
            ) from error
        self._server.set_app(self._answer)
        self.port = int(self._server.server_address[1])

    def serve(self) -> None:
        """Until `close` is called in another thread, or a signal raises."""
        self._server.serve_forever(poll_interval=0.2)

    def close(self) -> None:
        self._server.server_close()

    def _answer(self, environ: Environ, start: Any) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if environ.get("REQUEST_METHOD") not in ("GET", "HEAD"):
            return _plain(start, "405 Method Not Allowed", "GET only\n")
        if path == "/metrics":
            with self._lock:
                answer: Iterable[bytes] = self._metrics(environ, start)
            return answer
        if path == "/healthz":
            with self._lock:
                well, words = self._health(self._look())
            status = "200 OK" if well else "503 Service Unavailable"
            return _plain(start, status, words)
        return _plain(start, "404 Not Found", "/metrics or /healthz\n")


def _plain(start: Any, status: str, words: str) -> Iterable[bytes]:
    start(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [words.encode()]
