"""`iodma check` and `iodma run`: a device out of a file, and errors that name file and line."""

import json
import os
from pathlib import Path

import pytest

from iodma.cli import main
from iodma.tools.check import check, render
from iodma.tools.load import LoadError, endpoint_names, load, setting_names
from iodma.tools.run import Options, run

DEVICE = '''
import iodma


class Copier(iodma.Device):
    """Copies a page from a disk.

    More of it.
    """

    limit: int = 3
    disk: iodma.File
    ident = iodma.Register(0x0, access="ro", reset=0xC0B1, doc="identification")
    status = iodma.Register(0x4, access="w1c", mask=0xFF)
    wide = iodma.Register(0x8, 8)
    go = iodma.Doorbell(0x10, run="copy", doc="where to copy to")

    async def copy(self, address):
        done = await self.port.to_memory((address, 4096), source=self.disk, offset=0)
        self.status = 1 + done.status
        self.interrupt.pulse()
'''

DRIVER = """

async def driver(bus, device, base, ram, engine):
    came = iodma.Event(engine)
    device.interrupt.connect(lambda level: came.set() if level else None)
    bus.write32(base + 0x10, 0x3000)
    await came.wait()
    return bus.read32(base + 4), bytes(ram.view(0x3000, 5)).decode()
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "copier.py"
    path.write_text(DEVICE + DRIVER)
    return path


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "other.py"
    path.write_text("import iodma\n" + text)
    return str(path)


# --- check --------------------------------------------------------------------------------------


def test_the_register_map_is_a_table(file: Path) -> None:
    result = check(str(file))
    assert (result.device, result.doc) == ("Copier", "Copies a page from a disk.")
    assert (result.size, result.endpoints) == (0x18, ("disk",))
    assert result.settings == {"limit": "int"}
    rows = [(each.offset, each.width, each.name, each.access) for each in result.registers]
    assert rows == [
        (0x0, 4, "ident", "ro"),
        (0x4, 4, "status", "w1c"),
        (0x8, 8, "wide", "rw"),
        (0x10, 4, "go", "doorbell"),
    ]
    assert result.registers[0].reset == 0xC0B1
    assert result.registers[3].reset is None
    text = render(result)
    for word in ("identification", "0x0000c0b1", "doorbell", "where to copy to", "64 bit"):
        assert word in text


def test_check_on_the_command_line(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["device"] == "Copier"
    assert main(["check", f"{file}:Copier"]) == 0
    assert capsys.readouterr().err == ""


def test_a_file_with_several_devices_asks_which(tmp_path: Path) -> None:
    target = write(
        tmp_path,
        "class One(iodma.Device): pass\nclass Two(One): pass\nclass _Base(iodma.Device): pass\n",
    )
    with pytest.raises(LoadError, match=f"One, Two: say which, as {target}:One"):
        load(target)
    assert load(f"{target}:Two").device.__name__ == "Two"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1\n", "defines no subclass of iodma.Device"),
        ("from iodma import Device\n", "defines no subclass of iodma.Device"),
        ("def broken(:\n", r"other.py:2: invalid syntax"),
        ("\n\n1 / 0\n", r"other.py:4: ZeroDivisionError"),
        ("import sys\nsys.exit(3)\n", r"other.py:3: SystemExit: 3"),
        ("raise ValueError('one\\ntwo')\n", r"other.py:2: ValueError: one$"),
        (
            "class D(iodma.Device):\n    a = iodma.Register(0)\n    b = iodma.Register(2, 2)\n",
            r"other.py:2: AddressRangeError: D: b at 0x2 overlaps a",
        ),
        (
            "class D(iodma.Device):\n    def reset(self):\n        raise KeyError('x')\n",
            r"other.py:4: D cannot be made: KeyError",
        ),
        (
            "class D(iodma.Device):\n    def __init__(self, port): 1 / 0\n",
            r"other.py:3: D cannot be made: ZeroDivisionError",
        ),
        (
            "class D(iodma.Device):\n    n = 0\n    def reset(self):\n        self.n += 1\n"
            "        assert self.n < 2, 'again'\n",
            r"other.py:6: D fails in a reset: .*again",
        ),
    ],
)
def test_what_is_wrong_names_the_line(
    tmp_path: Path, text: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = write(tmp_path, text)
    with pytest.raises(LoadError, match=words):
        check(target)
    assert main(["check", target]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith(f"iodma: error: {target}")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("none.py", "none.py: there is no such file"),
        (".", "is a directory; a file is wanted"),
        ("copier.py:Nothing", "defines no Nothing; it has Copier$"),
        ("copier.py:iodma", "iodma is no subclass of iodma.Device"),
    ],
)
def test_a_target_that_is_not_there(file: Path, target: str, words: str) -> None:
    with pytest.raises(LoadError, match=words):
        load(str(file.parent / target))


def test_a_file_that_is_not_python(tmp_path: Path) -> None:
    path = tmp_path / "device.txt"
    path.write_text("")
    with pytest.raises(LoadError, match=r"does not end in \.py"):
        load(str(path))


def test_a_file_that_was_changed_at_once_is_the_new_one(tmp_path: Path) -> None:
    for offset in (4, 8):
        target = write(tmp_path, f"class D(iodma.Device):\n    r = iodma.Register({offset})\n")
        os.utime(target, (1, 1))
        assert check(target).size == offset + 4
    assert not (tmp_path / "__pycache__").exists()


def test_a_file_imports_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "iodma_test_neighbour.py").write_text("OFFSET = 0x40\n")
    target = write(
        tmp_path,
        "from iodma_test_neighbour import OFFSET\n"
        "class D(iodma.Device):\n    a = iodma.Register(OFFSET)\n",
    )
    assert check(target).registers[0].offset == 0x40


def test_endpoints_are_annotations_and_required_parameters(tmp_path: Path) -> None:
    target = write(
        tmp_path,
        "class D(iodma.Device):\n"
        "    count: int\n"
        "    log: 'iodma.Buffer'\n"
        "    cached: iodma.File = None\n"
        "    def __init__(self, port, name=None, *, disk, speed=3):\n"
        "        super().__init__(port, name=name, disk=disk)\n"
        "        self.log = disk\n",
    )
    assert endpoint_names(load(target).device) == ["log", "disk"]


FUNCTION = """
class D(iodma.Device):
    pci = iodma.Pci(
        vendor=0x1234, device=0x5678, class_code=0x0C0330, revision=2, subsystem=0x9ABC,
        bars={0: 4096, 2: iodma.Bar(1 << 20, kind="memory64", prefetchable=True, ram="memory"),
              5: iodma.Bar(16, kind="io", at=0x10)},
        msi=4, msix=3, power_management=False, rom=b"rom",
        capabilities=(iodma.pci.Capability.vendor_specific(b"data"),
                      iodma.pci.Capability(0x0003, bytes(8), extended=True)),
    )
    memory: iodma.Ram
    ident = iodma.Register(0x0)
    def __init__(self, port, **more):
        super().__init__(port, **more)
        self.second = self.interrupt_line("second")
