# SPDX-License-Identifier: Apache-2.0
"""The process behind `workers.Worker`: see there for the conversation.

Invariants
 - Standard output carries replies and nothing else; what a case prints goes to standard error.
 - One case is open at a time, and is closed before the process ends.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from iodma.engine.dump import dump_on_signal
from iodma.tools.bench.again import NothingFinished

__all__ = ["main"]

Sample = Callable[[float], float]
#: Of one row: enough to look at, and few enough for all rows to be opened at once.
TRACE_EVENTS = 20_000


def open_case(name: str, options: dict[str, Any]) -> AbstractContextManager[Sample]:
    """The context manager that a case's name stands for."""
    module, _, function = name.partition(":")
    case: Callable[..., AbstractContextManager[Sample]]
    case = getattr(importlib.import_module(module), function)
    return case(**options)


def traced(sample: Sample, seconds: float, path: str) -> int:
    """A sample with a trace: how many engines there were to trace, 0 or 1."""
    from iodma.engine.loop import engines
    from iodma.trace import trace_to

    for engine in engines:
        with trace_to(engine, path, limit=TRACE_EVENTS):
            sample(seconds)
        return 1
    return 0


def main(arguments: list[str]) -> int:
    """Serves requests until the input ends."""
    os.sched_setaffinity(0, {int(arguments[0])})
    dump_on_signal()
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sample: Sample | None = None
    with replies, ExitStack() as opened:
        for line in sys.stdin:
            request: dict[str, Any] = json.loads(line)
            reply: dict[str, Any]
            try:
                if "open" in request:
                    opened.close()
                    sample = opened.enter_context(open_case(request["open"], request["options"]))
                    reply = {"value": 0}
                elif sample is None:
                    reply = {"error": "no case is open"}
                elif "trace" in request:
                    reply = {"value": traced(sample, request["sample"], request["trace"])}
                else:
                    reply = {"value": sample(request["sample"])}
                    reply["details"] = getattr(sample, "details", {})
            except NothingFinished as error:
                reply = {"nothing": str(error)}
            except Exception as error:
                text = f"{type(error).__name__}: {error}"
                reply = {"error": text, "traceback": traceback.format_exc()}
            replies.write(json.dumps(reply) + "\n")
            replies.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
