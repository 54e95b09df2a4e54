# SPDX-License-Identifier: Apache-2.0
"""A trace as a file: the JSON of the Trace Event Format, which Perfetto and Chrome open.

Every port is a process of its own in the viewer. In it:

| track | what is on it |
|---|---|
| one a transfer | a slice for it, and inside one for each of its states and requests |
| device | where the device described a transfer: flows begin here |
| translate | each walk of a list through the stages |
| submit | planning, and filling the ring |
| complete | what follows a result: flows end here |

Invariants
 - Every slice that is opened is closed, also that of a transfer which did not end (``unfinished``).
 - Every flow begins once and ends once; its steps lie inside slices, in order of time.
 - Memory goes with the transfers in flight, not with the length of the trace.
"""

from __future__ import annotations

import gzip
import json
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import IO, Any, cast

from iodma._core import transitions
from iodma.types import Status

__all__ = ["EVENT", "merge", "open_output", "write"]

#: struct iod_trace_event: when, ticket, bytes, from, to, status, kind, port, target, spare.
EVENT = struct.Struct("<QQQBBBBIII")

_STATES = (
    "FREE",
    "DESCRIBED",
    "PENDING",
    "WAITING",
    "IN_FLIGHT",
    "CANCELLING",
    "FAULTED",
    "COMPLETE",
    "DELIVERED",
)
assert {name for edge in transitions() for name in edge[:2]} == set(_STATES)
_FREE, _DESCRIBED, _CANCELLING, _COMPLETE = 0, 1, 5, 7
_WALK, _WALKED, _REQUEST, _RESULT = range(0x80, 0x84)
_KINDS = (
    *("transfer", "copy", "load", "store", "flush", "discard", "write_zeroes", "peek", "drop"),
)
_DEVICE, _TRANSLATE, _SUBMIT, _FINISH = range(1, 5)
_TRACKS = {_DEVICE: "device", _TRANSLATE: "translate", _SUBMIT: "submit", _FINISH: "complete"}
_AT_ONCE_NS = 1

Record = dict[str, Any]


def open_output(path: str) -> IO[str]:
    """The file, compressed if its name says so."""
    if path.endswith(".gz"):
        return cast("IO[str]", gzip.open(path, "wt", compresslevel=1, encoding="ascii"))
    return open(path, "w", encoding="ascii")


@dataclass(slots=True)
class _Live:
    """A transfer that has not ended."""

    name: str
    port: int
    state: int
    walk: int = 0  # when its walk began
    since: int = 0  # when what leads to the next request began
    result: int = 0  # when the last result came
    requested: bool = False


