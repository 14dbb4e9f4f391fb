# SPDX-License-Identifier: LGPL-2.1-or-later
"""The device layer, synchronous and asyncio, against a model of its rules.

1 to 8 devices fail in every way at every phase.  The model is libxl's layer
(each phase on all devices, then its first error) with its faults mended:
every error is reported, nothing counts as sent or safe that is not, and a
commit never reaches a device for an epoch that another one has not.  Devices
come through subkinds, of which some say that they don't match.
"""

from __future__ import annotations

import asyncio
import errno
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
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
    CheckpointCancelled,
    CheckpointDevices,
    CheckpointTimeout,
    DeviceErrors,
    DeviceNotSupported,
    PhaseError,
    ReplicationLost,
    StateError,
    Subkind,
)
from remus_native._binding import sized

WAYS = {
    "lost": lambda who: ReplicationLost(f"{who} failed", errno=errno.EPROTO),
    "late": lambda who: CheckpointTimeout(f"{who} failed"),
    "broken": lambda who: StateError(f"{who} failed", errno=errno.EIO),
    "buggy": lambda who: ValueError(f"{who} failed"),
    "cancelled": lambda who: CheckpointCancelled(f"{who} failed"),
}
# How a wait ends on all devices at once: one error, however many there are.
ENDS = {CheckpointTimeout, CheckpointCancelled}

SUBKINDS = 3
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
        self.gate: threading.Event | None = None
        self.caller = threading.get_ident()
        self.taken = False  # the caller itself is in a wait that hangs
        self.inside, self.heard, self.go_on = (threading.Event() for _ in range(3))

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
        hang, gate = self.hang, self.gate
        if gate is not None:
            assert gate.wait(20)
        self._do("preresume")
        if not hang:
            return
        self.taken = threading.get_ident() == self.caller
        self.inside.set()
        if self.taken:
            assert self.heard.wait(20)
            raise WAYS["cancelled"](self.name)
        assert self.go_on.wait(20)  # deaf: a thread of the layer stays here

    def cancel(self) -> None:
        self.heard.set()

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
    """Calls the layer as it is, and takes part in the wait."""

    begins = False

    def __init__(self, found: list[int], subkinds: list[Subkind]) -> None:
        self.sync = CheckpointDevices(found, subkinds=subkinds)
        self.layer: Any = self.sync

    def __call__(self, phase: str, *args: Any) -> Any:
        return getattr(self.layer, phase)(*args)

    def close(self) -> None:
        self.layer.teardown()