"""


def test_check_shows_what_a_guest_finds_on_its_bus(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = write(tmp_path, FUNCTION)
    assert main(["check", target]) == 0
    shown = capsys.readouterr().out.splitlines()[3:14]
    assert [line.rstrip() for line in shown] == [
        "pci: 1234:5678, class 0c0330, revision 02, subsystem 1234:9abc",
        "  BAR 0  memory, 32 bit                    4 KiB  registers 0x0 to 0xfff",
        "  BAR 1  memory, 32 bit                    4 KiB  MSI-X table at 0x0, pending bits at"
        " 0x800",
        "  BAR 2  memory, 64 bit, prefetchable      1 MiB  ram: memory",
        "  BAR 5  I/O                            16 bytes  registers 0x10 to 0x1f",
        "  ROM    ROM                               2 KiB  expansion ROM",
        "  interrupts: INTx, MSI with 4 vectors, MSI-X with 3 vectors; lines: 0 interrupt, 1"
        " second",
        "  capabilities: 0x40 MSI, 0x58 PCI Express, 0x94 MSI-X, 0xa0 vendor-specific,"
        " 0x100 device serial number",
        "",
        "  0x0000  32 bit  rw        ident  0x00000000",
    ]
    assert main(["check", target, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)["pci"]
    assert (data["vendor"], data["class_code"], data["msix"]) == (0x1234, 0x0C0330, 3)
    assert [bar["index"] for bar in data["bars"]] == [0, 1, 2, 5, 6]
    assert data["lines"] == ["interrupt", "second"]


def test_a_bar_of_ram_can_be_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    driver = (
        "async def driver(device):\n    with device.memory.view(0, 5) as view: return bytes(view)\n"
    )
    target = write(tmp_path, FUNCTION + driver)
    (tmp_path / "frames").write_bytes(b"frame".ljust(1 << 20))
    (tmp_path / "small").write_bytes(b"frame")
    assert run(Options(target)).returned == bytes(5)
    assert run(Options(target, given={"memory": tmp_path / "frames"})).returned == b"frame"
    assert main(["run", target, f"memory={tmp_path / 'small'}"]) == 1
    assert "1048576 bytes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("bars", "words"),
    [
        ("{0: 100}", "other.py:3: ArgumentError: a BAR of 100 bytes of kind 'memory': a power"),
        ("{0: 16}", "other.py: D.far at 0x10..0x14 is behind none of the BARs, which show 0x0"),
        ("{}", "is behind none of the BARs, which show no registers"),
        ("{0: 64}, msix=2, msix_bar=0", "other.py: D.far ends at 0x14 of BAR 0, and the MSI-X"),
        ("{0: 64}, msi=3", "other.py:3: ArgumentError: msi is 3 vectors; 0, 1, 2, 4, 8"),
        ("{0: iodma.Bar(64, ram='none'), 1: 64}", "BAR 0 is its attribute none, which is None"),
    ],
)
def test_check_says_what_can_be_no_function(
    tmp_path: Path, bars: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"    pci = iodma.Pci(vendor=0x1234, device=1, bars={bars})\n"
    target = write(tmp_path, f"class D(iodma.Device):\n{line}    far = iodma.Register(0x10)\n")
    assert main(["check", target]) == 1
    out, err = capsys.readouterr()
    assert out == "" and words in err and len(err.splitlines()) == 1


SETTINGS = """
class D(iodma.Device):
    count: int = 3
    ident = iodma.Register(0x0)
    ratio: "float" = 0.5
    fast: bool = False
    label: str = "none"
    def __init__(self, port, speed: int, **more):
        super().__init__(port, **more)
        self.speed = speed
