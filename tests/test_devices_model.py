# SPDX-License-Identifier: LGPL-2.1-or-later
"""The device layer, synchronous and asyncio, against a model of its rules.

1 to 8 devices fail in every way at every phase.  The model is libxl's layer
(each phase on all devices, then its first error) with its faults mended:
every error is reported, nothing counts as sent or safe that is not, and a
commit never reaches a device for an epoch that another one has not.
"""

from __future__ import annotations

import asyncio
import errno
import threading
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from remus_native._core import ffi, lib

from remus_native import (
    AsyncCheckpointDevices,
    CheckpointDevices,
    CheckpointTimeout,
    DeviceErrors,
    PhaseError,
    ReplicationLost,
    StateError,
)

WAYS = {
    "lost": lambda who: ReplicationLost(f"{who} failed", errno=errno.EPROTO),
    "late": lambda who: CheckpointTimeout(f"{who} failed"),
    "broken": lambda who: StateError(f"{who} failed", errno=errno.EIO),
    "buggy": lambda who: ValueError(f"{who} failed"),
}

EXAMPLES = [way("nobody") for way in WAYS.values()]


class Device:
    """Does what it is told, and writes down what it was asked."""

    kind = "nic"
    timeout_s = 20.0

    def __init__(self, name: str, calls: list[str]) -> None:
        self.name = name
        self.calls = calls
        self.fail: dict[str, str] = {}
        self.number = 0
        self.hang = False
        self.go_on = threading.Event()

    def _do(self, phase: str) -> None:
        self.calls.append(f"{self.name}.{phase}")
        if phase in self.fail:
            raise WAYS[self.fail[phase]](self.name)

    def setup(self) -> None:
        self._do("setup")

    def postsuspend(self, tag: Any = None) -> int:
        self._do("postsuspend")
        self.number += 1
        return self.number

    def preresume(self, timeout_s: float | None = None) -> None:
        hang = self.hang
        self._do("preresume")
        if hang:
            assert self.go_on.wait(20)

    def commit(self) -> None:
        self._do("commit")

    def teardown(self) -> None:
        self.go_on.set()
        self._do("teardown")


class Native(Device):
    """A device whose phases are C functions that do nothing."""

    def _join_group(self, group: Any) -> int:
        return int(
            lib.remus_group_add_device(
                group.raw, self.name.encode(), lib.remus_test_null_ops(), ffi.NULL
            )
        )

    _may_block = False


class Sync:
    """Calls the layer as it is."""

    can_hang = False

    def __init__(self, devices: list[Device]) -> None:
        self.layer: Any = CheckpointDevices(devices)

    def __call__(self, phase: str, *args: Any) -> Any:
        return getattr(self.layer, phase)(*args)

    def close(self) -> None:
        self.layer.teardown()


class Async(Sync):
    """Awaits the layer, on a loop of its own."""

    can_hang = True

    def __init__(self, devices: list[Device]) -> None:
        self.layer = AsyncCheckpointDevices(devices)
        self.loop = asyncio.new_event_loop()

    def __call__(self, phase: str, *args: Any) -> Any:
        return self.loop.run_until_complete(getattr(self.layer, phase)(*args))

    def close(self) -> None:
        self("teardown")
        self.loop.close()


