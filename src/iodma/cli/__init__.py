# SPDX-License-Identifier: Apache-2.0
"""The command line: arguments in, text out, and no logic of its own.

| file | its one concept |
|---|---|
| `parser` | the arguments and their help |
| `commands` | one function a command: calls the tool, prints what it gives |
| `entry` | logging, signals, errors, exit codes |

Invariants
 - Results go to standard output, all else to standard error.
 - Nothing is imported before it is needed: `--version` and `doctor` work when the core cannot be.
"""

from __future__ import annotations

from iodma.cli.entry import main

__all__ = ["main"]