class _Writer:
    """Events in, records out."""

    def __init__(self, names: dict[int, str]) -> None:
        self._names = names
        self._live: dict[int, _Live] = {}
        self._ports: set[int] = set()
        self._begin = 0
        self._last = 0

    def _us(self, when: int) -> float:
        return (when - self._begin) / 1000

    def _slice(
        self, port: int, track: int, name: str, begin: int, end: int, args: Record
    ) -> Record:
        return {
            "ph": "X",
            "pid": port,
            "tid": track,
            "name": name,
            "cat": "iodma",
            "ts": self._us(begin),
            "dur": max(end - begin, _AT_ONCE_NS) / 1000,
            "args": args,
        }

    def _async(
        self, phase: str, live: _Live, ticket: int, name: str, when: int, args: Record | None = None
    ) -> Record:
        return {
            "ph": phase,
            "pid": live.port,
            "tid": 0,
            "cat": "transfer",
            "id": f"{ticket:#x}",
            "name": name,
            "ts": self._us(when),
            "args": args or {},
        }

    def _flow(self, phase: str, live: _Live, ticket: int, track: int, when: int) -> Record:
        record = {
            "ph": phase,
            "pid": live.port,
            "tid": track,
            "cat": "flow",
            "id": f"{ticket:#x}",
            "name": "transfer",
            "ts": self._us(when),
        }
        if phase == "f":
            record["bp"] = "e"  # the slice around it, not the next one
        return record

    def _port(self, port: int) -> Iterator[Record]:
        if port in self._ports:
            return
        self._ports.add(port)
        names = {0: f"port {self._names.get(port, port)}", **_TRACKS}
        for track, name in names.items():
            what = "thread_name" if track else "process_name"
            yield {"ph": "M", "pid": port, "tid": track, "name": what, "args": {"name": name}}
            if track:
                yield {
                    "ph": "M",
                    "pid": port,
                    "tid": track,
                    "name": "thread_sort_index",
                    "args": {"sort_index": track},
                }

    def event(self, fields: Sequence[int]) -> Iterator[Record]:
        """The records of one event."""
        when, ticket, amount, before, to, status, kind, port, target, _ = fields
        if not self._begin:
            self._begin = when
        self._last = when
        live = self._live.get(ticket)
        if live is None:
            if to == _FREE:
                return
            yield from self._port(port)
            kind, direction = kind >> 1, kind & 1
            name = _KINDS[kind]
            if not kind:
                name = "to_memory" if direction else "from_memory"
            live = self._live[ticket] = _Live(
                name, port, _DESCRIBED if to > 0x7F else to, since=when
            )
            args: Record = {"ticket": f"{ticket:#x}", "port": self._names.get(port, str(port))}
            if target:
                args["endpoint"] = self._names.get(target, str(target))
            if to == _DESCRIBED:
                args["bytes"] = amount
            else:
                args["began"] = "before the trace"
            yield self._slice(port, _DEVICE, name, when, when, args)
            yield self._flow("s", live, ticket, _DEVICE, when)
            yield self._async("b", live, ticket, name, when, args)
            yield self._async("b", live, ticket, _STATES[live.state], when)
            if to <= 0x7F:
                return
        if to == _WALK:
            live.walk = when
        elif to == _WALKED:
            yield from self._walked(live, ticket, when, {"pieces": amount})
            live.since = when
        elif to == _REQUEST:
            yield from self._requested(live, ticket, when, amount)
        elif to == _RESULT:
            if live.requested:
                live.requested = False
                result = amount - (1 << 64) if amount >> 63 else amount
                yield self._async("e", live, ticket, "request", when, {"result": result})
            live.result = live.since = when
        else:
            yield from self._moved(live, ticket, when, before, to, amount, status)

    def _walked(self, live: _Live, ticket: int, when: int, args: Record) -> Iterator[Record]:
        begin = live.walk or when  # lost, when the trace began in the middle of it
        yield self._slice(live.port, _TRANSLATE, live.name, begin, when, args)
        yield self._flow("t", live, ticket, _TRANSLATE, begin)
        live.walk = 0

    def _requested(self, live: _Live, ticket: int, when: int, amount: int) -> Iterator[Record]:
        if live.result:  # the next piece: what followed the last result is over
            yield self._slice(live.port, _FINISH, live.name, live.result, when, {"goes": "on"})
            live.result = 0
        begin = live.since or when
        yield self._slice(live.port, _SUBMIT, live.name, begin, when, {"bytes": amount})
        yield self._flow("t", live, ticket, _SUBMIT, begin)
        yield self._async("b", live, ticket, "request", when, {"bytes": amount})
        live.requested = True

    def _moved(
        self, live: _Live, ticket: int, when: int, before: int, to: int, moved: int, status: int
    ) -> Iterator[Record]:
        """A change of state."""
        if live.walk:  # it ended without a translation
            yield from self._walked(live, ticket, when, {"ended": _STATES[to]})
        asked = live.requested
        if asked:
            live.requested = False
            yield self._async("e", live, ticket, "request", when)
        end: Record = {"moved": moved} if to in (_COMPLETE, _FREE) else {}
        if to in (_COMPLETE, _FREE):
            end["status"] = Status(status).name
        if to == _COMPLETE:
            begin = live.result or when
            yield self._slice(live.port, _FINISH, live.name, begin, when, end)
            yield self._flow("f", live, ticket, _FINISH, begin)
            live.result = 0
        elif live.result:
            yield self._slice(
                live.port, _FINISH, live.name, live.result, when, {"then": _STATES[to]}
            )
            live.result = 0
        yield self._async("e", live, ticket, _STATES[live.state], when)
        if to == _FREE:
            yield self._async("e", live, ticket, live.name, when, end)
            del self._live[ticket]
            return
        live.state = to
        if to == _DESCRIBED:
            live.since = 0
        yield self._async("b", live, ticket, _STATES[to], when)
        if asked and to == _CANCELLING:  # the kernel has it still
            live.requested = True
            yield self._async("b", live, ticket, "request", when, {"cancelled": True})

    def finish(self) -> Iterator[Record]:
        """Closes what is open."""
        when = self._last
        for ticket, live in self._live.items():
            if live.requested:
                yield self._async("e", live, ticket, "request", when)
            if live.state < _COMPLETE:
                args = {"unfinished": _STATES[live.state]}
                yield self._slice(live.port, _FINISH, live.name, when, when, args)
                yield self._flow("f", live, ticket, _FINISH, when)
            yield self._async("e", live, ticket, _STATES[live.state], when)
            yield self._async("e", live, ticket, live.name, when, {"unfinished": True})
        self._live.clear()


def write(
    output: IO[str], events: IO[bytes], names: dict[int, str], *, title: str, lost: int
) -> None:
    """Write the file.

    Args:
        output: what `open_output` gave.
        events: the core's events, one `EVENT` after another.
        names: of ports and endpoints, by the ids in the events.
        title: of the engine.
        lost: events that are missing.
    """
    writer = _Writer(names)
    encode = json.JSONEncoder(separators=(",", ":"), default=str).encode
    other = encode({"engine": title, "lost_events": lost})
    output.write(f'{{"displayTimeUnit":"ns","otherData":{other},"traceEvents":[\n')
    separator = ""

    def put(records: Iterator[Record]) -> None:
        nonlocal separator
        for record in records:
            output.write(separator + encode(record))
            separator = ",\n"

    while block := events.read(EVENT.size * 4096):
        for fields in EVENT.iter_unpack(block):
            put(writer.event(fields))
    put(writer.finish())
    output.write("\n]}\n")


def merge(output: str, parts: Sequence[tuple[str, str]]) -> None:
    """Put several traces into one file, side by side.

    Args:
        output: the file to write.
        parts: (title, path); a part's ports are called "title: port".
    """
    everything: list[Record] = []
    lost = 0
    for number, (title, path) in enumerate(parts):
        with closing(gzip.open(path, "rt") if path.endswith(".gz") else open(path)) as file:
            part = json.load(file)
        lost += part["otherData"]["lost_events"]
        for record in part["traceEvents"]:
            record["pid"] += 1000 * number
            if record["ph"] == "M" and record["name"] == "process_name":
                record["args"]["name"] = f"{title}: {record['args']['name']}"
            elif "id" in record:
                record["id"] = f"{number}:{record['id']}"
            everything.append(record)
    with open_output(os.fspath(output)) as file:
        json.dump(
            {
                "displayTimeUnit": "ns",
                "otherData": {"parts": [title for title, _ in parts], "lost_events": lost},
                "traceEvents": everything,
            },
            file,
            separators=(",", ":"),
        )
