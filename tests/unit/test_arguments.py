# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every wrong argument is a ConfigError that names it, and the builtin that
fits; timeouts and handles have one rule each."""

from __future__ import annotations

import gc
import math
import os
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from remus_native import (
    AsyncCheckpointDevices,
    Backup,
    CheckpointDevices,
    Checkpointer,
    CheckpointTimeout,
    ConfigError,
    DrbdDisk,
    EpochStatistics,
    Export,
    Node,
    NullGuest,
    Primary,
    QmpGuest,
    RemusError,
    ReplicaResource,
    StateError,
    Volume,
)
from remus_native._checks import milliseconds, seconds
from support.waiting import until

HUGE = 1 << 70
DIGITS = 10**5000  # its text alone is a ValueError

# ---- timeouts --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "ms"),
    [
        (None, -1), (math.inf, -1), (1e300, -1), (HUGE, -1), (DIGITS, -1),
        ((1 << 63) / 1000, -1), (0, 0), (0.0, 0), (-0.0, 0), (1e-9, 1), (0.0015, 2),
        (5, 5000), (3600.5, 3600500), (1e15, 10**18),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_a_timeout_has_one_meaning(value, ms):
    assert milliseconds(value) == ms
    assert (seconds("timeout_s", value) is None) == (ms == -1)


@pytest.mark.parametrize(
    ("value", "builtin"),
    [
        (math.nan, ValueError), (-1, OverflowError), (-1e-9, OverflowError),
        (-math.inf, OverflowError), (-DIGITS, OverflowError), (True, TypeError),
        ("5", TypeError), (object(), TypeError), ([1], TypeError),
        (1j, TypeError), (b"5", TypeError),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_a_timeout_that_is_none_is_named(value, builtin):
    for name in ("timeout_s", "setup_timeout_s"):
        with pytest.raises(ConfigError, match=f"^{name}: ") as caught:
            milliseconds(value, name)
        assert isinstance(caught.value, builtin)
        assert isinstance(caught.value, ValueError)


WRONG_TIMES = [math.nan, -1, "5", True]
LONG_TIMES = [math.inf, 1e300, (1 << 63) / 1000, 9.2e15, None]


@pytest.mark.parametrize("value", WRONG_TIMES)
def test_every_timeout_of_the_package_keeps_the_rule(make_pair, value):
    pair = make_pair([65536])
    primary = pair.primary
    devices = CheckpointDevices([ReplicaResource(primary)])
    devices.setup()
    devices.postsuspend()
    calls: list[tuple[str, Callable[[], Any]]] = [
        ("timeout_s", lambda: DrbdDisk("/dev/null", timeout_s=value)),
        ("timeout_s", lambda: ReplicaResource(primary, timeout_s=value)),
        ("setup_timeout_s", lambda: ReplicaResource(primary, setup_timeout_s=value)),
        ("timeout_s", lambda: primary.wait_protected(value)),
        ("timeout_s", lambda: primary.preresume(1, value)),
        ("timeout_s", lambda: devices.preresume(value)),
        ("timeout_s", lambda: devices.preresume_begin(value)),
        ("timeout_s", lambda: devices.wait_ready(value)),
        ("timeout_s", lambda: Checkpointer(devices, NullGuest(), timeout_s=value)),
        ("timeout_s", lambda: QmpGuest("/none", timeout_s=value)),
        ("interval_s", lambda: Checkpointer(devices, NullGuest(), interval_s=value)),
        (
            "duration_s",
            lambda: Checkpointer(devices, NullGuest()).run(count=1, duration_s=value),
        ),
    ]
    for name, call in calls:
        with pytest.raises(ConfigError, match=name):
            call()
    devices.preresume()
    devices.teardown()


@pytest.mark.parametrize("value", LONG_TIMES)
def test_a_long_timeout_is_not_over_at_once(make_pair, value):
    pair = make_pair([65536])
    pair.primary.wait_protected(value)
    with CheckpointDevices([ReplicaResource(pair.primary, timeout_s=value)]) as devices:
        for timeout_s in (value, 0.0, None):
            devices.postsuspend()
            try:
                devices.preresume(timeout_s)
            except CheckpointTimeout:
                assert timeout_s == 0.0
                devices.preresume(value)
        number = pair.primary.postsuspend()
        pair.primary.preresume(number, value)
    checkpointer = Checkpointer(
        CheckpointDevices([ReplicaResource(pair.primary)]),
        NullGuest(),
        interval_s=0,
        timeout_s=value,
    )
    assert checkpointer.run(count=2, duration_s=value) == 2


def test_a_long_timeout_of_a_device_that_answers_late(make_pair):
    class Slow:
        kind = name = "slow"

        def postsuspend(self, tag: Any = None) -> int:
            return 1

        def preresume(self, timeout_s: float | None = None) -> None:
            assert timeout_s is None or timeout_s > 1e9
            time.sleep(0.05)

    for value in LONG_TIMES:
        with CheckpointDevices([Slow(), Slow()]) as devices:
            devices.postsuspend()
            devices.preresume(value)


# ---- arguments -------------------------------------------------------------------


class Odd:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


@pytest.fixture
def calls(make_pair, tmp_path) -> dict[str, Callable[[Any], Any]]:
    """A call for each argument, by its name."""
    pair = make_pair([65536])
    primary, backup = pair.primary, pair.backup
    volumes = [Volume("xvda", tmp_path / "none")]
    side: dict[str, Any] = {"state_dir": tmp_path, "volumes": volumes}
    to = {"address": "unix:/none"}

    def new(cls: Any, **changed: Any) -> Any:
        options = {**side, **(to if cls is Primary else {}), **changed}
        return cls(options.pop("resource", "guest0"), **options)

    numbers = [
        "queue_bytes", "max_pause_ms", "loss_ms", "stall_ms", "connect_ms",
        "idle_ms", "grace_ms", "resync_rate",
    ]  # fmt: skip
    table: dict[str, Callable[[Any], Any]] = {
        name: (lambda v, name=name: new(Primary, **{name: v})) for name in numbers
    }
    for name in ("journal_bytes", "segment_bytes", "stale_ms"):
        table[f"backup {name}"] = lambda v, name=name: new(Backup, **{name: v})
    for cls in (Primary, Backup):
        for name in ("resource", "state_dir", "volumes", "ack", "commit_by"):
            key = f"{cls.__name__} {name}"
            table[key] = lambda v, cls=cls, name=name: new(cls, **{name: v})
        table[f"{cls.__name__} psk_file"] = lambda v, cls=cls: new(cls, psk_file=v or 5)
    table |= {
        "address": lambda v: new(Primary, address=v),
        "on_loss": lambda v: new(Primary, on_loss=v),
        "ask_alone": lambda v: new(Primary, ask_alone=v or 7),
        "volume name": lambda v: new(Primary, volumes=[Volume(v, "/none")]),
        "volume path": lambda v: new(Primary, volumes=[Volume("xvda", v)]),
        "volume size": lambda v: new(
            Primary, volumes=[Volume("xvda", "/none", v or 5)]
        ),
        "volume": lambda v: primary.pread(v, 512, 0),
        "length": lambda v: primary.pread(0, v, 0),
        "offset": lambda v: primary.pread(0, 512, v),
        "data": lambda v: primary.pwrite(0, v, 0),
        "write offset": lambda v: primary.pwrite(0, b"x", v),
        "zeroes length": lambda v: primary.write_zeroes(0, 0, v),
        "tag": lambda v: primary.postsuspend(v if v is not None else 5.5),
        "epoch": lambda v: primary.preresume(v, 1),
        "commit epoch": lambda v: primary.commit(v),
        "number": lambda v: primary.epoch(v) or 1 / 0,
        "rate": lambda v: primary.verify(rate=v),
        "backup epoch": lambda v: backup.commit(v),
        "checkpoint": lambda v: backup.target(v if v is not None else "x"),
        "serve address": lambda v: backup.serve(v),
        "mountpoint": lambda v: Export(primary, v),
        "nodes": lambda v: Export(primary, tmp_path, nodes=v if v else [5]),
        "uid": lambda v: Export(primary, tmp_path, nodes=[Node(uid=v)]),
        "path": lambda v: DrbdDisk(v),
        "cancel_signal": lambda v: DrbdDisk("/dev/null", cancel_signal=v),
        "name": lambda v: DrbdDisk("/dev/null", name=v if v is not None else 5),
        "statistics": lambda v: EpochStatistics("x", path=v if v is not None else 5),
        "statistics name": lambda v: EpochStatistics(v),
        "attach": lambda v: EpochStatistics.attach(v),
        "devices": lambda v: CheckpointDevices(v),
        "primary": lambda v: ReplicaResource(v),
    }
    return table


@pytest.mark.parametrize(
    "value",
    [None, -1, HUGE, -HUGE, DIGITS, 1.5, math.nan, "a\0b", object(), Odd(), True],
    ids=lambda value: type(value).__name__,
)
def test_a_wrong_argument_is_an_error_of_ours(calls, value):
    """Whatever it is: never another error, never a success by accident."""
    for name, call in calls.items():
        try:
            call(value)
        except RemusError:
            pass
        except (ZeroDivisionError, FileNotFoundError):
            pass  # `number`: None is a fine answer
        except Exception as error:
            raise AssertionError(f"{name}={type(value)}: {error!r}") from error


@pytest.mark.parametrize(
    ("name", "value", "builtin"),
    [
        ("loss_ms", "5", TypeError),
        ("loss_ms", -1, OverflowError),
        ("loss_ms", 1 << 32, OverflowError),
        ("loss_ms", 1.5, TypeError),
        ("ack", None, TypeError),
        ("ack", "sometimes", ValueError),
        ("volumes", 5, TypeError),
        ("volumes", ["xvda"], TypeError),
        ("volumes", [], ValueError),
        ("state_dir", 5, TypeError),
        ("state_dir", "a\0b", ValueError),
        ("address", b"unix:/x", TypeError),
    ],
)
def test_it_is_also_the_builtin_that_fits(tmp_path, name, value, builtin):
    options: dict[str, Any] = {
        "state_dir": tmp_path,
        "volumes": [Volume("xvda", tmp_path / "none")],
        "address": "unix:/none",
        name: value,
    }
    with pytest.raises(ConfigError, match=f"^{name}: ") as caught:
        Primary("guest0", **options)
    assert isinstance(caught.value, builtin)


@pytest.mark.parametrize(
    "call",
    [
        lambda path: DrbdDisk(path).setup(),
        lambda path: DrbdDisk("/dev/null", probe=path).setup(),
        lambda path: EpochStatistics("x", path=path),
        lambda path: EpochStatistics.attach(path),
        lambda path: CheckpointDevices([], statistics=path),
    ],
)
def test_a_nul_never_cuts_a_path(tmp_path, call):
    """The file before the NUL would be used instead."""
    (tmp_path / "file").touch()
    for path in (f"{tmp_path}/file\0x", os.fsencode(f"{tmp_path}/file\0x")):
        with pytest.raises(ConfigError, match="NUL"):
            call(path)


# ---- handles ---------------------------------------------------------------------


def test_a_disk_that_is_torn_down_under_calls_of_other_threads():
    """It used to crash: nothing kept the device open under a call."""
    disk = DrbdDisk("/dev/null")
    stop = threading.Event()
    wrong: list[BaseException] = []

    def use() -> None:
        while not stop.is_set():
            for call in (
                disk.postsuspend,
                lambda: disk.preresume(0.01),
                lambda: disk.empty,
                lambda: disk.is_node,
                disk.cancel,
                lambda: disk.wait_ready(0),
            ):
                try:
                    call()
                except RemusError:
                    pass
                except BaseException as error:
                    wrong.append(error)

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(150):
        disk.setup()
        disk.teardown()
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong


def dropped(make: Callable[[], Any]) -> list[str]:
    """The warnings of an object that is dropped open."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        start = time.monotonic()
        make()
        gc.collect()
        assert time.monotonic() - start < 2  # the collector waits for no close
    return [
        str(each.message) for each in caught if each.category is ResourceWarning
        and "remus" not in str(each.filename).split("/")[-1]
    ]  # fmt: skip