async def driver(device):
    return device.count, device.ratio, device.fast, device.label, device.speed
"""


def test_settings_are_plain_annotations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = write(tmp_path, SETTINGS)
    device = load(target).device
    assert endpoint_names(device) == []
    assert setting_names(device) == {
        "count": "int",
        "ratio": "float",
        "fast": "bool",
        "label": "str",
        "speed": "int",
    }
    given = {"speed": "0x10", "count": "7", "fast": "true", "label": "a//b c"}
    assert run(Options(target, given=given)).returned == (7, 0.5, True, "a//b c", 16)
    assert main(["check", target]) == 1
    assert "D cannot be made: TypeError" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("count=many", "count=many: 'many' is no int"),
        ("fast=perhaps", "fast=perhaps: 'perhaps' is no bool"),
        ("cuont=7", "D has no endpoint cuont; its endpoints: none; its settings: count, ratio"),
    ],
)
def test_a_setting_that_cannot_be(
    tmp_path: Path, given: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", write(tmp_path, SETTINGS), "speed=1", given]) == 1
    assert words in capsys.readouterr().err


# --- run ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["auto", "threads"])
def test_a_driver_moves_a_real_file(file: Path, tmp_path: Path, engine: str) -> None:
    (tmp_path / "disk.img").write_bytes(b"bytes" * 1000)
    result = run(Options(str(file), engine, 1, {"disk": tmp_path / "disk.img"}))
    assert result.returned == (1, "bytes")
    assert (result.device, result.interrupts, result.counts) == ("Copier", 1, {})
    assert result.seconds > 0


def test_an_endpoint_that_is_not_given_is_a_buffer(file: Path) -> None:
    assert run(Options(str(file))).returned == (1, "\0" * 5)


def test_run_on_the_command_line(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "disk.img").write_bytes(b"bytes" * 1000)
    arguments = ["run", f"{file}:Copier", f"disk={tmp_path}/disk.img", "--ram", "1"]
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["returned"] == [1, "bytes"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert "interrupts: 1" in out
    assert err == ""


def test_run_writes_a_trace(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "trace.json"
    assert main(["run", str(file), "--ram", "1", "--trace", str(out)]) == 0
    records = json.loads(out.read_text())["traceEvents"]
    assert {record["ph"] for record in records} >= {"X", "b", "e", "s", "f"}


def test_an_endpoint_that_the_device_has_not(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(file), f"disc={file}"]) == 1
    assert "Copier has no endpoint disc; its endpoints: disk" in capsys.readouterr().err
    assert main(["run", str(file), f"disk={tmp_path}/none"]) == 1
    assert f"{tmp_path}/none: No such file or directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("driver", "words"),
    [
        ("", "defines no `async def driver"),
        ("def driver(bus, device): pass\n", "defines no `async def driver"),
        ("async def driver(bus, cpu): pass\n", "driver asks for cpu; there are bus, device"),
        ("async def driver():\n    assert False, 'no'\n", r"other.py:5: AssertionError: no"),
        (
            "class E(iodma.Device):\n"
            "    go = iodma.Doorbell(0, run='fail')\n"
            "    async def fail(self, value):\n"
            "        raise OSError('in the device')\n"
            "async def driver(bus, base, engine):\n"
            "    bus.write32(base, 1)\n"
            "    await engine.sleep(30)\n",
            r"other.py:5: OSError: in the device",
        ),
        (
            "import asyncio\nasync def driver(bus):\n    await asyncio.sleep(1)\n",
            r"other.py:6: RuntimeError: .*await what iodma has, such as engine.sleep$",
        ),
    ],
)
def test_a_driver_or_device_that_fails_ends_the_run(
    tmp_path: Path, driver: str, words: str
) -> None:
    plain = "class D(iodma.Device):\n    a = iodma.Register(0)\n"
    device = "" if "class" in driver else plain
    with pytest.raises(LoadError, match=words):
        run(Options(write(tmp_path, device + driver)))


def test_a_driver_that_is_interrupted_is_told_where_it_waits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    driver = (
        "import signal\n"
        "class D(iodma.Device):\n    a = iodma.Register(0)\n"
        "async def driver(bus, engine):\n"
        "    engine.call_soon(lambda: signal.raise_signal(signal.SIGINT))\n"
        "    await iodma.Event(engine).wait()\n"
    )
    target = write(tmp_path, driver)
    with pytest.raises(KeyboardInterrupt):
        run(Options(target))
    assert caplog.messages == [f"the driver still waits, at {target}:7"]
