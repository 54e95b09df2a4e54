# SPDX-License-Identifier: Apache-2.0
"""Machines: devices and stages put together, at the addresses that a machine has them.

Invariant: a board makes, places and connects; what its parts do is theirs.
"""
