# SPDX-License-Identifier: LGPL-2.1-or-later
"""The dirty map against a plain model, with kills and power losses.

The model keeps, for each block, the newest epoch it was written in.  Whatever
happens, a block that the backup may lack is marked; and the map is never
believed after a power loss unless it was closed cleanly, nor when somebody
else may have written to an image.
"""

from __future__ import annotations

import errno

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

from remus_native._binding import ffi, last_error, lib

BLOCK = lib.REMUS_TEST_DIRTY_BLOCK
SIZES = [70 * BLOCK + 512, 512, 3 * BLOCK, 40_000 * BLOCK]
LOSSES = {
    "lose": lib.REMUS_SIM_LOSE,
    "keep": lib.REMUS_SIM_KEEP,
    "tear": lib.REMUS_SIM_TEAR,
    "reorder": lib.REMUS_SIM_REORDER,
}


class Map:
    """A dirty map on a simulated disk."""

    def __init__(self, sim, sizes=None, generation=1):
        self.sizes = sizes or SIZES
        out = ffi.new("remus_test_dirty **")
        rc = lib.remus_test_dirty_open(
            sim, b"/state", ffi.new("uint64_t[]", self.sizes), len(self.sizes),
            generation, out,
        )  # fmt: skip
        assert rc == 0 or rc < 0
        self.rc = rc
        self.raw = out[0]

    @property
    def valid(self):
        return bool(lib.remus_test_dirty_valid(self.raw))

    def marked(self, volume, block):
        return bool(lib.remus_test_dirty_test(self.raw, volume, block))

    def collect(self, has, epoch):
        """The blocks to send, in the order in which they come."""
        total = lib.remus_test_dirty_collect(self.raw, has, epoch)
        volume, offset, length = (
            ffi.new("unsigned int *"), ffi.new("uint64_t *"), ffi.new("uint64_t *")
        )  # fmt: skip
        blocks = []
        while lib.remus_test_dirty_next(self.raw, 4 * BLOCK, volume, offset, length):
            size = self.sizes[volume[0]]
            assert offset[0] % BLOCK == 0
            assert 0 < length[0] <= 4 * BLOCK
            assert offset[0] + length[0] <= size
            assert length[0] % BLOCK == 0 or offset[0] + length[0] == size
            first = offset[0] // BLOCK
            blocks += [(volume[0], first + i) for i in range(-(-length[0] // BLOCK))]
        assert len(set(blocks)) == len(blocks)
        assert total == len(blocks) * BLOCK
        return blocks


def write_to_image(sim, volume):
    """Somebody else does, while no primary runs."""
    path, byte = f"/images/{volume}".encode(), ffi.new("char *", b"f")
    assert lib.remus_sim_poke(sim, path, byte, 1, 0) == 0


@pytest.fixture
def sim():
    out = ffi.new("remus_sim **")
    assert lib.remus_sim_new(out) == 0
    yield out[0]
    lib.remus_sim_free(out[0])


class DirtyMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        out = ffi.new("remus_sim **")
        assert lib.remus_sim_new(out) == 0
        self.sim = out[0]
        self.epoch = 1
        self.stable = 0
        self.written: dict[tuple[int, int], int] = {}  # block: newest epoch
        self.pins: list[tuple[int, tuple[int, int, int]]] = []
        self.map: Map | None = None
        self.settled = False  # no write since the images' stamps were taken

    @initialize()
    def start(self):
        self.map = Map(self.sim)
        assert self.map.rc == 0 and not self.map.valid
        lib.remus_test_dirty_base(self.map.raw, 0)

    def note(self, volume, at, length, epoch):
        for block in range(at // BLOCK, (at + length - 1) // BLOCK + 1):
            self.written[volume, block] = epoch

    @rule(volume=st.integers(0, 3), at=st.integers(0, 2**40),
          length=st.integers(1, 2**22), whole=st.booleans())  # fmt: skip
    def write(self, volume, at, length, whole):
        """A write from its pin to its place in the queue, in one epoch."""
        at %= SIZES[volume]
        length = SIZES[volume] - at if whole else min(length, SIZES[volume] - at)
        pin = lib.remus_test_dirty_pin(self.map.raw)
        lib.remus_test_dirty_mark(self.map.raw, pin, volume, at, length)
        self.image(volume, done=False)
        self.image(volume, done=True)
        lib.remus_test_dirty_unpin(self.map.raw, pin)
        self.note(volume, at, length, self.epoch)

    def image(self, volume, done):
        assert lib.remus_test_dirty_write(self.map.raw, volume, done) == 0
        self.settled = False

    @rule()
    def settle(self):
        lib.remus_test_dirty_settle(self.map.raw)
        self.settled = self.settled or not self.pins

    @precondition(lambda self: len(self.pins) < 5)
    @rule(volume=st.integers(0, 3), at=st.integers(0, 2**40))
    def begin_write(self, volume, at):
        """The local part of a write, which may take many epochs."""
        at %= SIZES[volume] - 100
        pin = lib.remus_test_dirty_pin(self.map.raw)
        lib.remus_test_dirty_mark(self.map.raw, pin, volume, at, 100)
        self.image(volume, done=False)
        self.pins.append((pin, (volume, at, 100)))

    @precondition(lambda self: self.pins)
    @rule(which=st.integers(0, 4))
    def queue_write(self, which):
        pin, where = self.pins.pop(which % len(self.pins))
        self.image(where[0], done=True)
        lib.remus_test_dirty_mark(self.map.raw, -1, *where)
        lib.remus_test_dirty_unpin(self.map.raw, pin)
        self.note(*where, self.epoch)

    @rule()
    def close_epoch(self):
        lib.remus_test_dirty_roll(self.map.raw, self.epoch)
        self.epoch += 1

    @precondition(lambda self: self.stable < self.epoch - 1)
    @rule(data=st.data(), forget=st.booleans())
    def become_stable(self, data, forget):
        self.stable = data.draw(st.integers(self.stable + 1, self.epoch - 1))
        lib.remus_test_dirty_stable(self.map.raw, self.stable)
        if forget:
            lib.remus_test_dirty_forget(self.map.raw)
        assert lib.remus_test_dirty_forgotten(self.map.raw) <= self.stable

    @rule(ahead=st.integers(0, 3))
    def catch_up(self, ahead):
        """What is collected is all that the backup lacks."""
        has = min(self.stable + ahead, self.epoch - 1)
        blocks = set(self.map.collect(has, self.epoch))
        for block, epoch in self.written.items():
            if epoch > has:
                assert block in blocks
                self.written[block] = self.epoch

    def end(self, clean):
        lib.remus_test_dirty_close(self.map.raw, clean)
        self.map = None

    @rule(foreign=st.sampled_from([None, None, 0, 1, 2, 3]))
    def kill(self, foreign):
        """What is under way is never answered, but perhaps on the disk."""
        for _, where in self.pins:
            self.note(*where, self.epoch)
        self.pins.clear()
        lib.remus_sim_kill(self.sim)
        self.end(0)  # memory only: all is dead
        if foreign is not None:
            write_to_image(self.sim, foreign)
        self.map = Map(self.sim)
        assert self.map.rc == 0, last_error()
        assert self.map.valid == (self.settled and foreign is None)
        if not self.map.valid:
            self.compared()
        assert lib.remus_test_dirty_forgotten(self.map.raw) <= self.stable

    @rule(loss=st.sampled_from(list(LOSSES)), seed=st.integers(0, 2**32))
    def lose_power(self, loss, seed):
        self.pins.clear()
        lib.remus_sim_crash(self.sim, LOSSES[loss], seed)
        self.end(0)
        self.map = Map(self.sim)
        assert self.map.rc == 0, last_error()
        assert not self.map.valid
        self.compared()

    def compared(self):
        assert lib.remus_test_dirty_bytes(self.map.raw) == 0
        self.settled = False
        self.written.clear()
        lib.remus_test_dirty_base(self.map.raw, self.stable)

    @precondition(lambda self: not self.pins)
    @rule(loss=st.sampled_from([*LOSSES, "none"]), seed=st.integers(0, 2**32),
          foreign=st.sampled_from([None, None, 0, 1, 2, 3]))  # fmt: skip
    def close(self, loss, seed, foreign):
        self.end(1)
        if loss != "none":
            lib.remus_sim_crash(self.sim, LOSSES[loss], seed)
        if foreign is not None:
            write_to_image(self.sim, foreign)
        self.map = Map(self.sim)
        assert self.map.rc == 0
        assert self.map.valid == (foreign is None)
        self.settled = True
        if not self.map.valid:
            self.compared()

    def check(self):
        marked = lib.remus_test_dirty_bytes(self.map.raw)
        lacking = [b for b, epoch in self.written.items() if epoch > self.stable]
        for volume, block in lacking:
            assert self.map.marked(volume, block)
        assert marked >= BLOCK * len(lacking)
        limit = sum(-(-size // BLOCK) for size in SIZES)
        assert marked <= BLOCK * limit

    def teardown(self):
        if self.map is not None:
            self.check()
            lib.remus_test_dirty_close(self.map.raw, 0)
        lib.remus_sim_free(self.sim)


def run(examples, steps):
    run_state_machine_as_test(
        DirtyMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_what_the_backup_may_lack_is_marked():
    run(40, 40)


@pytest.mark.slow
def test_what_the_backup_may_lack_is_marked_at_length():
    run(400, 80)


def test_whole_epochs_are_forgotten_and_no_more(sim):
    dirty = Map(sim)
    lib.remus_test_dirty_base(dirty.raw, 0)
    for epoch in range(1, 4):
        lib.remus_test_dirty_mark(dirty.raw, -1, 0, epoch * BLOCK, 1)
        lib.remus_test_dirty_roll(dirty.raw, epoch)
    lib.remus_test_dirty_stable(dirty.raw, 2)
    lib.remus_test_dirty_forget(dirty.raw)
    assert [dirty.marked(0, block) for block in range(1, 4)] == [False, False, True]
    assert lib.remus_test_dirty_forgotten(dirty.raw) == 2
    lib.remus_test_dirty_close(dirty.raw, 0)


def test_a_set_under_a_write_is_kept(sim):
    dirty = Map(sim)
    lib.remus_test_dirty_base(dirty.raw, 0)
    pin = lib.remus_test_dirty_pin(dirty.raw)
    lib.remus_test_dirty_mark(dirty.raw, pin, 0, 5 * BLOCK, 1)
    lib.remus_test_dirty_roll(dirty.raw, 1)
    lib.remus_test_dirty_stable(dirty.raw, 1)
    lib.remus_test_dirty_forget(dirty.raw)
    assert dirty.marked(0, 5)
    lib.remus_test_dirty_unpin(dirty.raw, pin)
    lib.remus_test_dirty_forget(dirty.raw)
    assert not dirty.marked(0, 5)
    lib.remus_test_dirty_close(dirty.raw, 0)


@pytest.mark.parametrize(
    "other",
    [
        {"sizes": [*SIZES[:3], SIZES[3] + BLOCK]},
        {"sizes": SIZES[:3]},
        {"sizes": [SIZES[1], SIZES[0], *SIZES[2:]]},
        {"generation": 2},
    ],
)
def test_a_map_of_something_else_is_not_believed(sim, other):
    dirty = Map(sim)
    lib.remus_test_dirty_base(dirty.raw, 0)
    lib.remus_test_dirty_mark(dirty.raw, -1, 0, 0, BLOCK)
    lib.remus_test_dirty_close(dirty.raw, 1)
    dirty = Map(sim, **other)
    assert dirty.rc == 0 and not dirty.valid
    assert lib.remus_test_dirty_bytes(dirty.raw) == 0
    lib.remus_test_dirty_close(dirty.raw, 0)


def test_every_damaged_byte_of_the_header_is_noticed(sim):
    dirty = Map(sim)
    lib.remus_test_dirty_base(dirty.raw, 7)
    lib.remus_test_dirty_close(dirty.raw, 1)
    lib.remus_sim_crash(sim, lib.REMUS_SIM_LOSE, 0)
    for at in [*range(608 + 512), *range(2144, 2144 + 64)]:
        out = ffi.new("remus_sim **")
        assert lib.remus_sim_clone(sim, out) == 0
        byte = ffi.new("unsigned char *")
        assert lib.remus_sim_read(out[0], b"/state/dirty.map", byte, 1, at) == 0
        byte[0] ^= 0x40
        assert lib.remus_sim_poke(out[0], b"/state/dirty.map", byte, 1, at) == 0
        dirty = Map(out[0])
        assert dirty.rc == 0 and not dirty.valid, at
        lib.remus_test_dirty_close(dirty.raw, 0)
        lib.remus_sim_free(out[0])


@pytest.mark.parametrize("at", [4096 + 9, 4096 + 15, 4096 + 17, 4096 + 30])
def test_a_mark_of_no_block_is_not_believed(sim, at):
    """A catch-up once went round for ever at such a bit."""
    dirty = Map(sim)
    lib.remus_test_dirty_base(dirty.raw, 0)
    lib.remus_test_dirty_mark(dirty.raw, -1, 0, 0, BLOCK)
    lib.remus_test_dirty_close(dirty.raw, 1)
    byte = ffi.new("unsigned char *", 0x80)
    assert lib.remus_sim_poke(sim, b"/state/dirty.map", byte, 1, at) == 0
    dirty = Map(sim)
    assert dirty.rc == 0 and not dirty.valid
    assert len(dirty.collect(0, 1)) <= 1
    lib.remus_test_dirty_close(dirty.raw, 0)


@pytest.mark.parametrize("loss", list(LOSSES))
def test_power_lost_after_every_operation(sim, loss):
    """Open, mark, forget, close cleanly, open: stopped after each operation."""
    k = 0
    while True:
        out = ffi.new("remus_sim **")
        assert lib.remus_sim_clone(sim, out) == 0
        world = out[0]
        lib.remus_sim_stop_after(world, k)
        start = lib.remus_sim_ops(world)
        dirty = Map(world)
        if dirty.rc == 0:
            lib.remus_test_dirty_base(dirty.raw, 3)
            lib.remus_test_dirty_mark(dirty.raw, -1, 3, 77 * BLOCK, 9)
            lib.remus_test_dirty_close(dirty.raw, 1)
        done = lib.remus_sim_ops(world) - start < k
        lib.remus_sim_crash(world, LOSSES[loss], k)
        dirty = Map(world)
        assert dirty.rc == 0, last_error()
        if dirty.valid:
            assert dirty.marked(3, 77)
            assert lib.remus_test_dirty_forgotten(dirty.raw) == 3
        assert dirty.valid or not done
        lib.remus_test_dirty_close(dirty.raw, 0)
        lib.remus_sim_free(world)
        if done:
            return
        k += 1


def test_no_room_is_an_error_at_the_start(sim):
    """Whichever operation meets it, nothing is believed that was not written."""
    texts = set()
    for k in range(100):
        out = ffi.new("remus_sim **")
        assert lib.remus_sim_clone(sim, out) == 0
        lib.remus_sim_fail_after(out[0], k, errno.ENOSPC)
        dirty = Map(out[0])
        if lib.remus_sim_failed_op(out[0]) == ffi.NULL:
            break
        if dirty.rc == 0:
            assert not dirty.valid
            lib.remus_test_dirty_close(dirty.raw, 0)
        else:
            assert dirty.rc == -errno.ENOSPC
            texts.add(last_error())
        lib.remus_sim_free(out[0])
    assert any(text.startswith("dirty map /run/") for text in texts)
    assert any(text.startswith("remove /state/dirty.map") for text in texts)


def test_a_doubt_during_a_comparison_is_kept(sim):
    """A disk that fails a sync between the last answer and the new base."""
    dirty = Map(sim)
    lib.remus_test_dirty_base(dirty.raw, 1)
    lib.remus_test_dirty_renew(dirty.raw)
    assert not dirty.valid
    lib.remus_test_dirty_doubt(dirty.raw)
    lib.remus_test_dirty_base(dirty.raw, 2)
    assert not dirty.valid
    lib.remus_test_dirty_renew(dirty.raw)
    lib.remus_test_dirty_base(dirty.raw, 2)
    assert dirty.valid
    lib.remus_test_dirty_close(dirty.raw, 0)
