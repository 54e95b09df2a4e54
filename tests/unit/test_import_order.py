"""Imports point one way, down the layers below; devices and transports do not see each other.

What every device is made of - the files of devices/ named in DEVICE_BASE - is a unit of its own,
below the families (virtio, pci, scsi) that concrete devices belong to.

The source is parsed, not run, so imports inside functions count too. Those under
`if TYPE_CHECKING:` do not: they are names for the type checker, and nothing depends on them at run
time.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "iodma"

# From the bottom up. A unit is a module or folder of the package.
LAYERS: list[set[str]] = [
    {"_core", "_peer", "_version"},
    {"types", "errors", "ratelimit", "log"},
    {"sg"},
    {"memory", "lease", "engine", "trace"},
    {"transfer"},
    {"port"},
    {"endpoints", "stages"},
    {"packets"},
    {"device base"},
    {"virtio", "pci", "scsi"},
    {"devices", "transports"},
    {"boards"},
    {"testing"},
    {"tools"},
    {"cli"},
    {"__init__", "__main__"},
]
RANK = {unit: rank for rank, layer in enumerate(LAYERS) for unit in layer}

# Units that know nothing of their neighbours in the same layer.
SEPARATE = {"endpoints", "packets", "stages", "devices", "transports"}

# The files of devices/ that are no device.
DEVICE_BASE = {
    *("__init__", "accesses", "base", "doorbell", "handlers", "host", "interrupt"),
    *("lasting", "registers", "regmap", "scope", "state"),
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def is_type_checking(test: ast.expr) -> bool:
    return "TYPE_CHECKING" in (getattr(test, "id", ""), getattr(test, "attr", ""))


def imports(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and is_type_checking(child.test):
            for other in child.orelse:
                yield from imports(other)
        elif isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        else:
            yield from imports(child)


def imported(path: Path) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Line and dotted path inside the package, such as (12, ("engine", "loop", "Engine"))."""
    folder = path.relative_to(PACKAGE).parent.parts
    for node in imports(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif node.level:
            base = folder[: len(folder) - node.level + 1]
            stem = ".".join(("iodma", *base, *([node.module] if node.module else [])))
            names = [f"{stem}.{alias.name}" for alias in node.names]
        else:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            top, *rest = name.split(".")
            if top == "iodma":
                yield node.lineno, tuple(rest)


def unit_of(parts: tuple[str, ...]) -> str:
    """The unit that a dotted path lies in; a name of the package itself lies in `__init__`."""
    if parts[:1] == ("devices",) and not is_concrete_device(parts):
        return "device base"
    return parts[0] if parts and parts[0] in RANK else "__init__"


def is_concrete_device(parts: tuple[str, ...]) -> bool:
    """Whether a path below devices/ leads to a module that is not of the base, as it is on disk.

    A name that `devices` itself exports is of the base.
    """
    if len(parts) < 2 or parts[1] in DEVICE_BASE:
        return False
    here = PACKAGE / "devices" / parts[1]
    return len(parts) > 2 or here.is_dir() or here.with_suffix(".py").exists()


def complaint(path: Path, target: tuple[str, ...]) -> str | None:
    here = path.relative_to(PACKAGE).with_suffix("").parts
    source = unit_of(here) if here[0] == "devices" else here[0]
    unit = unit_of(target)
    if source == unit:
        if source == "devices" and here[1] != target[1]:
            return "a device knows another device"
        return None
    if unit == "__init__" and RANK[source] >= RANK["testing"]:
        return None  # what stands above the library uses its public names
    if RANK[unit] > RANK[source]:
        return f"{source} is below {unit}"
    if RANK[unit] == RANK[source] and {source, unit} & SEPARATE:
        return f"{source} and {unit} are separate"
    return None


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    unit = path.relative_to(PACKAGE).with_suffix("").parts[0]
    assert unit in RANK, f"{unit} is in no layer: give it a place in LAYERS"
    wrong = [
        f"line {line}: {'.'.join(('iodma', *target))}: {why}"
        for line, target in imported(path)
        if (why := complaint(path, target))
    ]
    assert not wrong, "\n".join(wrong)


def test_the_check_sees_what_it_forbids() -> None:
    def of(module: str, *target: str) -> str | None:
        return complaint(PACKAGE / module, target)

    assert of("memory/ram.py", "stages", "Window") == "memory is below stages"
    assert of("stages/window.py", "endpoints") == "stages and endpoints are separate"
    assert of("devices/lance/chip.py", "devices", "esp", "Esp") == "a device knows another device"
    assert of("sg.py", "Engine") == "sg is below __init__"
    assert of("devices/lance/chip.py", "devices", "base", "Device") is None
    assert of("tools/demo.py", "Engine") is None
    assert of("port.py", "transfer", "Transfer") is None
    assert of("virtio/queue.py", "devices", "Device") is None
    assert of("devices/base.py", "virtio", "Queue") == "device base is below virtio"
    assert of("devices/lance/chip.py", "virtio", "Queue") is None
    assert of("devices/lance/chip.py", "transports", "Bus") == "devices and transports are separate"
    assert of("transports/inprocess.py", "devices", "Device") is None


def test_the_base_of_devices_is_what_is_named() -> None:
    assert {path.stem for path in (PACKAGE / "devices").glob("*.py")} >= DEVICE_BASE