class LayerMachine(RuleBasedStateMachine):
    """The model: a state, and what each device has acked."""

    form: type[Sync] = Sync

    @initialize(kinds=st.lists(st.booleans(), min_size=1, max_size=8))
    def start(self, kinds: list[bool]) -> None:
        self.calls: list[str] = []
        self.devices = [
            (Native if native else Device)(f"d{i}", self.calls)
            for i, native in enumerate(kinds)
        ]
        self.scripted = [
            i for i, device in enumerate(self.devices) if type(device) is Device
        ]
        self.run = self.form(self.devices)
        self.state = "new"
        self.fresh()

    def fresh(self) -> None:
        count = len(self.devices)
        self.sent = 0  # the group's running number
        self.complete = 0  # newest epoch safe on all
        self.acked = [0] * count
        self.pending: set[int] = set()
        self.inside: set[int] = set()  # hanging in a preresume given up

    some = st.dictionaries(st.integers(0, 7), st.sampled_from(sorted(WAYS)))
    failures = st.one_of(st.just({}), st.just({}), some)  # type: ignore[arg-type]

    def arrange(self, phase: str, failing: dict[int, str]) -> dict[int, str]:
        """Only scripted devices can fail, but for setup and teardown."""
        everywhere = phase in ("setup", "teardown")
        failing = {
            i: way
            for i, way in failing.items()
            if i < len(self.devices) and (everywhere or i in self.scripted)
        }
        for i, device in enumerate(self.devices):
            device.fail = {phase: failing[i]} if i in failing else {}
            device.hang = False
        self.calls.clear()
        return failing

    def expect(self, phase: str, failing: dict[int, str], *args: Any) -> Any:
        """Run; the errors must be exactly those of ``failing``."""
        if not failing:
            return self.run(phase, *args)
        kinds = {type(WAYS[way]("")) for way in failing.values()}
        with pytest.raises((DeviceErrors, *map(type, EXAMPLES))) as caught:
            self.run(phase, *args)
        error = caught.value
        if isinstance(error, DeviceErrors):
            assert len(failing) > 1
            assert error.phase == phase
            assert error.__cause__ is error.errors[0]
            found = error.errors
        else:
            found = (error,)
        assert sorted(self.who(each) for each in found) == sorted(
            f"d{i}" for i in failing
        )
        assert kinds <= {type(each) for each in found}
        return None

    @staticmethod
    def who(error: Any) -> str:
        volume = getattr(error, "volume", None)
        return volume or str(error).removesuffix(" failed")

    def called(self, phase: str, which: Any) -> list[str]:
        return [f"d{i}.{phase}" for i in which if i in self.scripted]

    @precondition(lambda self: self.state == "new")
    @rule(failing=failures)
    def setup(self, failing: dict[int, str]) -> None:
        failing = self.arrange("setup", failing)
        if not failing:
            self.run("setup")
            self.state = "ready"
            self.fresh()
            return
        first = min(failing)
        with pytest.raises(Exception, match=f"d{first} failed"):
            self.run("setup")
        torn = [call for call in self.calls if call.endswith("teardown")]
        assert torn == [f"d{i}.teardown" for i in reversed(range(first))]

    @precondition(lambda self: self.state != "new")
    @rule(failing=failures)
    def postsuspend(self, failing: dict[int, str]) -> None:
        failing = self.arrange("postsuspend", failing)
        if self.state == "closed" or self.inside:
            # An answer that can still come is preresume's: nothing is sent.
            with pytest.raises(PhaseError):
                self.run("postsuspend")
            assert not self.calls
            return
        self.sent += 1
        everyone = range(len(self.devices))
        numbers = self.expect("postsuspend", failing)
        if numbers is not None:
            assert len(numbers) == len(self.devices)
            assert [numbers[i] for i in self.scripted] == [
                self.devices[i].number for i in self.scripted
            ]
        assert self.calls == self.called("postsuspend", everyone)
        self.state = "failed" if failing else "closed"
        self.pending = set(everyone) - set(failing)

    @precondition(lambda self: self.state != "new")
    @rule(failing=failures, hanging=st.none() | st.integers(0, 7))
    def preresume(self, failing: dict[int, str], hanging: int | None) -> None:
        failing = self.arrange("preresume", failing)
        if self.state not in ("closed", "unknown"):
            with pytest.raises(PhaseError):
                self.run("preresume", 20)
            assert not self.calls
            return
        asked = self.pending - self.inside
        failing = {i: way for i, way in failing.items() if i in asked}
        for i in list(self.inside):
            # What was given up is waited for further, not asked again.
            self.devices[i].go_on.set()
            self.inside.discard(i)
        limit = 20.0
        able = asked.intersection(self.scripted) - set(failing)
        if self.run.can_hang and hanging in able:
            self.devices[hanging].hang = True
            self.devices[hanging].go_on.clear()
            self.inside.add(hanging)
            failing[hanging] = "late"
            limit = 0.05
        self.expect("preresume", failing, limit)
        assert sorted(self.calls) == sorted(self.called("preresume", asked))
        for i in self.pending - set(failing):
            self.acked[i] = self.sent
        self.pending = set(failing)
        self.state = "unknown" if failing else "ready"
        if not failing:
            self.complete = self.sent

    @precondition(lambda self: self.state != "new")
    @rule(failing=failures)
    def commit(self, failing: dict[int, str]) -> None:
        failing = self.arrange("commit", failing)
        ahead = any(acked > self.complete for acked in self.acked)
        if not self.complete or ahead:
            with pytest.raises(PhaseError):
                self.run("commit")
            assert self.calls == []
            return
        self.expect("commit", failing)
        assert self.calls == self.called("commit", range(len(self.devices)))

    @precondition(lambda self: self.state in ("ready", "failed", "unknown"))
    @rule(
        sends=failures,
        first=some,
        hanging=st.none() | st.integers(0, 7),
        between=st.booleans(),
        second=failures,
        commits=failures,
    )
    def checkpoint(
        self,
        sends: dict[int, str],
        first: dict[int, str],
        hanging: int | None,
        between: bool,
        second: dict[int, str],
        commits: dict[int, str],
    ) -> None:
        """A whole one, which single steps seldom come to by chance."""
        self.postsuspend(sends)
        self.preresume(first, hanging)
        if between:
            self.commit(commits)
        self.preresume(second, None)
        self.commit(commits)

    @precondition(lambda self: self.state != "new")
    @rule(failing=failures)
    def end_session(self, failing: dict[int, str]) -> None:
        failing = self.arrange("teardown", failing)
        for device in self.devices:
            device.go_on.set()
        self.expect("teardown", failing)
        assert self.calls == [f"{d.name}.teardown" for d in reversed(self.devices)]
        self.state = "new"

    def teardown(self) -> None:
        self.arrange("", {})
        for device in self.devices:
            device.go_on.set()
        self.run.close()


class AsyncLayerMachine(LayerMachine):
    form = Async


@pytest.mark.parametrize("machine", [LayerMachine, AsyncLayerMachine])
def test_against_a_model(machine: type[LayerMachine]) -> None:
    run_state_machine_as_test(
        machine, settings=settings(max_examples=60, deadline=None)
    )


@pytest.mark.slow
@pytest.mark.parametrize("machine", [LayerMachine, AsyncLayerMachine])
def test_against_a_model_for_longer(machine: type[LayerMachine]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(max_examples=600, stateful_step_count=80, deadline=None),
    )
