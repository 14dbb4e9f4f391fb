# SPDX-License-Identifier: LGPL-2.1-or-later
"""The device layer: libxl's semantics with its faults mended."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import sys
import threading
import time
import warnings
from typing import Any

import pytest
from remus_native._core import ffi, lib

from remus_native import (
    AsyncCheckpointDevices,
    CheckpointCancelled,
    CheckpointDevice,
    CheckpointDevices,
    CheckpointTimeout,
    DeviceErrors,
    DeviceNotSupported,
    EpochStatistics,
    PhaseError,
    RemusWarning,
    ReplicaResource,
    ReplicationLost,
    StateError,
    Subkind,
)
from support.scripted import Scripted


def make(count: int) -> tuple[list[Scripted], list[str], CheckpointDevices]:
    calls: list[str] = []
    devices = [Scripted(f"d{i}", calls) for i in range(count)]
    return devices, calls, CheckpointDevices(devices)


def kernel_threads() -> set[str]:
    return set(os.listdir("/proc/self/task"))


def test_a_scripted_device_is_a_device():
    assert isinstance(Scripted("x"), CheckpointDevice)


def test_the_phases_in_order():
    _, calls, layer = make(2)
    with layer:
        assert layer.postsuspend("t") == (1, 1)
        layer.preresume()
        layer.commit()
    assert calls[:4] == ["d0.setup", "d1.setup", "d0.postsuspend", "d1.postsuspend"]
    assert sorted(calls[4:6]) == ["d0.preresume", "d1.preresume"]
    assert calls[6:] == ["d0.commit", "d1.commit", "d1.teardown", "d0.teardown"]


def test_one_device_is_waited_for_in_the_calling_thread():
    (device,), _, layer = make(1)
    before = threading.active_count()
    with layer:
        layer.postsuspend()
        layer.preresume()
        assert threading.active_count() == before
    assert device.threads == {threading.get_ident()}


def test_threads_are_made_at_setup_and_end_at_teardown():
    devices, _, layer = make(3)
    before = kernel_threads()
    with layer:
        # The caller is the third.
        threads = kernel_threads()
        assert len(threads) == len(before) + 2
        for _ in range(5):
            layer.postsuspend()
            layer.preresume()
            layer.commit()
            assert kernel_threads() == threads
    assert kernel_threads() == before
    assert all(device.threads for device in devices)


def test_all_devices_wait_at_once():
    """Each preresume returns only when all are in it."""
    devices, _, layer = make(4)
    barrier = threading.Barrier(4, timeout=10)
    for device in devices:
        device.preresume = lambda timeout_s=None: barrier.wait()  # type: ignore
    with layer:
        layer.postsuspend()
        layer.preresume()


def test_every_error_is_reported_and_the_first_is_the_cause():
    devices, _, layer = make(3)
    devices[0].fail["postsuspend"] = ReplicationLost("d0 lost", errno=71)
    devices[2].fail["postsuspend"] = StateError("d2 broke", errno=5)
    with layer:
        with pytest.raises(DeviceErrors) as caught:
            layer.postsuspend()
        assert [str(error) for error in caught.value.errors] == ["d0 lost", "d2 broke"]
        assert caught.value.__cause__ is caught.value.errors[0]
        assert caught.value.errno == 71
        assert caught.value.phase == "postsuspend"
        assert layer.numbers == (None, 1, None)
        # That epoch can't be waited for.
        with pytest.raises(PhaseError):
            layer.preresume()
        for device in devices:
            device.fail.clear()
        layer.postsuspend()
        layer.preresume()
        layer.commit()


def test_commit_only_after_every_preresume_succeeded():
    devices, calls, layer = make(2)
    devices[1].fail["preresume"] = ReplicationLost("lost")
    with layer:
        layer.postsuspend()
        with pytest.raises(ReplicationLost):
            layer.preresume()
        with pytest.raises(PhaseError):
            layer.commit()
    assert not [call for call in calls if call.endswith("commit")]


def test_a_retry_waits_only_for_those_without_an_ack():
    devices, calls, layer = make(3)
    devices[1].fail["preresume"] = CheckpointTimeout("slow")
    with layer:
        layer.postsuspend()
        with pytest.raises(CheckpointTimeout):
            layer.preresume()
        devices[1].fail.clear()
        calls.clear()
        layer.preresume()
        assert calls == ["d1.preresume"]
        layer.commit()


def test_setup_failure_tears_down_what_was_set_up():
    devices, calls, layer = make(3)
    devices[2].fail["setup"] = StateError("broken")
    with pytest.raises(StateError, match="broken"):
        layer.setup()
    assert calls == ["d0.setup", "d1.setup", "d2.setup", "d1.teardown", "d0.teardown"]
    assert layer.devices == ()
    layer.teardown()


def test_teardown_reaches_every_device():
    devices, calls, layer = make(3)
    layer.setup()
    devices[2].fail["teardown"] = StateError("two")
    devices[0].fail["teardown"] = StateError("zero")
    calls.clear()
    with pytest.raises(DeviceErrors) as caught:
        layer.teardown()
    assert calls == ["d2.teardown", "d1.teardown", "d0.teardown"]
    assert [str(error) for error in caught.value.errors] == ["two", "zero"]
    layer.teardown()
    assert len(calls) == 3


def test_missing_phases_are_no_ops():
    class Bare:
        kind, name = "nic", "eth0"

        def setup(self) -> None:
            self.ready = True

    bare = Bare()
    with CheckpointDevices([bare, Scripted("d")]) as layer:
        assert layer.postsuspend() == (1,)
        layer.preresume()
        layer.commit()
    assert bare.ready


@pytest.mark.parametrize(
    "phases",
    [
        ["preresume"],
        ["commit"],
        ["postsuspend", "postsuspend"],
        ["postsuspend", "commit"],
        ["postsuspend", "preresume", "preresume"],
        ["setup"],
    ],
)
def test_out_of_order_is_an_error(phases):
    _, _, layer = make(1)
    with layer:
        for phase in phases[:-1]:
            getattr(layer, phase)()
        with pytest.raises(PhaseError):
            getattr(layer, phases[-1])()


def test_before_setup_is_an_error():
    _, _, layer = make(1)
    with pytest.raises(PhaseError):
        layer.postsuspend()


def test_postsuspend_of_the_next_may_precede_commit():
    _, _, layer = make(1)
    with layer:
        layer.postsuspend()
        layer.preresume()
        layer.postsuspend()
        layer.commit()
        layer.preresume()
        layer.commit()


# ---- subkinds ------------------------------------------------------------------


def no(reason: str) -> Any:
    def match(description: Any) -> Any:
        raise DeviceNotSupported(reason)

    return match


def test_subkinds_are_tried_in_order():
    late = Scripted("late")
    late.fail["setup"] = DeviceNotSupported("not at setup either")
    chosen = Scripted("chosen")
    layer = CheckpointDevices(
        ["xvda"],
        subkinds=[
            Subkind("drbd", no("no DRBD")),
            Subkind("late", lambda d: late),
            Subkind("replica", lambda d: chosen),
            Subkind("never", lambda d: pytest.fail("one too many")),
        ],
    )
    with layer:
        assert layer.devices == (chosen,)
    assert late.calls == ["late.setup"]


def test_no_subkind_left_names_every_reason():
    layer = CheckpointDevices(
        ["xvda"], subkinds=[Subkind("a", no("because a")), Subkind("b", no("since b"))]
    )
    with pytest.raises(DeviceNotSupported, match="a: because a; b: since b") as caught:
        layer.setup()
    assert caught.value.volume == "xvda"


def test_another_error_is_final():
    def broken(description: Any) -> Any:
        raise StateError("the probe says: not connected")

    layer = CheckpointDevices(
        ["xvda"],
        subkinds=[
            Subkind("drbd", broken),
            Subkind("other", lambda d: pytest.fail("must not be tried")),
        ],
    )
    with pytest.raises(StateError, match="not connected"):
        layer.setup()


def test_a_drbd_disk_beside_ours_warns(make_pair):
    pair = make_pair([65536])
    with (
        pytest.warns(RemusWarning, match="d: a DRBD disk applies"),
        CheckpointDevices([ReplicaResource(pair.primary), Scripted("d")]),
    ):
        pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with CheckpointDevices([ReplicaResource(pair.primary)]):
            pass


def test_the_layer_over_real_replicas(make_pair):
    pair = make_pair([65536])
    with CheckpointDevices([ReplicaResource(pair.primary)]) as layer:
        for i in range(10):
            pair.primary.pwrite(0, bytes([i + 1]) * 100, i * 100)
            (epoch,) = layer.postsuspend(i)
            layer.preresume(timeout_s=10)
            layer.commit()
    pair.primary.close()
    assert pair.backup.promote(tag="9") == epoch
    assert pair.image("backup", 0) == pair.image("primary", 0)


# ---- statistics ----------------------------------------------------------------


def test_the_layer_keeps_statistics(make_pair, tmp_path):
    pair = make_pair([65536])
    (nic,), _, _ = make(1)
    file = tmp_path / "epochs"
    layer = CheckpointDevices(
        [ReplicaResource(pair.primary), nic], statistics=str(file), name="guest0"
    )
    assert layer.epochs is None
    nic.kind = "nic"
    with layer:
        for _ in range(5):
            pair.primary.pwrite(0, bytes(1000), 0)
            pair.primary.pwrite(0, bytes(1000), 500)
            layer.postsuspend()
            layer.preresume(10)
            layer.commit()
        nic.fail["preresume"] = ReplicationLost("lost", errno=errno.EPROTO)
        layer.postsuspend()
        with pytest.raises(ReplicationLost):
            layer.preresume(10)
        assert layer.epochs.end == 5  # its fate is open: preresume may be retried
        of_replica, of_nic = layer.device_epochs
        assert [s.epoch for s in of_nic.recent(9)] == [1, 2, 3, 4, 5]
        numbers = [sample.epoch for sample in of_replica.recent(6)]
        assert numbers == list(range(numbers[0], numbers[0] + 6))
        with EpochStatistics.attach(file) as seen:
            assert seen.source().name == "guest0"
            assert seen.end == 5
    samples = layer.epochs.recent(10)
    assert [s.epoch for s in samples] == [1, 2, 3, 4, 5, 6]
    assert [s.errno for s in samples] == [None] * 5 + [errno.EPROTO]
    assert [s.bytes for s in samples] == [2000] * 5 + [0]
    assert all(s.barrier_ns and s.ack_ns for s in samples)
    assert [s.commit_ns is None for s in samples] == [False] * 5 + [True]
    assert layer.epochs.summary().failed == 1
    measured = [s for s in samples if s.extents is not None]
    assert all((s.extents, s.coalesced) == (1, 500) for s in measured)


def test_extents_reach_the_statistics_when_the_backup_has_told(make_pair):
    pair = make_pair([65536])
    with CheckpointDevices([ReplicaResource(pair.primary)]) as layer:
        end = time.monotonic() + 20
        while layer.epochs.summary().extents.count < 3:
            assert time.monotonic() < end
            pair.primary.pwrite(0, bytes(1000), 0)
            pair.primary.pwrite(0, bytes(1000), 500)
            layer.postsuspend()
            layer.preresume(10)
            layer.commit()
        known = [s for s in layer.epochs.recent(4096) if s.extents is not None]
        assert {(s.extents, s.coalesced) for s in known} == {(1, 500)}


# ---- what a call costs beyond C ---------------------------------------------------


class AtOnce:
    """A native device whose phases return at once."""

    kind, name, timeout_s, _may_block = "nic", "null", 5.0, False

    def _join_group(self, group: Any) -> int:
        ops = lib.remus_test_null_ops()
        return int(lib.remus_group_add_device(group.raw, b"null", ops, ffi.NULL))

    def setup(self) -> None:
        pass


def test_python_adds_less_than_a_microsecond_to_a_call():
    """The best of many rounds each, C and Python in turn.

    What other programs take of the machine meanwhile is not Python's.
    """
    c, python = [], []
    clock = time.perf_counter_ns
    end = time.monotonic() + 20
    with CheckpointDevices([AtOnce()]) as layer:
        group = layer._group
        assert group is not None
        while not c or (
            (min(python) - min(c)) / 300 >= 1000 and time.monotonic() < end
        ):
            c.append(lib.remus_test_group_ns(group.raw, 100))
            start = clock()
            for _ in range(100):
                layer.postsuspend()
                layer.preresume(5)
                layer.commit()
            python.append(clock() - start)
    assert min(c) > 0
    assert (min(python) - min(c)) / 300 < 1000


def test_an_epoch_leaves_nothing_behind(make_pair):
    pair = make_pair([65536])
    for devices in ([AtOnce()], [ReplicaResource(pair.primary)], [AtOnce(), AtOnce()]):
        with CheckpointDevices(devices) as layer:

            def epochs(count: int, layer: Any = layer) -> None:
                for _ in range(count):
                    layer.postsuspend()
                    layer.preresume(20)
                    layer.commit()

            epochs(20)
            gc.collect()
            before = sys.getallocatedblocks()
            epochs(500)
            gc.collect()
            assert sys.getallocatedblocks() - before < 50


def test_an_epoch_of_a_loop_leaves_nothing_behind(make_pair):
    pair = make_pair([65536])

    async def epochs(layer: AsyncCheckpointDevices, count: int) -> None:
        for _ in range(count):
            await layer.postsuspend()
            await layer.preresume(20)
            await layer.commit()

    async def main(device: Any) -> None:
        async with AsyncCheckpointDevices([device]) as layer:
            await epochs(layer, 100)
            gc.collect()
            before = sys.getallocatedblocks()
            await epochs(layer, 500)
            # Timers that were cancelled are the loop's, which drops them by
            # the hundred.
            gc.collect()
            assert sys.getallocatedblocks() - before < 1000
            await epochs(layer, 1000)
            gc.collect()
            assert sys.getallocatedblocks() - before < 1000

    asyncio.run(main(AtOnce()))
    asyncio.run(main(ReplicaResource(pair.primary)))


def test_what_cannot_block_keeps_the_gil(make_pair):
    """Else a busy thread would take it, and keep it for a switch interval."""
    pair = make_pair([65536])
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            sum(range(100))

    before = sys.getswitchinterval()
    thread = threading.Thread(target=busy)
    with CheckpointDevices([ReplicaResource(pair.primary)]) as layer:
        layer.postsuspend()
        layer.preresume(20)
        thread.start()
        try:
            sys.setswitchinterval(2.0)
            start = time.monotonic()
            layer.commit()
            layer.postsuspend()
            assert time.monotonic() - start < 1.0
            sys.setswitchinterval(before)
            # A wait gives it up: others go on meanwhile.
            layer.preresume(20)
        finally:
            sys.setswitchinterval(before)
            stop.set()
            thread.join()


def test_a_refused_call_changes_nothing_of_the_one_under_way():
    """Not even the tag that the devices after this one are given."""
    devices, _, layer = make(2)
    seen: list[Any] = []
    inside, go_on = threading.Event(), threading.Event()

    def hold(tag: Any) -> int:
        seen.append(tag)
        inside.set()
        assert go_on.wait(20)
        return 1

    def refused() -> None:
        assert inside.wait(20)
        with pytest.raises(PhaseError, match="under way"):
            layer.postsuspend("wrong")
        go_on.set()

    devices[0].postsuspend = hold  # type: ignore[method-assign, assignment]
    for device in devices:
        device.preresume = seen.append  # type: ignore[method-assign, assignment]
    devices[1].postsuspend = seen.append  # type: ignore[method-assign, assignment]
    with layer:
        thread = threading.Thread(target=refused)
        thread.start()
        layer.postsuspend("right")
        thread.join(20)
        layer.preresume(19.0)
    assert seen == ["right", "right", 19.0, 19.0]


def test_a_phase_that_teardown_overtakes_is_a_phase_error():
    """The moment between a call's first look at the session and its use."""
    _, _, layer = make(1)
    layer.setup()
    send, wait, tell = layer._send, layer._wait, layer._tell
    layer.teardown()
    layer._send, layer._wait, layer._tell = send, wait, tell
    for phase in (layer.postsuspend, layer.preresume, layer.commit):
        with pytest.raises(PhaseError):
            phase()
    assert send(ffi.NULL, b"", 0) == -errno.EINVAL
    assert wait(ffi.NULL, 0) == -errno.EINVAL
    assert tell(ffi.NULL) == -errno.EINVAL


