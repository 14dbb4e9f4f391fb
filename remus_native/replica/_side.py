# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a `Primary` and a `Backup` have alike: how either is opened."""

from __future__ import annotations

import errno
import os
from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

from .._binding import ffi, lib, sized, text
from .._checks import encoded, integer, path_of
from .._handle import Handle
from .._values import Changes, Log, LogEntry, State
from ..errors import raise_for
from ._config import BackupConfig, Config, PrimaryConfig

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Side", "role_of"]

C = TypeVar("C", PrimaryConfig, BackupConfig)


class Side(Handle, Generic[C]):
    """One side of a resource, opened with one configuration."""

    _kind: ClassVar[str]
    config: C
    """What it was opened with."""
    resource: str

    @classmethod
    def of(cls, config: C) -> Self:
        """Open the side that ``config`` describes; blocks for local I/O."""
        side = cls.__new__(cls)
        side._open(config)
        return side

    def _open(self, config: C) -> None:
        super().__init__()
        self.config = config
        self.resource = config.name
        encoded("resource", config.name)
        self._what = f"{self._kind} of {config.name}"
        self._listeners: dict[object, Callable[[], object]] = {}
        c = Config(
            self._kind,
            config.name,
            config.state,
            config.volumes,
            config.ack,
            config.commit_by,
            config.run_dir,
        )
        c.psk(config.psk_file, config.psk_identity)
        self._fill(c)
        out = ffi.new(f"remus_{self._kind} **")
        rc = getattr(lib, f"remus_{self._kind}_open")(c.raw, out)
        if rc < 0:
            raise_for(rc)
        self._opened(out[0])
        self._raw = out[0]

    @abstractmethod
    def _fill(self, c: Config) -> None:
        """Put what only this side can be told into ``c``."""

    @abstractmethod
    def _opened(self, raw: Any) -> None:
        """The handle is ``raw``; nobody calls it yet."""

    def event_fd(self) -> int:
        """A descriptor to poll, which is readable when `events` has news.

        It stays the handle's, and is closed with it: only wait for it
        (``select``, ``loop.add_reader``).
        """
        with self._call() as raw:
            fd = int(getattr(lib, f"remus_{self._kind}_event_fd")(raw))
            if fd < 0:
                raise_for(fd)
        return fd

    def events(self) -> Changes:
        """What has changed since the last call; never blocks.

        Ask for `status` after it, not before: a change that comes later makes
        `event_fd` readable again, so none is missed.  What it tells is told
        once: of two who ask, one hears of it.
        """
        with self._call() as raw:
            bits = int(getattr(lib, f"remus_{self._kind}_events")(raw))
            if bits < 0:
                raise_for(bits)
        self._notify()
        return Changes(bits)

    def reload_keys(self) -> None:
        """Read the key file again; it counts from the next connection on.

        The present connection stays.  While a key is replaced the file may
        have several for one identity: "guest0", and each that is "guest0+" and
        anything.  The backup takes any of them, the primary has the last in
        the file.  Blocks for the file's disk; may be called from any thread.
        Raises `ConfigError` or another `RemusError` if the file is wrong: then
        the keys stay as they are.
        """
        with self._call() as raw:
            rc = int(getattr(lib, f"remus_{self._kind}_reload_keys")(raw))
            if rc < 0:
                raise_for(rc)

    def log(self, after: int = 0) -> Log:
        """What this side has to say from number ``after`` on; never blocks.

        An entry for each change of state or link, and for each new reason;
        the newest 64 are kept.  Give `Log.next` the next time.  Those of a
        change are there once `event_fd` tells of it.  Nothing is called back:
        whatever is done with the log, no disk waits for it.
        """
        cap = lib.REMUS_LOG_KEPT
        out = sized("log_entry", cap)
        next_, lost = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        integer("after", after, (1 << 64) - 1)
        with self._call() as raw:
            count = getattr(lib, f"remus_{self._kind}_log")(
                raw, after, out, cap, next_, lost
            )
            if count < 0:
                raise_for(count)
        entries = tuple(
            LogEntry(
                time_ns=one.time_ns,
                state=State(text(lib.remus_state_name(one.state))),
                connected=bool(one.connected),
                text=text(one.text),
            )
            for one in out[0:count]
        )
        return Log(entries=entries, next=next_[0], lost=lost[0])

    def _notify(self) -> None:
        """Wake those of asyncio who wait for a change, in whatever loop."""
        for wake in tuple(self._listeners.values()):
            wake()

    def _take(self) -> Any:
        raw = super()._take()
        if raw is not None:
            self._notify()  # they find it closed
        return raw

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def role_of(
    resource: str, state_dir: str | os.PathLike[str]
) -> Literal["primary", "backup"] | None:
    """Which side of ``resource`` its state directory says that this host is.

    None: it holds no state yet, or is not there.  What a promote, a swap or a
    fence has decided stands there, whether a process runs or not.  Blocks for
    that file system; may be called from any thread.  Raises `RemusError` if
    what is there is another resource's, another release's, or damaged.
    """
    rc = lib.remus_role_of(
        encoded("resource", resource),
        encoded("state_dir", path_of("state_dir", state_dir)),
    )
    if rc == -errno.ENOENT:
        return None
    if rc < 0:
        raise_for(rc)
    return "primary" if rc == lib.REMUS_ROLE_PRIMARY else "backup"
