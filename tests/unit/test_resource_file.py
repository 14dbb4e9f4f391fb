# SPDX-License-Identifier: LGPL-2.1-or-later
"""The resource file: what is taken, and how the rest is refused."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remus_native import ConfigError, Node
from remus_native.cli._process import warn_of_loopback
from remus_native.resource_file import (
    Limits,
    ResourceFileError,
    load,
    parse,
    parse_duration_ms,
    parse_size,
)
from support.paths import ROOT

BASE = """\
name = "guest0"
address = "unix:/run/remus/guest0.sock"
{top}
[primary]
state = "/srv/p"
{primary}
[backup]
state = "/srv/b"
{backup}
[limits]
{limits}
[[volume]]
name = "root"
size = "8MiB"
primary = "/img/p0"
backup = "/img/b0"
{volume}
{rest}
"""
SECOND = '[[volume]]\nname = "data"\nprimary = "/img/p1"\nbackup = "/img/b1"\n'


def text(**parts: str) -> str:
    names = ("top", "primary", "backup", "limits", "volume", "rest")
    return BASE.format(**{name: parts.get(name, "") for name in names})


def problems(source: str) -> tuple[str, ...]:
    with pytest.raises(ResourceFileError) as caught:
        parse(source, file="guest0.toml")
    found = caught.value.problems
    form = re.compile(r"guest0\.toml: \S+: expected .+, got .+; fix: .+")
    for line in found:
        assert form.fullmatch(line) or "not TOML" in line, line
    return found


def problem(source: str) -> str:
    found = problems(source)
    assert len(found) == 1, found
    return found[0]


# ---- what is taken -----------------------------------------------------------


def test_defaults() -> None:
    resource = parse(text())
    assert resource.name == "guest0"
    assert (resource.ack, resource.commit_by) == ("durable", "primary")
    assert resource.tls is None and resource.same_host is True
    assert resource.primary.mount == "/srv/p/mount"
    assert resource.backup.journal == "/srv/b/journal"
    assert resource.limits == Limits(512 << 20, 16 << 20, 64 << 20, 200, 3000, 10_000)
    assert (resource.limits.idle_ms, resource.limits.grace_ms) == (1000, 60_000)
    assert resource.limits.resync_rate == 0
    assert resource.allow_inconsistent is False
    (volume,) = resource.volumes
    assert volume.size == 8 << 20
    assert resource.nodes() == [Node(0, 0, 0o600)]
    assert resource.state("backup") == "/srv/b"
    assert resource.volumes_of("backup")[0].path == "/img/b0"


def test_every_key() -> None:
    resource = parse(
        text(
            top='tls = "off"\nack = "memory"\ncommit_by = "backup"\nsame_host = false\n'
            "allow_inconsistent = true",
            primary='mount = "/run/m"',
            backup='journal = "/fast/j"',
            limits='journal = "1GiB"\nsegment = 65536\nqueue = "4MiB"\n'
            'max_pause = "0.5s"\nloss = "1min"\nstall = "1500ms"\n'
            'idle_interval = "250ms"\nsession_grace = "5s"\nresync_rate = "50MiB"',
            volume='owner = 107\ngroup = "root"\nmode = "0660"',
            rest=SECOND,
        )
    )
    assert (resource.tls, resource.ack, resource.commit_by) == (
        "off",
        "memory",
        "backup",
    )
    assert resource.primary.mount == "/run/m"
    assert resource.backup.journal == "/fast/j"
    assert resource.limits == Limits(
        1 << 30, 65536, 4 << 20, 500, 60_000, 1500, 250, 5000, 50 << 20
    )  # fmt: skip
    assert resource.allow_inconsistent is True
    assert resource.nodes() == [Node(107, 0, 0o660), Node(0, 0, 0o600)]
    assert resource.volumes[1].size is None


def test_the_example_is_right() -> None:
    resource = load(ROOT / "docs" / "example.toml")
    assert [volume.name for volume in resource.volumes] == ["root", "data"]
    assert resource.limits == Limits()


def test_the_documented_file_is_right() -> None:
    page = (ROOT / "docs" / "resource-file.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```toml\n(.*?)```", page, flags=re.DOTALL)
    assert parse(example).volumes[0].size == 8 << 30


def test_every_key_is_documented() -> None:
    from remus_native.resource_file._values import KNOWN

    page = (ROOT / "docs" / "resource-file.md").read_text(encoding="utf-8")
    example = (ROOT / "docs" / "example.toml").read_text(encoding="utf-8")
    for kind, keys in KNOWN.items():
        tables = [f"[{kind}]"] if kind else []
        for key in {*keys, *tables} - set(KNOWN):
            assert f"`{key}`" in page or key in page, key
            assert key in example, key


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost", "192.0.2.7"])
def test_tcp_without_tls_where_it_is_said(host: str) -> None:
    source = text(top='tls = "off"').replace(
        "unix:/run/remus/guest0.sock", f"tcp:{host}:7790"
    )
    assert parse(source).address == f"tcp:{host}:7790"


def over_tcp(top: str) -> str:
    return text(top=f'tls = "off"\n{top}').replace(
        "unix:/run/remus/guest0.sock", "tcp:backup:7790"
    )


def test_where_a_backup_listens() -> None:
    assert parse(over_tcp("")).listens == "tcp:backup:7790"
    resource = parse(
        over_tcp(
            'listen = "tcp:[::]:7790"\naddress_swapped = "tcp:primary:7791"\n'
            'listen_swapped = "tcp:0.0.0.0:7791"'
        )
    )
    assert resource.listens == resource.backup_config().address == "tcp:[::]:7790"
    assert resource.primary_config().address == "tcp:backup:7790"
    assert resource.swapped().listens == "tcp:0.0.0.0:7791"
    assert resource.swapped().swapped() == resource


@pytest.mark.parametrize(
    ("source", "key"),
    [
        (text(top='listen = "tcp:0.0.0.0:7790"'), "listen"),
        (over_tcp('listen = "unix:/run/x"'), "listen"),
        (over_tcp('listen_swapped = "tcp:0.0.0.0:7790"'), "listen_swapped"),
    ],
)
def test_listening_apart_is_for_tcp(source: str, key: str) -> None:
    [problem] = problems(source)
    assert f": {key}: expected tcp:HOST:PORT, beside a tcp: address" in problem


@pytest.mark.parametrize(
    ("host", "same_host", "warns"),
    [
        ("127.0.1.1", "false", True),
        ("localhost", "false", True),
        ("[::1]", "false", True),
        ("127.0.1.1", "true", False),
        ("0.0.0.0", "false", False),
        ("[::]", "false", False),
        ("192.0.2.7", "false", False),
        ("no-such-host.invalid", "false", False),
    ],
)
def test_a_backup_that_only_its_own_host_can_reach_is_warned(
    host: str, same_host: str, warns: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    warn_of_loopback(
        parse(over_tcp(f'same_host = {same_host}\nlisten = "tcp:{host}:7790"'))
    )
    said = capsys.readouterr().err
    assert ("which only this host can connect to" in said) == warns
    assert warns or not said


# ---- values ---------------------------------------------------------------------


@given(st.integers(1, 1 << 50), st.sampled_from(["", "B", "KiB", "MiB", "GiB", "TiB"]))
def test_sizes(number: int, unit: str) -> None:
    powers = {"": 0, "B": 0, "KiB": 1, "MiB": 2, "GiB": 3, "TiB": 4}
    assert parse_size(f"{number}{unit}") == number * 1024 ** powers[unit]
    assert parse_size(number) == number


@given(st.integers(1, 1 << 32))
def test_durations(ms: int) -> None:
    assert parse_duration_ms(f"{ms}ms") == ms
    assert parse_duration_ms(f"{ms // 1000}.{ms % 1000:03}s") == ms


@pytest.mark.parametrize("value", ["8GB", "8 G", "-1MiB", "", "1.5GiB", 0, -4, True])
def test_no_sizes(value: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        parse_size(value)


@pytest.mark.parametrize("value", ["50", 50, "", "0ms", "0.5ms", "-1s", "3 h", None])
def test_no_durations(value: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        parse_duration_ms(value)


# ---- what is refused, by key ----------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "key", "words"),
    [
        ({"top": "ack = 'sometimes'"}, "ack", '"durable", "memory", got "sometimes"'),
        ({"top": "ack = ['durable']"}, "ack", "one of"),
        ({"top": "commit_by = 'both'"}, "commit_by", '"primary", "backup"'),
        ({"top": "same_host = 'no'"}, "same_host", "true or false"),
        ({"top": "tls = 'on'"}, "tls", '"psk", "off", got "on"'),
        ({"top": "tls = 'psk'"}, "psk_file", "psktool -u guest0 -p FILE"),
        ({"top": "psk_file = '/k'"}, "psk_file", 'tls = "psk" beside it, got no tls'),
        (
            {"top": "tls = 'off'\npsk_file = '/k'"},
            "psk_file",
            'got tls = "off"; fix: say tls = "psk", or remove psk_file',
        ),
        ({"top": "psk_identity = 'x'"}, "psk_identity", 'tls = "psk" beside it'),
        (
            {"top": "tls = 'psk'\npsk_file = 'k'"},
            "psk_file",
            "an absolute path",
        ),
        (
            {"top": "tls = 'psk'\npsk_file = '/k'\npsk_identity = ''"},
            "psk_identity",
            "1 to 128 bytes",
        ),
        ({"top": "akc = 'durable'"}, "akc", "did you mean ack?"),
        ({"top": "queue = '1MiB'"}, "queue", "queue belongs in [limits]"),
        ({"top": "state = '/x'"}, "state", "[primary] or [backup]"),
        ({"top": "colour = 3"}, "colour", "fix: remove it"),
        ({"primary": "mount = 'mnt'"}, "primary.mount", "an absolute path"),
        (
            {"primary": "jurnal = '/j'"},
            "primary.jurnal",
            "did you mean journal",
        ),
        ({"backup": "journal = 3"}, "backup.journal", "an absolute path, got 3"),
        ({"backup": "mout = '/m'"}, "backup.mout", "did you mean mount"),
        ({"limits": "loss = 3"}, "limits.loss", '"200ms" or "3s", got 3'),
        ({"limits": "loss = '300ms'"}, "limits.loss", "at least 1000 ms"),
        ({"limits": "queue = '8GiB'"}, "limits.queue", "4194304 to 1073741824"),
        ({"limits": "segment = 5000000"}, "limits.segment", "multiple of 4096"),
        ({"limits": "journal = '32MiB'"}, "limits.journal", "4 to 65536 segments"),
        ({"limits": "max_pause = '50days'"}, "limits.max_pause", "ms, s or min"),
        ({"volume": "mode = 600"}, "volume[0].mode", "octal digits, in quotes"),
        ({"volume": "mode = '0888'"}, "volume[0].mode", "permission bits"),
        ({"volume": "mode = '0000'"}, "volume[0].mode", "other than 0"),
        ({"volume": "owner = true"}, "volume[0].owner", "a name or a number"),
        ({"volume": "sise = 3"}, "volume[0].sise", "did you mean size?"),
        ({"volume": "path = '/x'"}, "volume[0].path", "unknown key path"),
    ],
)
def test_a_bad_value(parts: dict[str, str], key: str, words: str) -> None:
    line = problem(text(**parts))
    assert line.startswith(f"guest0.toml: {key}: ")
    assert words in line


@pytest.mark.parametrize(
    ("old", "new", "key", "words"),
    [
        ('name = "guest0"', "", "name", "got nothing; fix: add name"),
        ('name = "guest0"', 'name = "a b"', "name", "1 to 63 characters"),
        ('name = "guest0"', 'name = ".."', "name", "1 to 63 characters"),
        ('state = "/srv/b"', "", "backup.state", "add state"),
        ('name = "root"', 'name = "status"', "volume[0].name", "other than status"),
        ('size = "8MiB"', 'size = "8MB"', "volume[0].size", "KiB, MiB, GiB or TiB"),
        ('size = "8MiB"', "size = 1000", "volume[0].size", "write 1024"),
        ('size = "8MiB"', "size = 8.5", "volume[0].size", "a size"),
        ('primary = "/img/p0"', "", "volume[0].primary", "an absolute path"),
        ("unix:/run/remus/guest0.sock", "unix:x", "address", "an absolute path"),
        ("unix:/run/remus/guest0.sock", "host:1", "address", "unix:/path"),
        ("unix:/run/remus/guest0.sock", "tcp:1", "address", "tcp:HOST:PORT"),
        ("unix:/run/remus/guest0.sock", "tcp:h:0", "address", "tcp:HOST:PORT"),
        ("unix:/run/remus/guest0.sock", "unix:/" + 107 * "x", "address", "107 bytes"),
        ("unix:/run/remus/guest0.sock", "tcp:127.0.0.1:1", "address", 'tls = "off"'),
        ("unix:/run/remus/guest0.sock", "tcp:10.0.0.2:1", "address", 'tls = "psk"'),
        ("[limits]", "limits = 3\n[x]", "x", "unknown key x"),
    ],
)
def test_a_bad_or_missing_value(old: str, new: str, key: str, words: str) -> None:
    source = text()
    assert old in source
    line = problems(source.replace(old, new, 1))[0]
    assert line.startswith(f"guest0.toml: {key}: ")
    assert words in line


def test_another_host_needs_tls_or_the_word_off() -> None:
    source = text().replace("unix:/run/remus/guest0.sock", "tcp:192.0.2.7:7790")
    line = problem(source)
    assert "without authentication" in line and "a psk_file" in line
    off = parse(source.replace("address", 'tls = "off"\naddress', 1))
    assert (off.tls, off.psk_file) == ("off", None)
    psk = 'tls = "psk"\npsk_file = "/etc/remus/k"\npsk_identity = "alice"\naddress'
    resource = parse(source.replace("address", psk, 1))
    assert resource.tls == "psk"
    assert (resource.psk_file, resource.psk_identity) == ("/etc/remus/k", "alice")


def test_volumes_must_be_there_and_be_tables() -> None:
    head = text().split("[[volume]]")[0]
    assert "1 to 64 tables [[volume]], got 0" in problem(head)
    assert "write [[volume]]" in problem(head + "[volume]\nname = 'x'\n")


def test_two_volumes_of_one_name() -> None:
    line = problem(text(rest=SECOND.replace('"data"', '"root"')))
    assert line.startswith("guest0.toml: volume[1].name: expected a name of its own")


def test_all_problems_at_once() -> None:
    source = text(top="ack = 1\nx = 2", limits="loss = 3").replace('"8MiB"', '"8"x')
    assert "not TOML" in problem(source)
    found = problems(text(top="ack = 1\nx = 2", limits="loss = 3"))
    assert len(found) == 3
    with pytest.raises(ConfigError, match=r"and 2 more") as caught:
        parse(text(top="ack = 1\nx = 2", limits="loss = 3"), file="g")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ResourceFileError, match="cannot be read"):
        load(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b"name = '\xe4'")
    with pytest.raises(ResourceFileError, match="not UTF-8"):
        load(tmp_path / "latin.toml")


@given(st.text(max_size=200))
def test_any_text_is_taken_or_refused(source: str) -> None:
    with pytest.raises(ResourceFileError):
        parse(source)


# ---- overlapping paths ------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "key", "words"),
    [
        ("/img/p1", "/img/p0", "volume[1].primary", "a disk of its own"),
        ("/img/b1", "/img/b0", "volume[1].backup", "a disk of its own"),
        ("/img/b0", "/img/p0", "volume[0].backup", "same_host = false"),
        ("/img/p1", "/img/../img/p0", "volume[1].primary", "a disk of its own"),
        ("/img/b1", "/srv/b/x", "volume[1].backup", "outside backup.state"),
        ("/img/b1", "/srv/p/x", "volume[1].backup", "outside primary.state"),
        ("/img/p1", "/srv/p/mount/root", "volume[1].primary", "outside primary"),
        ('"/srv/b"', '"/srv/p"', "backup.state", "a path of its own"),
        ('"/srv/b"', '"/srv/p/b"', "backup.state", "outside primary.state"),
        ('"/srv/b"', '"/"', "backup.state", "not around primary.state"),
        ("/run/remus/guest0.sock", "/img/p0", "volume[0].primary", "its own"),
        ("/run/remus/guest0.sock", "/srv/p/control.sock", "address", "outside"),
        ("/run/remus/guest0.sock", "/srv/p/mount/s", "address", "outside primary"),
    ],
)
def test_overlaps(old: str, new: str, key: str, words: str) -> None:
    source = text(rest=SECOND)
    assert old in source
    line = problems(source.replace(old, new, 1))[0]
    assert line.startswith(f"guest0.toml: {key}: ")
    assert words in line


def test_two_hosts_may_have_equal_paths() -> None:
    source = text(rest=SECOND).replace("/img/b", "/img/p").replace("/srv/b", "/srv/p")
    problems(source)
    parse("same_host = false\n" + source)
    line = problem("same_host = false\n" + source.replace("/img/p1", "/img/p0", 1))
    assert "volume[1].primary" in line


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_one_file_under_two_names(
    tmp_path: Path, link: Callable[[Path, Path], None]
) -> None:
    (tmp_path / "a").touch()
    link(tmp_path / "a", tmp_path / "b")
    source = text(rest=SECOND).replace("/img/p0", f"{tmp_path}/a")
    source = source.replace("/img/b1", f"{tmp_path}/b")
    assert "volume[1].backup: expected a disk of its own" in problem(source)


def test_a_state_directory_under_two_names(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to(tmp_path / "a")
    source = (
        text().replace("/srv/p", f"{tmp_path}/a").replace("/srv/b", f"{tmp_path}/b")
    )
    assert "backup.state: expected a path of its own" in problems(source)[0]


# ---- the disks of one side ---------------------------------------------------------


def on_disk(tmp_path: Path, *, size: str = 'size = "8MiB"') -> str:
    source = text(rest=SECOND).replace('size = "8MiB"', size)
    for old in ("/img", "/srv"):
        source = source.replace(old, str(tmp_path))
    return source


def image(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


def refused(source: str, side: str, **options: bool) -> tuple[str, ...]:
    resource = parse(source, file="guest0.toml")
    with pytest.raises(ResourceFileError) as caught:
        resource.check(side, **options)  # type: ignore[arg-type]
    return caught.value.problems


def test_sizes_that_agree(tmp_path: Path) -> None:
    for name in ("p0", "p1", "b0", "b1"):
        image(tmp_path / name, 8 << 20)
    resource = parse(on_disk(tmp_path))
    resource.check("primary")
    resource.check("backup")


def test_missing_disks(tmp_path: Path) -> None:
    first, second = refused(on_disk(tmp_path), "backup")
    assert "volume[0].backup" in first and f"truncate -s 8388608 {tmp_path}/b0" in first
    assert "--create" in first and "volume[1].backup" in second
    first, _ = refused(on_disk(tmp_path), "primary")
    assert "--create" not in first


def test_a_size_other_than_configured(tmp_path: Path) -> None:
    for name in ("p0", "p1"):
        image(tmp_path / name, 4 << 20)
    (line,) = refused(on_disk(tmp_path), "primary")
    assert "volume[0].size: expected 8388608 bytes (configured)" in line
    assert "got 4194304 bytes" in line


def test_sides_of_different_sizes(tmp_path: Path) -> None:
    for name, size in (("p0", 8), ("p1", 8), ("b0", 8), ("b1", 4)):
        image(tmp_path / name, size << 20)
    source = on_disk(tmp_path)
    for side in ("primary", "backup"):
        (line,) = refused(source, side)
        assert "volume[1].size" in line and "both sides must have the same" in line
    parse("same_host = false\n" + source).check("primary")


def test_what_is_no_disk(tmp_path: Path) -> None:
    (tmp_path / "p0").mkdir()
    image(tmp_path / "p1", 1000)
    first, second = refused(on_disk(tmp_path), "primary")
    assert "a regular file or block device" in first
    assert "a multiple of 512 bytes, got 1000 bytes" in second


def test_create(tmp_path: Path) -> None:
    image(tmp_path / "p0", 8 << 20)
    image(tmp_path / "p1", 6 << 20)
    (tmp_path / "b0").write_bytes(b"x" * (8 << 20))
    resource = parse(on_disk(tmp_path))
    resource.check("backup", create=True)
    assert (tmp_path / "b0").read_bytes() == b"x" * (8 << 20)
    made = (tmp_path / "b1").stat()
    assert made.st_size == 6 << 20 and made.st_mode & 0o777 == 0o600
    assert made.st_blocks == 0


def test_create_needs_a_size(tmp_path: Path) -> None:
    lines = refused(on_disk(tmp_path), "backup", create=True)
    assert len(lines) == 1 and "volume[1].size: expected a size" in lines[0]
    assert not (tmp_path / "b0").exists()  # all or nothing


def test_create_never_follows_a_dead_link(tmp_path: Path) -> None:
    image(tmp_path / "p1", 1 << 20)
    (tmp_path / "b0").symlink_to(tmp_path / "elsewhere")
    (line,) = refused(on_disk(tmp_path), "backup", create=True)
    assert "volume[0].backup" in line and not (tmp_path / "elsewhere").exists()


def test_unknown_owners() -> None:
    source = text(volume='owner = "no-such-user"\ngroup = "no-such-group"')
    with pytest.raises(ResourceFileError) as caught:
        parse(source).nodes()
    first, second = caught.value.problems
    assert 'volume[0].owner: expected a user of this host, got "no-such-user"' in first
    assert "volume[0].group: expected a group" in second


# ---- fences and nodes on the backup's host ------------------------------------------


def tcp(source: str) -> str:
    return source.replace(
        '"unix:/run/remus/guest0.sock"', '"tcp:192.0.2.7:7790"\ntls = "off"'
    )


def test_a_fence() -> None:
    assert parse(text()).fence is None
    assert parse(text(top='fence = "none"')).fence == ()
    command = 'fence = ["/sbin/fence", "a b", ""]'
    assert parse(text(top=command)).fence == ("/sbin/fence", "a b", "")


@pytest.mark.parametrize(
    "value", ['""', '"fence"', '"/sbin/fence"', "[]", '["fence"]', '["/f", 1]', "true"]
)
def test_what_is_no_fence(value: str) -> None:
    said = problem(text(top=f"fence = {value}"))
    assert said.startswith("guest0.toml: fence: expected a list of texts that begins")


def test_auto_promote_wants_a_fence_and_nodes() -> None:
    found = problems(text(top="auto_promote = true"))
    assert [line.split(": ")[1] for line in found] == ["fence", "backup.mount"]
    assert "a command" in found[0]
    top, mount = 'auto_promote = true\nfence = "none"', 'mount = "/run/g"'
    assert "backup.mount" in problem(text(top=top))
    assert "fence" in problem(text(top="auto_promote = true", backup=mount))
    assert parse(text(top=top, backup=mount)).auto_promote


def test_nodes_on_the_backups_host_want_a_way_back() -> None:
    """It is the primary once it is promoted: to whom does it send then?"""
    mount = 'mount = "/run/g"'
    assert "address_swapped" in problem(tcp(text(backup=mount)))
    other = 'address_swapped = "tcp:192.0.2.6:7790"'
    resource = parse(tcp(text(top=other, backup=mount)))
    assert resource.swapped().address == "tcp:192.0.2.6:7790"
    assert resource.swapped().swapped() == resource
    assert parse(tcp(text())).address_swapped is None  # without nodes it may wait


def test_the_hosts_have_names():
    text = (ROOT / "docs" / "example.toml").read_text()
    resource = parse(text)
    assert (resource.host("primary"), resource.host("backup")) == ("alpha", "beta")
    assert resource.swapped().host("primary") == "beta"
    for wrong, said in (
        ('host = "beta"', ""),
        ('host = "beta"', 'host = "Alpha"'),
    ):
        assert wrong in text
        with pytest.raises(ResourceFileError, match="host: expected"):
            parse(text.replace(wrong, said))
