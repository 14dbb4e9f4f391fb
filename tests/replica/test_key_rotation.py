# SPDX-License-Identifier: LGPL-2.1-or-later
"""Several keys for one identity, and a key file that is read again."""

from __future__ import annotations

import errno

import pytest

from remus_native import ConfigError, Primary, State
from support.tls_pair import IDENTITY, KEY, Tls, key_file
from support.waiting import until

OLD, NEW = f"{IDENTITY}:{KEY}", f"{IDENTITY}+2:{'22' * 32}"
OTHER = f"guest1:{'33' * 32}"


def is_protected(primary: Primary) -> bool:
    return primary.status().state is State.PROTECTED


def refused(tls: Tls) -> str:
    return " ".join(one.text for one in tls.backup.refusals())


def test_the_side_that_listens_takes_any_of_its_keys(tls: Tls) -> None:
    key_file(tls.folder, "key", OTHER, OLD, NEW)
    tls.backup.reload_keys()
    for lines in ([OLD], [NEW], [OLD, NEW], [NEW, OLD]):
        with tls.primary(psk_file=key_file(tls.folder, "its", *lines)) as primary:
            until(lambda p=primary: is_protected(p))
    assert not tls.backup.refusals()


def test_the_side_that_connects_has_the_last_of_its_keys(tls: Tls) -> None:
    key_file(tls.folder, "key", NEW)
    tls.backup.reload_keys()
    its = key_file(tls.folder, "its", NEW, OLD)
    with tls.primary(psk_file=its) as primary:
        until(lambda: tls.refused("key") > 1)
        assert not primary.status().connected
        text = f"unknown identity {IDENTITY}: this side has the key of {IDENTITY}+2"
        until(lambda: text in refused(tls))
        key_file(tls.folder, "its", OLD, NEW)
        primary.reload_keys()
        until(lambda: is_protected(primary))


def test_the_present_connection_stays(tls: Tls) -> None:
    with tls.primary() as primary:
        until(lambda: is_protected(primary))
        since = primary.status().link_changed_ns
        key_file(tls.folder, "key", NEW)
        tls.backup.reload_keys()
        primary.pwrite("xvda", b"goes on", 0)
        epoch = primary.postsuspend()
        primary.preresume(epoch, 30)
        primary.commit(epoch)
        assert primary.status().link_changed_ns == since


def test_a_key_with_the_same_name_can_be_another(tls: Tls) -> None:
    """No overlap then: who has the old one is refused as with a wrong key."""
    key_file(tls.folder, "key", f"{IDENTITY}:{'44' * 32}")
    tls.backup.reload_keys()
    its = key_file(tls.folder, "its", OLD)
    with tls.primary(psk_file=its) as primary:
        until(lambda: tls.refused("key") > 0)
        text = f"wrong key for the identity {IDENTITY}"
        until(lambda: text in refused(tls))
        key_file(tls.folder, "its", f"{IDENTITY}:{'44' * 32}")
        primary.reload_keys()
        until(lambda: is_protected(primary))


def test_a_key_of_another_resource_counts_for_nothing(tls: Tls) -> None:
    key_file(tls.folder, "key", OLD, OTHER, f"{IDENTITY}2:{'22' * 32}")
    tls.backup.reload_keys()
    for identity in ("guest1", f"{IDENTITY}2"):
        before = tls.refused("key")
        lines = [OTHER, f"{IDENTITY}2:{'22' * 32}"]
        its = key_file(tls.folder, "its", *lines)
        with tls.primary(psk_file=its, psk_identity=identity) as primary:
            until(lambda b=before: tls.refused("key") > b)
            assert not primary.status().connected
            text = f"unknown identity {identity}: "
            until(lambda t=text: t in refused(tls))


@pytest.mark.parametrize(
    ("lines", "number", "text"),
    [
        ([], errno.ENOENT, "no key for the identity guest0"),
        ([OTHER], errno.ENOENT, "no key for the identity guest0"),
        (["nonsense"], errno.EINVAL, "line 1"),
        ([NEW, OLD, NEW], errno.EINVAL, r"line 3: a second key for .* guest0\+2"),
        ([f"{IDENTITY}+{i}:{KEY}" for i in range(9)], errno.EINVAL,
         "line 9: more than 8 keys for one resource"),
    ],
)  # fmt: skip
def test_a_file_that_is_wrong_changes_nothing(
    tls: Tls, lines: list[str], number: int, text: str
) -> None:
    wrong = key_file(tls.folder, "key", *(lines or [""]))
    with pytest.raises((ConfigError, OSError), match=text) as caught:
        tls.backup.reload_keys()
    assert caught.value.errno == number
    wrong.unlink()
    with pytest.raises((ConfigError, OSError)):
        tls.backup.reload_keys()
    its = key_file(tls.folder, "its", OLD)
    with tls.primary(psk_file=its) as primary:
        until(lambda: is_protected(primary))
        its.chmod(0o644)
        with pytest.raises((ConfigError, OSError), match="chmod 0600"):
            primary.reload_keys()
        assert is_protected(primary)


def test_without_keys_there_is_nothing_to_read(make_pair) -> None:
    pair = make_pair()
    pair.primary.reload_keys()
    pair.backup.reload_keys()


def test_keys_are_read_again_while_many_connect(tls: Tls) -> None:
    """Whatever a handshake began with is there until it ends."""
    with tls.primary(psk_file=key_file(tls.folder, "its", OLD)) as primary:
        for i in range(300):
            key_file(tls.folder, "key", *([OLD, NEW] if i % 2 else [NEW, OLD]))
            tls.backup.reload_keys()
            primary.reload_keys()
            if i % 10 == 0:
                tls.connect().close()
        until(lambda: is_protected(primary))