class Async(Sync):
    """Awaits the layer, on a loop of its own."""

    begins = True

    def __init__(self, found: list[int], subkinds: list[Subkind]) -> None:
        self.layer = AsyncCheckpointDevices(found, subkinds=subkinds)
        self.sync = self.layer._layer
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
        self.refusing: dict[int, int] = {}  # how many subkinds say "not mine"
        self.offers: list[tuple[int, int]] = []
        subkinds = [
            Subkind(f"s{k}", lambda found, k=k: self.match(k, found))
            for k in range(SUBKINDS)
        ]
        self.run = self.form(list(range(len(kinds))), subkinds)
        self.state = "new"
        self.fresh()

    def match(self, subkind: int, found: int) -> Device:
        self.offers.append((found, subkind))
        if subkind < self.refusing.get(found, 0):
            raise DeviceNotSupported(f"s{subkind} has no d{found}")
        return self.devices[found]

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
            device.gate = None
        self.calls.clear()
        return failing

    def expect(self, phase: str, failing: dict[int, str], *args: Any) -> Any:
        """Run; the errors must be exactly those of ``failing``."""
        if not failing:
            return self.run(phase, *args)
        kinds = {type(WAYS[way]("")) for way in failing.values()}
        with pytest.raises((DeviceErrors, *map(type, EXAMPLES))) as caught:
            self.run(phase, *args)
        error: Any = caught.value
        if kinds <= ENDS and len(failing) > 1 and phase == "preresume":
            assert type(error) in kinds
            error = error.__cause__
        if isinstance(error, DeviceErrors):
            assert len(failing) > 1
            assert error.phase == phase
            assert error.__cause__ is error.errors[0]
            found = error.errors
        else:
            found = (error,)
        who = [self.who(each) for each in found]
        if phase == "preresume":
            who.sort()  # whoever was first
        assert who == [f"d{i}" for i in sorted(failing, reverse=phase == "teardown")]
        assert kinds <= {type(each) for each in found}
        return None

    @staticmethod
    def who(error: Any) -> str:
        volume = getattr(error, "volume", None)
        return volume or str(error).removesuffix(" failed")

    def called(self, phase: str, which: Any) -> list[str]:
        return [f"d{i}.{phase}" for i in which if i in self.scripted]

    @precondition(lambda self: self.state == "new")
    @rule(
        failing=failures,
        refusing=st.dictionaries(
            st.integers(0, 7), st.sampled_from([1, 1, 2, 2, SUBKINDS])
        ),
    )
    def setup(self, failing: dict[int, str], refusing: dict[int, int]) -> None:
        failing = self.arrange("setup", failing)
        self.refusing = refusing
        self.offers.clear()
        everyone = range(len(self.devices))
        nobodys = [i for i in everyone if refusing.get(i, 0) == SUBKINDS]
        first = min([*failing, *nobodys], default=None)
        if first is None:
            self.run("setup")
            self.state = "ready"
            self.fresh()
        elif first in nobodys:
            reasons = "; ".join(f"s{k}: s{k} has no d{first}" for k in range(SUBKINDS))
            with pytest.raises(DeviceNotSupported, match=reasons):
                self.run("setup")
        else:
            with pytest.raises(Exception, match=f"d{first} failed"):
                self.run("setup")
        # In order, to the first that takes it, and to none after an error.
        asked = everyone if first is None else range(first + 1)
        assert self.offers == [
            (i, k) for i in asked for k in range(min(refusing.get(i, 0) + 1, SUBKINDS))
        ]
        torn = [call for call in self.calls if call.endswith("teardown")]
        assert torn == [f"d{i}.teardown" for i in reversed(range(first or 0))]

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
        able = asked.intersection(self.scripted) - set(failing)
        first = min(asked, default=0)
        if hanging in able and (
            self.run.begins or hanging == first or first in self.scripted
        ):
            self.hang(hanging, asked, failing)
        else:
            self.expect("preresume", failing, 20)
        assert sorted(self.calls) == sorted(self.called("preresume", asked))
        for i in self.pending - set(failing):
            self.acked[i] = self.sent
        self.pending = set(failing)
        self.state = "unknown" if failing else "ready"
        if not failing:
            self.complete = self.sent

    def hang(self, who: int, asked: set[int], failing: dict[int, str]) -> None:
        """All answer but one; then the wait is cancelled.

        A caller that waits itself takes the first one, and would go on to
        the others if it did not find that one's gate shut until a thread has
        the device that hangs.
        """
        device, first = self.devices[who], min(asked)
        if not self.run.begins and who != first:
            self.devices[first].gate = device.inside
        device.hang, device.taken = True, False
        for event in (device.inside, device.heard, device.go_on):
            event.clear()
        canceller = threading.Thread(target=self.cancel, args=(device, asked - {who}))
        canceller.start()
        failing[who] = "cancelled"
        self.expect("preresume", failing, 20)
        canceller.join()
        assert device.taken == (not self.run.begins and who == first)
        if not device.taken:
            self.inside.add(who)

    def cancel(self, hanging: Device, others: set[int]) -> None:
        layer = self.run.sync
        assert hanging.inside.wait(20)
        self.until(lambda: all(map(self.answered, others)))
        assert layer.cancel()

    def result(self, i: int) -> Any:
        results = sized("device_result", 8)
        lib.remus_group_results(self.run.sync._group.raw, results, 8)
        return results[i]

    def answered(self, i: int) -> bool:
        result = self.result(i)
        return bool(result.acked or result.error < 0)

    @staticmethod
    def until(condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.0002)

    @precondition(lambda self: self.state != "new" and self.inside)
    @rule()
    def late_answers(self) -> None:
        """With nobody waiting; they count all the same."""
        for i in self.inside:
            self.devices[i].go_on.set()
            self.until(lambda i=i: self.result(i).acked)  # type: ignore[misc]
            self.acked[i] = self.sent
        self.pending -= self.inside
        self.inside.clear()

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
        between=st.sampled_from(
            ["", "commit", "postsuspend", "postsuspend", "late_answers"]
        ),
        second=failures,
        commits=failures,
    )
    def checkpoint(
        self,
        sends: dict[int, str],
        first: dict[int, str],
        hanging: int | None,
        between: str,
        second: dict[int, str],
        commits: dict[int, str],
    ) -> None:
        """A whole one, which single steps seldom come to by chance."""
        self.postsuspend(sends)
        self.preresume(first, hanging)
        if between == "commit":
            self.commit(commits)
        elif between == "postsuspend" and self.inside:
            self.postsuspend(sends)  # refused
        elif between == "late_answers":
            self.late_answers()
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


ANY_SPEED: Any = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}


@pytest.mark.parametrize("machine", [LayerMachine, AsyncLayerMachine])
def test_against_a_model(machine: type[LayerMachine]) -> None:
    run_state_machine_as_test(machine, settings=settings(max_examples=40, **ANY_SPEED))


@pytest.mark.slow
@pytest.mark.parametrize("machine", [LayerMachine, AsyncLayerMachine])
def test_against_a_model_for_longer(machine: type[LayerMachine]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(max_examples=600, stateful_step_count=80, **ANY_SPEED),
    )
