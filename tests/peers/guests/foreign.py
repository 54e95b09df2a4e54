# SPDX-License-Identifier: Apache-2.0
"""Packages of another Debian release or architecture, unpacked beside the checkout.

scripts/foreign_debian.sh fetches and keeps them; here is what is found in such a folder.

Invariants:

- A folder is read and never written.
- A program of it runs under its own loader and C library, never under this machine's.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / "scripts" / "foreign_debian.sh"


def unpack(suite: str, *packages: str, arch: str | None = None) -> Foreign:
    """The packages and what they depend on; the first time that takes up to a minute.

    Raises:
        FileNotFoundError: they cannot be had here, and why.
    """
    options = [f"--arch={arch}"] if arch else []
    done = subprocess.run(
        [str(SCRIPT), *options, suite, *packages],
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    if done.returncode:
        raise FileNotFoundError(f"no {packages[0]} of Debian {suite}: {done.stderr.strip()}")
    return Foreign(Path(done.stdout.strip()))


@dataclass(frozen=True)
class Foreign:
    """A folder with the files of some packages, as they are in an installed system."""

    root: Path

    def one(self, pattern: str) -> Path:
        """The file whose name below the folder is like this; the last one of several.

        Raises:
            FileNotFoundError: There is none.
        """
        found = sorted(self.root.glob(pattern))
        if not found:
            raise FileNotFoundError(f"{self.root} has no {pattern}")
        return found[-1]

    @property
    def libraries(self) -> list[Path]:
        """The folders in which the loader finds libraries."""
        places = [*self.root.glob("lib/*-linux-gnu"), *self.root.glob("usr/lib/*-linux-gnu")]
        found = dict.fromkeys(place.resolve() for place in places)
        return [*found, *(inner for place in found for inner in place.glob("pulseaudio"))]

    def command(self, program: str) -> list[str]:
        """What starts a program of this machine's architecture that is in the folder.

        Raises:
            FileNotFoundError: There is no such program.
        """
        path = self.one(f"usr/*bin/{program}")
        return [*self._loader(), str(path)]

    def needed(self, program: str) -> tuple[Path, list[Path]]:
        """A program, and its libraries with their loader."""
        path = self.one(f"usr/*bin/{program}")
        told = subprocess.run(
            [*self._loader(), "--list", str(path)], capture_output=True, text=True, check=True
        ).stdout
        loader = Path(self._loader()[0])
        names = re.findall(r"=> (/\S+) \(0x", told)
        return path, [loader, *(Path(name) for name in names if Path(name).name != loader.name)]

    def _loader(self) -> list[str]:
        loader = self.one("lib/*-linux-gnu/ld-linux-*.so.*")
        where = os.pathsep.join(str(place) for place in self.libraries)
        return [str(loader), "--library-path", where]
