# SPDX-License-Identifier: Apache-2.0
"""The trace: what every transfer did and when, as a file for the Perfetto UI (https://ui.perfetto.dev).

    with iodma.trace.trace_to(engine, "out.json"):
        engine.run(main())

`collect` takes the events out of the core, `perfetto` writes them down.
"""

from iodma.trace.collect import Trace, attach, trace_to
from iodma.trace.perfetto import merge

__all__ = ["Trace", "attach", "merge", "trace_to"]
