# SPDX-License-Identifier: LGPL-2.1-or-later
"""A device written in Python: what it raises, wherever, is never a success."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from remus_native import CheckpointDevices

STORM = r"""
import os, signal, sys, threading, time
from remus_native import CheckpointDevices

phase, seconds = sys.argv[1], float(sys.argv[2])


class Device:
    kind = name = "python"
    calls = dict.fromkeys(["postsuspend", "preresume", "commit"], 0)

    def postsuspend(self, tag=None):
        self.calls["postsuspend"] += 1
        return 1

    def preresume(self, timeout_s=None):
        self.calls["preresume"] += 1

    def commit(self):
        self.calls["commit"] += 1


device = Device()
devices = CheckpointDevices([device])
devices.setup()
storm = [False]  # no Event: an interrupt can leave its lock taken


def interrupts():
    while True:
        if not storm[0]:
            time.sleep(0.0001)
            continue
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(30):
            pass


threading.Thread(target=interrupts, daemon=True).start()


def calm(call):
    # Whatever arrives late belongs to the storm, not to this.
    storm[0] = False
    while True:
        try:
            time.sleep(0.001)
            break
        except KeyboardInterrupt:
            continue
    call()


def stormy(call):
    try:
        storm[0] = True
        call()
        ended = "success"
    except KeyboardInterrupt:
        ended = "interrupt"
    except BaseException as error:
        ended = f"{type(error).__name__}: {error}"
    while True:
        try:
            storm[0] = False
            time.sleep(0.001)
            return ended
        except KeyboardInterrupt:
            pass


def again():
    try:
        devices.preresume()
    except Exception:
        pass


found = {}
untrue = 0
end = time.monotonic() + seconds
# On a busy machine no interrupt may have come at the right moment yet.
while time.monotonic() < end or (
    "interrupt" not in found and time.monotonic() < end + 30
):
    if phase != "postsuspend":
        calm(devices.postsuspend)
    if phase == "commit":
        calm(devices.preresume)
    before = device.calls[phase]
    ended = stormy(getattr(devices, phase))
    found[ended] = found.get(ended, 0) + 1
    if ended == "success" and device.calls[phase] == before:
        untrue += 1
    if phase == "postsuspend":
        calm(again)
    if phase == "preresume":
        calm(again)
print(found, file=sys.stderr)
other = sum(n for how, n in found.items() if how not in ("success", "interrupt"))
print("untrue", untrue, "interrupted", "interrupt" in found, "other", other)
sys.stdout.flush()
os._exit(0)
"""


@pytest.mark.parametrize("phase", ["postsuspend", "preresume", "commit"])
def test_an_interrupt_at_a_callbacks_entry_is_no_success(phase):
    out = subprocess.run(
        [sys.executable, "-c", STORM, phase, "3"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    # Never a success without the call, and the interrupt itself arrives.
    assert out.stdout == "untrue 0 interrupted True other 0\n", out.stderr[-2000:]
    assert "From cffi callback" not in out.stderr


class Raising:
    kind = name = "raising"

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def postsuspend(self, tag: Any = None) -> int:
        raise self.error

    def preresume(self, timeout_s: Any = None) -> None:
        raise self.error


class OddErrno(Exception):
    def __init__(self, number: Any) -> None:
        self.errno = number


class BadErrno(Exception):
    @property
    def errno(self) -> int:
        raise RuntimeError("no errno")


@pytest.mark.parametrize(
    "error",
    [
        OSError(1 << 40, "absurd"),
        OSError(-1, "negative"),
        OSError(-(1 << 70), "very negative"),
        OSError(0, "zero"),
        OddErrno(1 << 31),
        OddErrno(True),
        OddErrno("text"),
        OddErrno(errno.EBADFD),
        OddErrno(errno.EINTR),
        KeyboardInterrupt(),
        SystemExit(3),
        GeneratorExit(),
    ],
    ids=repr,
)
def test_whatever_a_device_raises_reaches_the_caller(error):
    devices = CheckpointDevices([Raising(error)])
    devices.setup()
    with pytest.raises(type(error)) as caught:
        devices.postsuspend()
    assert caught.value is error
    devices.teardown()


def test_an_error_that_can_not_be_read_is_one(capfd):
    devices = CheckpointDevices([Raising(BadErrno())])
    devices.setup()
    with pytest.raises(BadErrno):
        devices.postsuspend()
    devices.teardown()
    assert "From cffi" not in capfd.readouterr().err


def test_a_signals_own_exception_at_the_entry_is_delivered():
    class Alarm(Exception):
        pass

    def on_alarm(*_: Any) -> None:
        raise Alarm

    class Device:
        kind = name = "python"

        def postsuspend(self, tag: Any = None) -> int:
            os.kill(os.getpid(), signal.SIGALRM)
            return 1

    before = signal.signal(signal.SIGALRM, on_alarm)
    devices = CheckpointDevices([Device()])
    try:
        devices.setup()
        with pytest.raises(Alarm):
            devices.postsuspend()
        devices.teardown()
    finally:
        signal.signal(signal.SIGALRM, before)


def test_what_cancel_raises_is_delivered_and_every_device_torn_down():
    torn = []

    class Device:
        kind = "python"

        def __init__(self, name: str, error: BaseException | None) -> None:
            self.name = name
            self.error = error
            self.cancelled = threading.Event()

        def postsuspend(self, tag: Any = None) -> int:
            return 1

        def preresume(self, timeout_s: Any = None) -> None:
            self.cancelled.wait(20)

        def cancel(self) -> None:
            self.cancelled.set()
            if self.error is not None:
                raise self.error

        def teardown(self) -> None:
            torn.append(self.name)

    for error in (KeyboardInterrupt(), ValueError("odd")):
        torn.clear()
        devices = CheckpointDevices(
            [Device("a", error), Device("b", None)], event_loop=True
        )
        devices.setup()
        devices.postsuspend()
        devices.preresume_begin()
        time.sleep(0.05)
        with pytest.raises(type(error)):
            devices.teardown()
        assert torn == ["b", "a"]
