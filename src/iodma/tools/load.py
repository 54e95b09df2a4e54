# SPDX-License-Identifier: Apache-2.0
"""A device out of a Python file, for `iodma check` and `iodma run`.

    FILE.py            the one `iodma.Device` subclass that the file defines
    FILE.py:Class      that one; for files with several

How a device is made, so that it needs no setting up of its own:

- ``port`` is a port on a memory of guest RAM that starts at address 0.
- Its *endpoints* are the class's annotations without a value (``disk: iodma.File``) and the
  parameters that its ``__init__`` asks for beyond ``port`` and ``name``. Each gets what the command
  line gives for it (``disk=FILE``), and else a zeroed `iodma.Buffer` of 1 MiB. One that is behind a
  BAR (``ram="frames"``) is a `Ram` of the BAR's size, in the given file or new.
- Its *settings* are annotations and parameters that are plain, int, float, str or bool
  (``seed: int = 1``). What the command line gives (``seed=7``) takes the place of the default.

Invariants
 - What is wrong with the file is a `LoadError` whose message names the file and the line.
 - The file's own folder is importable while it is loaded, as it is for a script.
 - What runs is what the file says now: a cache of bytecode takes a file of the same size that was
   written in the same second for the one before.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from traceback import extract_tb
from types import CodeType, ModuleType
from typing import Any

import iodma
from iodma._core import Space

__all__ = [
    "ENDPOINT_BYTES",
    "LoadError",
    "Loaded",
    "endpoint_names",
    "load",
    "made",
    "setting_names",
    "told",
]

#: Of an endpoint that the command line gives nothing for.
ENDPOINT_BYTES = 1 << 20
#: What asyncio says of an `await asyncio.sleep(1)` in an engine's coroutine.
NO_LOOP = "no running event loop"
#: Annotations that are plain values, not endpoints.
PLAIN = {"int", "float", "str", "bool", "bytes"}
#: What a setting may be, and how its text is read.
SETTINGS: dict[str, Callable[[str], Any]] = {
    "int": lambda text: int(text, 0),
    "float": float,
    "str": str,
    "bool": lambda text: {"true": True, "1": True, "false": False, "0": False}[text.lower()],
}


class LoadError(iodma.Error):
    """The file has no device that can be used."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A file, and the device class in it."""

    path: Path
    module: ModuleType
    device: type[iodma.Device]


def load(target: str) -> Loaded:
    """Loads FILE.py or FILE.py:Class.

    Raises:
        LoadError: no such file, it cannot be imported, or no class in it will do.
    """
    file, _, wanted = target.partition(":")
    path = Path(file)
    if not path.is_file():
        why = "is a directory; a file is wanted" if path.is_dir() else "there is no such file"
        raise LoadError(f"{file}: {why}")
    module = imported(path)
    return Loaded(path, module, chosen(path, module, wanted))


class FromSource(SourceFileLoader):
    """Neither reads bytecode nor leaves any beside the file."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def imported(path: Path) -> ModuleType:
    """The file as a module.

    Raises:
        LoadError: it is not Python, or raised.
    """
    name = f"iodma_file_{path.stem}"
    if path.suffix != ".py":
        raise LoadError(f"{path}: is not a Python file (its name does not end in .py)")
    spec = spec_from_file_location(name, path, loader=FromSource(name, str(path)))
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module
    folder = str(path.parent.resolve())
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise LoadError(f"{path}:{error.lineno}: {error.msg}") from error
    except (Exception, SystemExit) as error:
        raise LoadError(told(error, path)) from error
    finally:
        sys.path.remove(folder)
    return module


def where(error: BaseException, path: Path) -> str:
    """FILE:LINE of the last step of the file in the error's traceback."""
    lines = [
        frame.lineno
        for frame in extract_tb(error.__traceback__)
        if Path(frame.filename).resolve() == path.resolve()
    ]
    return f"{path}:{lines[-1]}" if lines else str(path)


def told(error: BaseException, path: Path, what: str = "") -> str:
    """The error as one line: where, what, and the first line of its own words."""
    words = str(error).splitlines() or [""]
    if words[0] == NO_LOOP:
        words[0] += ": asyncio does not run here; await what iodma has, such as engine.sleep"
    kind = f"{type(error).__name__}: {words[0]}".removesuffix(": ")
    return f"{where(error, path)}: {what}{kind}"


