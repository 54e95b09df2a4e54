# SPDX-License-Identifier: Apache-2.0
"""What the commands do: each tool gives a result as data, and text for it on request.

Invariants
 - A tool does not parse arguments and does not print: `iodma.cli` does.
"""
