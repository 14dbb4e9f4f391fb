# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whose journal a directory is."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from remus_native import (
    Backup,
    StateError,
    Volume,
)

# ---- whose journal ---------------------------------------------------------------


def backup_at(folder: Path, name: str, journal: Path) -> Backup:
    (folder / name).mkdir(exist_ok=True)
    image = folder / f"{name}.img"
    if not image.exists():
        image.write_bytes(bytes(65536))
    return Backup(
        name,
        state_dir=folder / name,
        journal_dir=journal,
        volumes=[Volume("xvda", image)],
        journal_bytes=1 << 20,
        segment_bytes=65536,
    )


def test_two_resources_cannot_share_a_journal(tmp_path):
    journal = tmp_path / "journal"
    with backup_at(tmp_path, "one", journal):
        with pytest.raises(StateError, match="in use by another") as caught:
            backup_at(tmp_path, "two", journal)
        assert caught.value.errno == errno.EBUSY
    with pytest.raises(StateError, match="another state directory") as caught:
        backup_at(tmp_path, "two", journal)
    assert caught.value.errno == errno.EEXIST
    backup_at(tmp_path, "one", journal).close()
    # Nor if the second has a state of its own, made elsewhere.
    backup_at(tmp_path, "two", tmp_path / "elsewhere").close()
    with pytest.raises(StateError, match="another's is"):
        backup_at(tmp_path, "two", journal)


def test_a_journal_that_is_gone_is_not_made_anew(tmp_path):
    journal = tmp_path / "journal"
    backup_at(tmp_path, "one", journal).close()
    journal.rename(tmp_path / "aside")
    with pytest.raises(StateError, match="is not in") as caught:
        backup_at(tmp_path, "one", journal)
    assert caught.value.errno == errno.ENOENT
    assert not journal.exists()
    journal.mkdir()  # where nothing is mounted today
    with pytest.raises(StateError, match="mount or move it"):
        backup_at(tmp_path, "one", journal)
    assert not list(journal.iterdir())
    journal.rmdir()
    (tmp_path / "aside").rename(journal)
    (journal / "segment.0003").rename(tmp_path / "segment")
    with pytest.raises(StateError, match=r"segment\.0003 is gone"):
        backup_at(tmp_path, "one", journal)
    (tmp_path / "segment").rename(journal / "segment.0003")
    backup_at(tmp_path, "one", journal).close()
