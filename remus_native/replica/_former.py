# SPDX-License-Identifier: LGPL-2.1-or-later
"""The old address of a side that was the backup and is a primary now."""

from __future__ import annotations

import os

from .._binding import ffi, lib, sized, text
from .._checks import encoded, path_of
from .._handle import Handle
from .._values import Tls, tls_off
from ..errors import raise_for

__all__ = ["OldAddress"]


class OldAddress(Handle):
    """Answers primaries that look for their backup where this side was one.

    One that was failed away from hears so and is fenced; with one that went on
    by itself the split brain is named, here by `news`.  Nothing is taken from
    either.  ``state_dir`` is that of the primary that this side is now; the
    rest is as for `Backup` and `Backup.serve`.
    """

    def __init__(
        self,
        resource: str,
        *,
        state_dir: str | os.PathLike[str],
        address: str,
        tls: Tls | None = None,
        psk_file: str | os.PathLike[str] | None = None,
        psk_identity: str | None = None,
    ) -> None:
        super().__init__()
        keep = [
            ffi.new("char[]", value)
            for value in (
                encoded("resource", resource),
                encoded("state_dir", path_of("state_dir", state_dir)),
                encoded("address", address),
            )
        ]
        self._what = f"old address of {resource}"
        raw = sized("former_config")
        raw.resource, raw.state_dir, raw.address = keep
        raw.tls_off = tls_off(tls, psk_file)
        for name, value in (("psk_file", psk_file), ("psk_identity", psk_identity)):
            if value is not None:
                keep.append(ffi.new("char[]", encoded(name, path_of(name, value))))
                setattr(raw, name, keep[-1])
        out = ffi.new("remus_former **")
        rc = lib.remus_former_open(raw, out)
        if rc < 0:
            raise_for(rc)
        self._raw = out[0]

    def __enter__(self) -> OldAddress:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def reload_keys(self) -> None:
        """As `Primary.reload_keys`."""
        with self._call() as raw:
            rc = lib.remus_former_reload_keys(raw)
            if rc < 0:
                raise_for(rc)

    def news(self) -> tuple[str, bool]:
        """About the newest that came: what it was told; is it a split brain?

        The text is empty as long as none came.
        """
        cap = lib.REMUS_REASON_MAX
        out = ffi.new("char[]", cap)
        with self._call() as raw:
            which = lib.remus_former_news(raw, out, cap)
            if which < 0:
                raise_for(which)
        return text(out), which == lib.REMUS_FORMER_SPLIT

    def close(self) -> None:
        """Stop listening there; idempotent."""
        raw = self._take()
        if raw is not None:
            lib.remus_former_close(raw)
