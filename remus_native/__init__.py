# SPDX-License-Identifier: LGPL-2.1-or-later
"""Checkpointed disk replication for highly available guests.

- `Primary`, `Backup`, `Export`: the replica engine, in user space;
  `PrimaryConfig`, `BackupConfig`: all that they can be told, as one value;
  `role_of`: which of the two a host is, by its state directory.
- `DrbdDisk`: a device that answers DRBD's protocol D ioctls.
- `CheckpointDevices`: the device layer, all disks of a guest in step;
  `AsyncCheckpointDevices`: the same for asyncio.
- `Checkpointer`: the loop on top; `NullGuest`, `QmpGuest`: guests.
- `EpochStatistics`: what epochs took, from any process: each one as an
  `EpochSample`, all as an `EpochSummary`.  A `Checkpointer` has the same of
  its checkpoints, guest's pause and all: `CheckpointSample`,
  `CheckpointSummary`.  Times are nanoseconds everywhere.
- `RemusError` and what is under it: everything that can go wrong.

Importing starts no thread and needs only cffi.
"""

import logging
from typing import TYPE_CHECKING, Any

from ._version import __version__
from .checkpointer import (
    Checkpointer,
    CheckpointSample,
    CheckpointSummary,
    Guest,
)
from .devices import CheckpointDevice, CheckpointDevices, Subkind
from .drbd import DrbdDisk
from .epochs import (
    EpochBatch,
    EpochSample,
    EpochStatistics,
    EpochSummary,
    HistogramBucket,
    SeriesSummary,
    StatisticsSource,
)
from .errors import (
    CheckpointCancelled,
    CheckpointTimeout,
    CheckpointUnknown,
    ConfigError,
    DeviceErrors,
    DeviceNotReady,
    DeviceNotSupported,
    NotProtocolD,
    PhaseError,
    RemusError,
    RemusWarning,
    ReplicationLost,
    StateError,
)
from .guests import NullGuest, QmpGuest
from .replica import (
    Backup,
    BackupConfig,
    Changes,
    Checkpoint,
    Export,
    Log,
    LogEntry,
    Node,
    Primary,
    PrimaryConfig,
    Refusal,
    ReplicaResource,
    Standby,
    State,
    Status,
    Verification,
    Volume,
    role_of,
)

if TYPE_CHECKING:
    from .devices_async import AsyncCheckpointDevices

# Of a program that has no logging of its own nothing is printed.
logging.getLogger(__name__).addHandler(logging.NullHandler())

__all__ = [
    "AsyncCheckpointDevices",
    "Backup",
    "BackupConfig",
    "Changes",
    "Checkpoint",
    "CheckpointCancelled",
    "CheckpointDevice",
    "CheckpointDevices",
    "CheckpointSample",
    "CheckpointSummary",
    "CheckpointTimeout",
    "CheckpointUnknown",
    "Checkpointer",
    "ConfigError",
    "DeviceErrors",
    "DeviceNotReady",
    "DeviceNotSupported",
    "DrbdDisk",
    "EpochBatch",
    "EpochSample",
    "EpochStatistics",
    "EpochSummary",
    "Export",
    "Guest",
    "HistogramBucket",
    "Log",
    "LogEntry",
    "Node",
    "NotProtocolD",
    "NullGuest",
    "PhaseError",
    "Primary",
    "PrimaryConfig",
    "QmpGuest",
    "Refusal",
    "RemusError",
    "RemusWarning",
    "ReplicaResource",
    "ReplicationLost",
    "SeriesSummary",
    "Standby",
    "State",
    "StateError",
    "StatisticsSource",
    "Status",
    "Subkind",
    "Verification",
    "Volume",
    "__version__",
    "role_of",
]


def __getattr__(name: str) -> Any:
    # asyncio is large, and most programs that import this do without.
    if name == "AsyncCheckpointDevices":
        from .devices_async import AsyncCheckpointDevices

        return AsyncCheckpointDevices
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
