# SPDX-License-Identifier: Apache-2.0
"""docs/tutorial-pci.md from step 4 on: its device is served, QEMU has it with the options that are
printed, and every command of the page is run in a guest and prints what the page says.

What a console block after `<!-- guest -->` has behind `# ` is run there, in one shell a block; what
is below is printed, where `...` stands for anything. What it needs comes as
test_vfio_user_qtest.py says.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.peers.guests.foreign import Foreign
from tests.peers.guests.qemu import Boot, Machine
from tests.peers.guests.root import pack
from tests.peers.vfio_user.build import amd64, compile_module
from tests.peers.vfio_user.machine import Served, VfioQemu
from tests.unit.test_docs import Block, blocks

PAGE = Path(__file__).parents[2] / "docs" / "tutorial-pci.md"
MARK = "@@"
#: What a guest of the tests has no need or no means of: its modules are loaded.
PRELUDE = "modprobe() { :; }; cp /tutorial/* . 2>/dev/null || :"


class Written(Served):
    """The page's device, served by the page's command."""

    def __init__(self, work: Path, command: str) -> None:
        super().__init__(work, "rung1_registers.py", id="tutorial")
        self.words = shlex.split(command)
        self.folder = work

    def command(self) -> Sequence[str]:
        command = shlex.join([sys.executable, "-m", *self.words])
        return ["sh", "-c", f"cd {shlex.quote(str(self.folder))} && exec {command}"]


def parts(block: Block, prompt: str) -> list[tuple[str, str]]:
    """The commands of a block, each with what it prints."""
    found = re.split(rf"^{re.escape(prompt)}", block.text, flags=re.MULTILINE)[1:]
    return [(line, shown.strip()) for line, _, shown in (each.partition("\n") for each in found)]


def matches(shown: str, said: str) -> bool:
    # What a shell says of its jobs, and lspci of a list of names that is not there, is not shown.
    lines = [line for line in said.splitlines() if not line.startswith(("[1]", "lspci:"))]
    pattern = re.escape(shown).replace(r"\.\.\.", ".*")
    return re.fullmatch(pattern, "\n".join(lines).strip(), re.DOTALL) is not None


@pytest.mark.limit(300)
def test_every_step_in_a_guest(work: Path, qemu11: Foreign, vfio_boot: Boot) -> None:
    page = list(blocks(PAGE))
    for block in page:
        if block.directive == "file":
            (work / block.name).write_text(block.text)
    host = {block.name: block for block in page if block.directive == "host"}
    environment = dict(os.environ, PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")

    (making, _), (serving, banner) = parts(host["serves"], "$ ")
    subprocess.run(["bash", "-c", making], cwd=work, check=True, timeout=20)
    with Written(work, serving) as server:
        assert matches(banner.replace("uring", "..."), server.said()), server.said()

        ((starting, _),) = parts(host["guest"], "$ ")
        (printing,) = re.findall(r"\$\((.*?)\)", starting)
        options = subprocess.run(
            ["sh", "-c", f"printf '%s\\n' $({printing})"],
            cwd=work,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=50,
        ).stdout.splitlines()
        # The same socket, seen from another folder.
        options = [word.replace('"reader.sock"', f'"{work}/reader.sock"') for word in options]
        (kernel,) = re.findall(r"mem=\w+", starting)

        boot = with_module(work, vfio_boot, next(b for b in page if b.name == "block_reader.c"))
        machine = Machine(options=tuple(options), kernel=kernel)
        with VfioQemu(work, boot, qemu11, [], machine) as guest:
            guest.start()
            variables = ""
            for block in page:
                if block.directive == "guest":
                    variables += follow(guest, block, variables)
        server.stop()


def follow(guest: VfioQemu, block: Block, variables: str) -> str:
    """Runs a block; gives the variables that it set, for those to come."""
    script, shown = f"set +e\n{PRELUDE}\n{variables}", []
    for number, (command, prints) in enumerate(parts(block, "# ")):
        script += f"echo {MARK}{number}\n{command}\n"
        shown.append((command, prints))
    said = guest.run(f"{script}echo {MARK}end\n", seconds=40).output
    for number, (command, prints) in enumerate(shown):
        _, _, rest = said.partition(f"{MARK}{number}\n")
        got = rest.partition(f"{MARK}")[0]
        assert matches(prints, got), f"{PAGE.name}:{block.line}: # {command}\n{got}\n---\n{said}"
    return "".join(f"{command}\n" for command, _ in shown if re.match(r"[A-Z]+=", command))


def with_module(work: Path, boot: Boot, source: Block) -> Boot:
    """The page's driver, compiled, in the guest's folder /tutorial."""
    folder = work / "module"
    sources = work / "sources"
    sources.mkdir()
    (sources / source.name).write_text(source.text)
    (sources / "Kbuild").write_text("obj-m := block_reader.o\n")
    kernel = amd64()
    module = compile_module("block_reader", kernel, folder, sources)
    more = work / "root" / "tutorial"
    names = work / "root" / "usr/share/misc"
    for place in (more, names):
        place.mkdir(parents=True)
    shutil.copy(module, more)
    shutil.copy(kernel.files.one("usr/share/misc/pci.ids"), names)
    # The kernel unpacks several archives that stand one behind the other.
    extra = pack(work / "root", work / "more.cpio")
    initramfs = work / "initramfs.cpio"
    initramfs.write_bytes(boot.initramfs.read_bytes() + extra.read_bytes())
    return Boot(boot.kernel, initramfs)
