"""Builds the C core: everything else about the package is in pyproject.toml.

The extension uses the stable ABI of Python 3.11, so one wheel serves 3.11 and later. The version is
read from `src/iodma/_version.py` and compiled in; `import iodma` compares the two.
"""

import os
import re
from glob import glob
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).parent
VERSION_FILE = "src/iodma/_version.py"
found = re.search(r'^__version__ = "([^"]+)"$', (ROOT / VERSION_FILE).read_text(), re.MULTILINE)
if found is None:
    raise SystemExit(f'{VERSION_FILE} has no line of the form: __version__ = "1.2.3"')


def extension(name: str, *patterns: str) -> Extension:
    """An extension of the files that match; a change of file, header or flag rebuilds it."""
    headers = sorted(glob("csrc/**/*.h", recursive=True, root_dir=ROOT))
    return Extension(
        name,
        sources=sorted(file for pattern in patterns for file in glob(pattern, root_dir=ROOT)),
        depends=[*headers, VERSION_FILE, "setup.py"],
        include_dirs=["csrc"],
        define_macros=[
            ("_GNU_SOURCE", None),
            ("Py_LIMITED_API", "0x030B0000"),
            ("IODMA_VERSION", f'"{found[1]}"'),
        ],
        extra_compile_args=[
            "-std=c11",
            "-O3",
            "-flto=auto",  # a request crosses six files: one is saved a tenth of its time
            "-fvisibility=hidden",
            "-pthread",
            "-Wall",
            "-Wextra",
            "-Wno-unused-parameter",
            "-Wno-missing-field-initializers",
            "-Wno-cast-function-type",
        ],
        # A function that no file defines fails the import, not the first call.
        extra_link_args=["-pthread", "-ldl", "-O3", "-flto=auto", "-Wl,-z,now"],
        py_limited_api=True,
    )


extensions = [extension("iodma._core", "csrc/*.c", "csrc/ext/*.c")]
if (ROOT / "csrc/peer").is_dir():  # the C loops that benchmarks compare with
    extensions.append(extension("iodma._peer", "csrc/peer/*.c"))

# The Makefile installs the package editable without compiling: it compiles in place, and says more
# when that fails.
if os.environ.get("IODMA_BUILD") == "editable":
    extensions = []

setup(ext_modules=extensions, options={"bdist_wheel": {"py_limited_api": "cp311"}})
