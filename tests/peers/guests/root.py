# SPDX-License-Identifier: Apache-2.0
"""What a guest runs: programs of this machine and modules of a kernel, as a folder or an initramfs.

Invariants:

- Everything comes from Debian packages that are installed here (scripts/prerequisites.sh lists
  them) or unpacked (foreign.py), each program with its libraries; nothing needs root.
- What is made is in the folder that was asked for, and nowhere else.
- Modules are loaded in the order of their names: each after those that it depends on, which is what
  the kernel's own modules.dep says, or where nobody has made that yet, the modules themselves.
"""

from __future__ import annotations

import lzma
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.peers.guests.foreign import Foreign

INIT = Path(__file__).with_name("init.sh")
#: Beside busybox, whose applets would win over a program of the same name. mkfs.ext4 is mke2fs.
PROGRAMS = ("fio", "mkfs.ext4", "e2fsck")
FOLDERS = ("bin", "dev", "proc", "sys", "tmp", "mnt", "lib/modules")

#: The last entry of an initramfs: where it is missing, the guest's memory was too small for all.
LAST = "~"


def find_program(name: str) -> str:
    """The path of a program that may be root's. Raises FileNotFoundError."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        raise FileNotFoundError(f"this machine has no program {name!r}")
    return found


def make_root(
    folder: Path,
    modules: Sequence[Path],
    *,
    programs: Sequence[str] = PROGRAMS,
    busybox: Path | None = None,
) -> Path:
    """Fills `folder`, which must not exist yet, with the root of a guest.

    Args:
        programs: This machine's, in place of busybox's.
        busybox: Of the guest's architecture; None: this machine's. They are of one version, or what
            one of them does not have is missing in the guest.
    """
    for name in FOLDERS:
        (folder / name).mkdir(parents=True)
    ours = find_program("busybox")
    shutil.copy(busybox or ours, folder / "bin/busybox")
    listed = subprocess.run([ours, "--list"], capture_output=True, text=True, check=True)
    for applet in listed.stdout.split():
        if applet != "busybox" and applet not in programs:
            (folder / "bin" / applet).symlink_to("busybox")
    for name in programs:
        path = find_program(name)
        shutil.copy(path, folder / "bin" / name)
        told = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
        for library in re.findall(r"(/\S+) \(0x", told):
            copy = folder / library.lstrip("/")
            if not copy.exists():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(library, copy)
    for place, module in enumerate(modules):
        shutil.copy(module, folder / "lib/modules" / f"{place:02d}-{module.name}")
    shutil.copy(INIT, folder / "init")
    (folder / "init").chmod(0o755)
    (folder / LAST).touch()
    return folder


def add_foreign(folder: Path, foreign: Foreign, program: str) -> None:
    """Puts an unpacked program and its libraries where its loader looks for them."""
    path, (loader, *libraries) = foreign.needed(program)
    (folder / "bin" / program).unlink(missing_ok=True)  # busybox's
    shutil.copy(path, folder / "bin" / program)
    for file, place in ((loader, "lib64"), *((file, "lib") for file in libraries)):
        (folder / place).mkdir(exist_ok=True)
        shutil.copy(file, folder / place / file.name)


def find_modules(tree: Path, names: Sequence[str]) -> list[Path]:
    """The files of these modules and of those that they need, each after what it depends on.

    Modules that are built into the kernel have none.

    Args:
        tree: A kernel's modules, e.g. /lib/modules/6.1.0-1-amd64.
        names: As modprobe takes them.

    Raises:
        FileNotFoundError: The kernel has no such module.
    """
    needs: dict[str, list[str]] = {}
    if (tree / "modules.dep").exists():
        for line in (tree / "modules.dep").read_text().splitlines():
            path, _, others = line.partition(":")
            needs[_module_name(path)] = [path, *others.split()]
    else:
        needs = _found_needs(tree, names)
    built_in = {_module_name(line) for line in (tree / "modules.builtin").read_text().split()}
    found: dict[Path, None] = {}
    for name in names:
        if name not in needs and name not in built_in:
            raise FileNotFoundError(f"{tree} has no module {name!r}")
        for path in reversed(needs.get(name, [])):
            found[tree / path] = None
    return list(found)


def _found_needs(tree: Path, names: Sequence[str]) -> dict[str, list[str]]:
    """As modules.dep has it for these modules: each one's path, then the paths of all it needs."""
    paths = {_module_name(path.name): path for path in tree.glob("kernel/**/*.ko")}

    def visit(name: str, seen: dict[str, None]) -> dict[str, None]:
        path = paths.get(_module_name(name))
        if path is not None:
            data = b"\0" + path.read_bytes()
            told = re.search(rb"\0depends=([^\0]*)\0", data)
            for other in told[1].decode().split(",") if told and told[1] else ():
                visit(other, seen)
            seen[str(path.relative_to(tree))] = None
        return seen

    return {name: list(reversed(visit(name, {}))) for name in names if _module_name(name) in paths}


def _module_name(path: str) -> str:
    return Path(path).name.split(".")[0].replace("-", "_")


def pack(folder: Path, archive: Path) -> Path:
    """Writes `folder` as an initramfs: an uncompressed cpio archive, format "newc"."""
    with open(archive, "wb") as out:
        for number, (name, path) in enumerate(_entries(folder), 1):
            status = path.lstat()
            data = b""
            if path.is_symlink():
                data = os.readlink(path).encode()
            elif path.is_file():
                data = path.read_bytes()
            links = 2 if path.is_dir() else 1
            out.write(_cpio_entry(name, number, status.st_mode, links, data))
        out.write(_cpio_entry("TRAILER!!!", 0, 0, 1, b""))
    return archive


def _entries(folder: Path) -> Iterator[tuple[str, Path]]:
    """Everything below a folder, each folder before what is in it."""
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        assert stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode), path
        yield str(path.relative_to(folder)), path


def _cpio_entry(name: str, number: int, mode: int, links: int, data: bytes) -> bytes:
    """cpio(5): inode, mode, uid, gid, links, mtime, size, four device numbers, name size, check."""
    padded = name.encode() + b"\0"
    fields = (number, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(padded), 0)
    header = b"070701" + b"".join(b"%08x" % field for field in fields) + padded
    return header + bytes(-len(header) % 4) + data + bytes(-len(data) % 4)


def generic_kernel() -> tuple[Path, Path]:
    """Debian's generic kernel and its modules, the newest that is installed.

    Raises:
        FileNotFoundError: There is none.
    """
    found = []
    for image in Path("/boot").glob("vmlinuz-*[0-9]-amd64"):
        tree = Path("/lib/modules") / image.name.removeprefix("vmlinuz-")
        if (tree / "modules.dep").exists():
            found.append(([int(number) for number in re.findall(r"\d+", image.name)], image, tree))
    if not found:
        raise FileNotFoundError("no kernel of the package linux-image-amd64 in /boot")
    _, image, tree = max(found)
    return image, tree


def unpack_kernel(image: Path, out: Path) -> Path:
    """Takes the ELF file out of a kernel image; returns the image if it is not packed with xz.

    A guest that starts from that file is 2 to 4 s faster: no emulated processor unpacks it.
    """
    data = image.read_bytes()
    begin = data.find(b"\xfd7zXZ\0")
    if begin < 0:
        return image
    out.write_bytes(lzma.LZMADecompressor().decompress(data[begin:]))
    return out