class Waiting(Scripted):
    """Its ack comes only when `answer` is set."""

    def __init__(self, name: str) -> None:
        super().__init__(name, [])
        self.answer = threading.Event()
        self.cut = threading.Event()

    def preresume(self, timeout_s: float | None = None) -> None:
        end = time.monotonic() + (20 if timeout_s is None else timeout_s)
        while not self.answer.wait(0.005):
            if self.cut.is_set():
                raise CheckpointCancelled(self.name, errno=errno.ECANCELED)
            if time.monotonic() > end:
                raise CheckpointTimeout(self.name, errno=errno.ETIMEDOUT)

    def cancel(self) -> None:
        self.cut.set()


def test_a_deadline_and_a_cancel_are_one_error_of_all_devices():
    devices = [Waiting(f"d{i}") for i in range(3)]
    layer = CheckpointDevices([Scripted("quick", []), *devices])
    layer.setup()
    try:
        layer.postsuspend()
        with pytest.raises(CheckpointTimeout, match="on 3 devices") as late:
            layer.preresume(0.05)
        assert late.value.phase == "preresume"
        assert late.value.errno == errno.ETIMEDOUT
        assert isinstance(late.value.__cause__, DeviceErrors)
        assert len(late.value.__cause__.errors) == 3
        waits = threading.Timer(0.05, layer.cancel)
        waits.start()
        with pytest.raises(CheckpointCancelled, match="on 3 devices") as cut:
            layer.preresume(19.0)
        waits.join(20)
        assert cut.value.errno == errno.ECANCELED
        for device in devices:
            device.answer.set()
        layer.preresume(19.0)
        layer.commit()
    finally:
        for device in devices:
            device.answer.set()
        layer.teardown()


def test_threads_that_call_at_any_time_get_a_phase_error():
    stop = threading.Event()
    done, wrong = [], []

    def crowd(layer: Any) -> None:
        while not stop.is_set():
            for phase in ("postsuspend", "preresume", "commit"):
                try:
                    getattr(layer, phase)()
                    done.append(phase)
                except (PhaseError, CheckpointCancelled):
                    pass
                except Exception as error:
                    wrong.append(error)

    _, _, layer = make(3)
    layer.setup()
    threads = [threading.Thread(target=crowd, args=(layer,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 20
    while done.count("commit") < 50 and time.monotonic() < end and not wrong:
        time.sleep(0.001)
    layer.cancel()
    layer.teardown()
    stop.set()
    for thread in threads:
        thread.join(20)
    assert not wrong
    assert done.count("commit") >= 50
