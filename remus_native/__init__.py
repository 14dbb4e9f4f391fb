# SPDX-License-Identifier: LGPL-2.1-or-later
"""Checkpointed disk replication for highly available guests.

- `Primary`, `Backup`, `Export`: the replica engine, in user space.
- `DrbdDisk`: a device that answers DRBD's protocol D ioctls.
- `CheckpointDevices`: the device layer, all disks of a guest in step.
- `Checkpointer`: the loop on top; `NullGuest`, `QmpGuest`: guests.
- `RemusError` and what is under it: everything that can go wrong.

Importing starts no thread and needs only cffi.
"""

from ._version import __version__
from .checkpointer import Checkpointer, CheckpointStatistics, EpochStats, Guest
from .devices import CheckpointDevice, CheckpointDevices, Subkind
from .drbd import DrbdDisk
from .errors import (
    CheckpointTimeout,
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
    Checkpoint,
    Export,
    Node,
    Primary,
    Refusal,
    ReplicaResource,
    State,
    Status,
    Volume,
)

__all__ = [
    "Backup",
    "Checkpoint",
    "CheckpointDevice",
    "CheckpointDevices",
    "CheckpointStatistics",
    "CheckpointTimeout",
    "Checkpointer",
    "ConfigError",
    "DeviceErrors",
    "DeviceNotReady",
    "DeviceNotSupported",
    "DrbdDisk",
    "EpochStats",
    "Export",
    "Guest",
    "Node",
    "NotProtocolD",
    "NullGuest",
    "PhaseError",
    "Primary",
    "QmpGuest",
    "Refusal",
    "RemusError",
    "RemusWarning",
    "ReplicaResource",
    "ReplicationLost",
    "State",
    "StateError",
    "Status",
    "Subkind",
    "Volume",
    "__version__",
]
