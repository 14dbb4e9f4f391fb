# SPDX-License-Identifier: LGPL-2.1-or-later
"""The control socket: how one process asks another that serves a resource.

``remus-native backup`` and ``primary`` listen on ``STATE/control.sock``
(0600; the peer must be root or the same user).  One line is one JSON object::

    {"request": "promote", "checkpoint": 812}
    {"ok": true, "result": {"checkpoint": 812, "tag": "790", ...}}
    {"ok": false, "error": "backup of guest0: ...", "kind": "StateError",
     "errno": 22}

Requests are answered in order; the other keys of a request are arguments of
the handler.  `ControlServer` answers quick requests (``status``) in its one
thread.  Requests that may block for a disk go to the thread that owns the
resource: it waits for `ControlServer.fileno` and calls `run_pending`, so that
``status`` is answered while a promote is under way.  Such a request is
dropped if its client has gone before it was begun; one that was begun is
carried out.

A client that is broken or hostile costs its own connection and nothing else.
A request is at most 64 KiB, flat (values are texts, numbers, true, false,
null), and whole within 10 s; who does not read its answers is not read from
either; who says nothing for a minute is closed, and earlier if more than 32
are connected and another one comes.

The backup takes ``status``, ``checkpoints``, ``refusals``, ``target`` (where
a promote would go to), ``promote``, ``commit`` and ``stop`` (end as on
SIGTERM), the primary ``status``, ``resume``, ``verify``,
``verified``, ``verify_cancel`` and ``stop``.
"""

from ._client import NotRunning, call, is_running
from ._server import ControlServer

__all__ = ["ControlServer", "NotRunning", "call", "is_running"]
