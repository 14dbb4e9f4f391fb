# SPDX-License-Identifier: LGPL-2.1-or-later
"""The numbers of a status as metrics, and as Prometheus reads them.

`FAMILIES` is the whole list: alert rules and dashboard (docs/monitoring) may
use these names and no others.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..replica import State
from ._ask import Told

__all__ = ["FAMILIES", "Family", "Sample", "families", "text_of", "write_atomically"]

Labels = dict[str, str]
Sample = tuple[str, Labels, float]  # a suffix of the name, labels, value
Kind = Literal["gauge", "counter", "summary"]
QUANTILES = {"0.5": "p50", "0.99": "p99", "0.999": "p999"}
NS = 1e9


@dataclass(frozen=True)
class Family:
    """One metric.  ``read`` gives the samples of one side that answered."""

    name: str
    kind: Kind
    help: str
    read: Callable[[dict[str, Any]], Iterator[Sample]]


def _number(key: str) -> Callable[[dict[str, Any]], Iterator[Sample]]:
    def read(answer: dict[str, Any]) -> Iterator[Sample]:
        if answer.get(key) is not None:
            yield "", {}, float(answer[key])

    return read


def _of(**keys: str) -> Callable[[dict[str, Any]], Iterator[Sample]]:
    """One sample for each of several counters, labelled ``kind``."""

    def read(answer: dict[str, Any]) -> Iterator[Sample]:
        for label, key in keys.items():
            yield "", {"kind": label}, float(answer[key])

    return read


def _only(role: str, key: str) -> Callable[[dict[str, Any]], Iterator[Sample]]:
    def read(answer: dict[str, Any]) -> Iterator[Sample]:
        if answer["role"] == role:
            yield "", {}, float(answer[key])

    return read


def _state(answer: dict[str, Any]) -> Iterator[Sample]:
    for state in State:
        yield "", {"state": state.value}, float(answer["state"] == state.value)


def _lag(key: str) -> Callable[[dict[str, Any]], Iterator[Sample]]:
    def read(answer: dict[str, Any]) -> Iterator[Sample]:
        yield "", {}, float(answer["lag"][key])

    return read


def _info(answer: dict[str, Any]) -> Iterator[Sample]:
    if "version" in answer:
        yield "", {"version": answer["version"]}, 1.0


def _waiting(answer: dict[str, Any]) -> Iterator[Sample]:
    """Writes that nothing lets go on: no room is a matter of milliseconds."""
    if answer["role"] == "primary":
        held = answer["holds"] or answer["asks_alone"]
        yield "", {}, float(bool(held))


def _statistics(answer: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for who, summary in answer.get("statistics", {}).items():
        if "error" not in summary:
            yield who, summary


def _series(key: str) -> Callable[[dict[str, Any]], Iterator[Sample]]:
    def read(answer: dict[str, Any]) -> Iterator[Sample]:
        for who, summary in _statistics(answer):
            values = summary[key]
            for quantile, name in QUANTILES.items():
                labels = {"taken_by": who, "quantile": quantile}
                yield "", labels, values[name] / NS
            yield "_sum", {"taken_by": who}, values["total"] / NS
            yield "_count", {"taken_by": who}, float(values["count"])

    return read


def _epochs(answer: dict[str, Any]) -> Iterator[Sample]:
    for who, summary in _statistics(answer):
        good = summary["epochs"] - summary["failed"]
        yield "", {"taken_by": who, "result": "done"}, float(good)
        yield "", {"taken_by": who, "result": "failed"}, float(summary["failed"])


FAMILIES: tuple[Family, ...] = (
    Family(
        "remus_running", "gauge", "1: a process serves this side.", _number("running")
    ),
    Family("remus_state", "gauge", "1 for the state that the side is in.", _state),
    Family("remus_connected", "gauge", "1: the other side is.", _number("connected")),
    Family(
        "remus_link_changed_seconds",
        "gauge",
        "Since the connection came or went.",
        _number("link_s"),
    ),
    Family(
        "remus_checkpoint_age_seconds",
        "gauge",
        "Since the newest checkpoint was the newest state there was.",
        _number("age_s"),
    ),
    Family(
        "remus_lag_checkpoints",
        "gauge",
        "Primary: closed and not acked. Backup: prepared and not in its disks.",
        _lag("epochs"),
    ),
    Family(
        "remus_lag_bytes",
        "gauge",
        "Primary: what the backup lacks. Backup: journal that those take, at most.",
        _lag("bytes"),
    ),
    Family(
        "remus_prepared_checkpoint",
        "gauge",
        "Number of the newest that is acked.",
        _number("prepared_epoch"),
    ),
    Family(
        "remus_committed_checkpoint",
        "gauge",
        "Number of the newest that is committed.",
        _number("committed_epoch"),
    ),
    Family(
        "remus_replicated_bytes_total",
        "counter",
        "Sent or received since the process started.",
        _of(written="bytes_written", zeroed="bytes_zeroed"),
    ),
    Family(
        "remus_applied_bytes_total",
        "counter",
        "Written into the backup's disks.",
        _only("backup", "bytes_applied"),
    ),
    Family(
        "remus_queue_bytes",
        "gauge",
        "Waiting to be sent.",
        _only("primary", "queue_bytes"),
    ),
    Family(
        "remus_queue_limit_bytes",
        "gauge",
        "Bound on what waits to be sent, now.",
        _only("primary", "queue_limit"),
    ),
    Family(
        "remus_stalled_writes_total",
        "counter",
        "Writes of the guest that had to wait for room.",
        _only("primary", "stalls"),
    ),
    Family(
        "remus_parked_writes",
        "gauge",
        "Writes of the guest that wait now.",
        _only("primary", "parked_writes"),
    ),
    Family(
        "remus_guest_waits",
        "gauge",
        "1: the guest waits for a fence, an operator's word or the backup.",
        _waiting,
    ),
    Family(
        "remus_open_for_writing",
        "gauge",
        "Files of the disks that are open for writing.",
        _only("primary", "writers"),
    ),
    Family(
        "remus_resync_done_bytes",
        "gauge",
        "Of the copy or catch-up.",
        _number("resync_done"),
    ),
    Family(
        "remus_resync_size_bytes",
        "gauge",
        "Of the copy or catch-up.",
        _number("resync_total"),
    ),
    Family(
        "remus_journal_bytes",
        "gauge",
        "Segments of the journal in use.",
        _only("backup", "journal_bytes"),
    ),
    Family(
        "remus_journal_size_bytes",
        "gauge",
        "All segments of the journal.",
        _only("backup", "journal_limit"),
    ),
    Family(
        "remus_refused_connections_total",
        "counter",
        "Connections that the backup refused.",
        _only("backup", "refused"),
    ),
    Family(
        "remus_checkpoints_total",
        "counter",
        "Checkpoints taken, by who took them and how they ended.",
        _epochs,
    ),
    Family(
        "remus_pause_seconds",
        "summary",
        "What the devices add to the guest's pause.",
        _series("pause_ns"),
    ),
    Family(
        "remus_ack_seconds",
        "summary",
        "From a barrier until its ack.",
        _series("ack_ns"),
    ),
    Family(
        "remus_start_time_seconds",
        "gauge",
        "When the process started, since 1970.",
        _number("started"),
    ),
    Family("remus_build_info", "gauge", "1, with the release of the process.", _info),
)


def families(told: Sequence[Told]) -> Iterator[tuple[Family, list[Sample]]]:
    """Each metric with its samples of all resources.

    A side that gives no answer has ``remus_running`` 0 and nothing else; so has
    the role "none" of a resource of which nothing is found here.
    """
    answers = [
        ({"resource": one.resource.name, "role": str(side)}, answer)
        for one in told
        for side, answer in one.found.items()
    ]
    for family in FAMILIES:
        samples = [
            (suffix, {**labels, **more}, value)
            for labels, answer in answers
            for suffix, more, value in family.read(answer)
        ]
        if family.name == "remus_running":
            for one in told:
                lost = [str(side) for side in (*one.silent, *one.refused)]
                # A file that is here says that a side should run here.
                if not lost and not one.found:
                    lost = ["none"]
                samples += [
                    ("", {"resource": one.resource.name, "role": side}, 0.0)
                    for side in lost
                ]
        if samples:
            yield family, samples


def text_of(told: Sequence[Told]) -> str:
    """The text format 0.0.4 of Prometheus."""
    lines = []
    for family, samples in families(told):
        lines.append(f"# HELP {family.name} {_escaped(family.help)}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        for suffix, labels, value in samples:
            inner = ",".join(
                f'{key}="{_escaped(text, quotes=True)}"' for key, text in labels.items()
            )
            lines.append(f"{family.name}{suffix}{{{inner}}} {_value(value)}")
    return "".join(f"{line}\n" for line in lines)


def _escaped(text: str, *, quotes: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quotes else text


def _value(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def write_atomically(path: str, text: str) -> None:
    """A reader finds the old text or the new one, and never part of it."""
    folder, name = os.path.split(os.path.abspath(path))
    # node_exporter reads what ends in .prom, as another user.
    fd, made = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
            os.fchmod(file.fileno(), 0o644)
        os.replace(made, path)
    except BaseException:
        os.unlink(made)
        raise