def test_a_handle_that_is_dropped_open_says_so_and_is_closed(tmp_path):
    for side in ("primary", "backup"):
        (tmp_path / side).mkdir()
        with (tmp_path / f"{side}.img").open("wb") as image:
            image.truncate(65536)

    def primary() -> Primary:
        return Primary(
            "guest0",
            state_dir=tmp_path / "primary",
            volumes=[Volume("xvda", tmp_path / "primary.img")],
            address=f"unix:{tmp_path}/sock",
        )

    def backup() -> Backup:
        return Backup(
            "guest0",
            state_dir=tmp_path / "backup",
            volumes=[Volume("xvda", tmp_path / "backup.img")],
            journal_bytes=1 << 20,
            segment_bytes=65536,
        )

    def disk() -> Any:
        device = DrbdDisk("/dev/null")
        device.setup()
        return device

    def session() -> Any:
        devices = CheckpointDevices([DrbdDisk("/dev/null")])
        devices.setup()
        return devices

    for make, words in (
        (primary, "primary of guest0 was not closed"),
        (backup, "backup of guest0 was not closed"),
        (lambda: EpochStatistics("x"), "epoch statistics of x was not closed"),
        (disk, "device /dev/null was not closed"),
        (session, "group guest: its session was not torn down"),
    ):
        assert any(
            words in said for said in dropped(lambda make=make: (make(), None)[1])
        )

    def free_again(make: Callable[[], Any]) -> bool:
        try:
            make().close()
        except StateError:
            return False
        return True

    until(lambda: free_again(primary))
    until(lambda: free_again(backup))


def test_what_was_closed_says_nothing(make_pair):
    def all_closed() -> None:
        with EpochStatistics("x"):
            pass
        with CheckpointDevices([DrbdDisk("/dev/null")]):
            pass

    assert dropped(all_closed) == []


def test_a_loop_keeps_the_rule(make_pair):
    import asyncio

    pair = make_pair([65536])

    async def main() -> None:
        async with AsyncCheckpointDevices([ReplicaResource(pair.primary)]) as devices:
            await devices.wait_ready()
            await devices.postsuspend()
            for value in WRONG_TIMES:
                with pytest.raises(ConfigError, match="timeout_s"):
                    await devices.preresume(value)
            await devices.preresume(math.inf)
            await devices.commit()

    asyncio.run(main())