def chosen(path: Path, module: ModuleType, wanted: str) -> type[iodma.Device]:
    """The class that was asked for, or the only one.

    Raises:
        LoadError: there is none, it is no device, or there are several.
    """
    devices = [
        each
        for each in vars(module).values()
        if isinstance(each, type)
        and issubclass(each, iodma.Device)
        and each.__module__ == module.__name__
        and not each.__name__.startswith("_")
    ]
    names = ", ".join(each.__name__ for each in devices)
    if wanted:
        found = getattr(module, wanted, None)
        if found is None:
            has = f"; it has {names}" if names else ""
            raise LoadError(f"{path}: defines no {wanted}{has}")
        if not (isinstance(found, type) and issubclass(found, iodma.Device)):
            raise LoadError(f"{path}: {wanted} is no subclass of iodma.Device")
        return found
    if not devices:
        raise LoadError(f"{path}: defines no subclass of iodma.Device")
    if len(devices) > 1:
        raise LoadError(f"{path}: defines {names}: say which, as {path}:{devices[0].__name__}")
    return devices[0]


def endpoint_names(device: type[iodma.Device]) -> list[str]:
    """What a device asks for beside its port: see the module's text.

    A class attribute that is annotated as a plain number or text is no endpoint.
    """
    names: dict[str, None] = {}
    for name, kind in annotated(device):
        if not hasattr(device, name) and kind not in PLAIN and "ClassVar" not in kind:
            names[name] = None
    for parameter in parameters(device):
        if parameter.default is parameter.empty and annotation_name(parameter) not in SETTINGS:
            names[parameter.name] = None
    return list(names)


def setting_names(device: type[iodma.Device]) -> dict[str, str]:
    """The settings of a device, each with its type's name: see the module's text."""
    kinds: dict[str, str] = {}
    taken = inspect.signature(device).parameters.values()
    if any(each.kind is each.VAR_KEYWORD for each in taken):  # they become attributes
        kinds.update((name, kind) for name, kind in annotated(device) if kind in SETTINGS)
    for parameter in parameters(device):
        if (kind := annotation_name(parameter)) in SETTINGS:
            kinds[parameter.name] = kind
    return kinds


def annotated(device: type[iodma.Device]) -> Iterator[tuple[str, str]]:
    """The annotations of a device's own classes, bases first: name, and type as text."""
    for base in reversed(device.__mro__):
        if base not in iodma.Device.__mro__:
            for name, annotation in inspect.get_annotations(base).items():
                yield name, type_name(annotation)


def parameters(device: type[iodma.Device]) -> Iterator[inspect.Parameter]:
    """What a device asks for by name, beside its port and its name."""
    for parameter in inspect.signature(device).parameters.values():
        named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if named and parameter.name not in ("port", "name"):
            yield parameter


def annotation_name(parameter: inspect.Parameter) -> str:
    return "" if parameter.annotation is parameter.empty else type_name(parameter.annotation)


def type_name(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


@contextmanager
def made(
    loaded: Loaded, engine: iodma.Engine, space: Space, given: Mapping[str, str | Path]
) -> Iterator[iodma.Device]:
    """The device, with its endpoints and settings and a port on `space`, attached to the engine.

    Raises:
        LoadError: it could not be made, or `given` names an endpoint or setting it has not.
        OSError: a given file could not be opened.
        AddressRangeError: one that is behind a BAR is smaller than that.
    """
    names, settings = endpoint_names(loaded.device), setting_names(loaded.device)
    if unknown := [name for name in given if name not in names and name not in settings]:
        known = f"its endpoints: {', '.join(names) or 'none'}"
        if settings:
            known += f"; its settings: {', '.join(settings)}"
        raise LoadError(f"{loaded.device.__name__} has no endpoint {unknown[0]}; {known}")
    values = {
        name: setting(name, kind, str(given[name]))
        for name, kind in settings.items()
        if name in given
    }
    with ExitStack() as opened:
        endpoints: dict[str, Any] = {}
        for name in names:
            endpoints[name] = opened.enter_context(endpoint(loaded.device, name, given.get(name)))
        try:
            device = loaded.device(port=engine.port(space), **endpoints, **values)
            engine.attach(device)
        except Exception as error:
            what = f"{loaded.device.__name__} cannot be made: "
            raise LoadError(told(error, loaded.path, what)) from error
        yield device


def endpoint(device: type[iodma.Device], name: str, file: str | Path | None) -> Any:
    """The file as what a device needs under this name, or a stand-in. Raises OSError, too."""
    pci = getattr(device, "pci", None)
    bars = pci.bars.values() if isinstance(pci, iodma.Pci) else ()
    for bar in bars:
        if isinstance(bar, iodma.Bar) and bar.ram == name:
            return iodma.Ram(bar.size) if file is None else iodma.Ram.from_file(file, size=bar.size)
    return iodma.Buffer(ENDPOINT_BYTES) if file is None else iodma.File(file)


def setting(name: str, kind: str, text: str) -> Any:
    """A setting's value, as the command line gives it. Raises LoadError: it is no such value."""
    try:
        return SETTINGS[kind](text)
    except (ValueError, KeyError):
        raise LoadError(f"{name}={text}: {text!r} is no {kind}") from None
