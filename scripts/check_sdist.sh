#!/bin/bash
# Builds the sdist, a wheel from nothing but that sdist, and installs the wheel in an empty
# environment: what a user of a release gets. `make test` runs it; it needs .venv, not the network.
set -euo pipefail
cd "$(dirname "$0")/.."

python=$PWD/.venv/bin/python
wheelhouse=$PWD/.venv/wheelhouse
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1

# From a copy: what an earlier build left in the checkout can neither help nor be changed.
mkdir "$work/copy" "$work/dist"
tar --create --exclude-vcs --exclude=./.venv --exclude=./build --exclude=./dist \
    --exclude='*.egg-info' --exclude='*.so' --exclude='*.o' . | tar --extract --directory="$work/copy"

echo 'building the sdist'
(cd "$work/copy" && "$python" -c "
import sys
from setuptools import build_meta
build_meta.build_sdist(sys.argv[1])" "$work/dist" >"$work/log" 2>&1) || { cat "$work/log"; exit 1; }
rm -rf "$work/copy"

echo "building the wheel from $(basename "$work"/dist/*.tar.gz)"
"$python" -m pip --quiet wheel --no-index --no-build-isolation --no-deps \
    --wheel-dir "$work/dist" "$work"/dist/*.tar.gz
wheel=$(echo "$work"/dist/*.whl)
case $wheel in
*-cp311-abi3-*.whl) ;;
*) echo "not a wheel of the stable ABI: $wheel" >&2; exit 1 ;;
esac

echo "installing $(basename "$wheel") in an empty environment"
"$python" -m venv "$work/venv"
"$work/venv/bin/python" -m pip --quiet install --no-index --find-links "$wheelhouse" "$wheel"
cd /
"$work/venv/bin/iodma" --version
"$work/venv/bin/python" -I - "$work/venv" <<'CHECK'
import importlib.metadata
import sys
from importlib.resources import files

import iodma
from iodma import _core
from iodma._version import __version__

metadata = importlib.metadata.version("iodma")
assert metadata == __version__, f"metadata says {metadata}, the package {__version__}"
for module in (iodma, _core):
    assert str(module.__file__).startswith(sys.argv[1]), f"imported from {module.__file__}"
assert files("iodma").joinpath("py.typed").is_file()
assert files("iodma").joinpath("_core.pyi").is_file()
print(f"iodma {metadata} works when installed from its sdist")
CHECK
