"""Every code block of the documentation is run, and every link in it leads somewhere.

The blocks of a page run in their order, in one namespace and one empty folder:

- ``python``: executed. After a comment `<!-- file: NAME -->` it is written to that file instead,
  after `<!-- add to: NAME -->` at the file's end.
- ``console``: each line after `$ ` is a command that must succeed. The lines below it are what it
  prints, where `...` stands for anything.
- After `<!-- no-run -->`, or in another language: not run. What stands after `<!-- guest -->` and
  `<!-- host -->` takes a virtual machine: tests/peers/test_tutorial_pci.py runs it.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import iodma
from iodma.transfer import diagram

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ALL = [*PAGES, ROOT / "CHANGELOG.md"]
KINDS = ("tutorial", "how-to", "reference", "design", "stability", "dependencies")

FENCE = re.compile(r"^```(\w*)\s*$")
DIRECTIVE = re.compile(r"^<!-- (no-run|file|add to|guest|host)(?:: (.*))? -->$")
ELSEWHERE = ("no-run", "guest", "host")


@dataclass(frozen=True)
class Block:
    """A fenced block: where its first line is, its language, its text, what stands before it."""

    line: int
    language: str
    text: str
    directive: str = ""
    name: str = ""


def blocks(page: Path) -> Iterator[Block]:
    directive = name = ""
    start, language, lines = 0, "", list[str]()
    for number, line in enumerate(page.read_text().splitlines(), 1):
        fence = FENCE.match(line)
        if start:
            if fence:
                yield Block(start, language, "\n".join(lines) + "\n", directive, name)
                start, directive, name = 0, "", ""
            else:
                lines.append(line)
        elif fence:
            start, language, lines = number + 1, fence[1], []
        elif found := DIRECTIVE.match(line):
            directive, name = found[1], found[2] or ""
        elif line.strip():
            directive = name = ""
    assert not start, f"{page.name}:{start}: this block is not closed"


def runs(block: Block) -> bool:
    return block.language in ("python", "console") and block.directive not in ELSEWHERE


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(map(runs, blocks(page)))], ids=lambda page: page.stem
)
def test_every_block_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    beside = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{beside}{os.pathsep}{os.environ['PATH']}")
    namespace: dict[str, object] = {"__name__": page.stem}
    try:
        run_page(page, namespace)
    finally:  # a page's own modules go with it
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
                del sys.modules[name]


def run_page(page: Path, namespace: dict[str, object]) -> None:
    for block in filter(runs, blocks(page)):
        if block.language == "console":
            run_console(page, block)
        elif block.directive == "file":
            Path(block.name).write_text(block.text)
        elif block.directive == "add to":
            with open(block.name, "a") as file:
                file.write(block.text)
        else:
            # So that a traceback names the page and the line in it.
            code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
            exec(code, namespace)


def run_console(page: Path, block: Block) -> None:
    for command in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        line, _, shown = command.partition("\n")
        done = subprocess.run(
            ["bash", "-c", line], capture_output=True, text=True, timeout=50, check=False
        )
        where = f"{page.name}:{block.line}: {line}"
        assert done.returncode == 0, f"{where}\n{done.stdout}{done.stderr}"
        if shown.strip():
            pattern = re.escape(shown.strip()).replace(r"\.\.\.", r".*")
            found = re.fullmatch(pattern, done.stdout.strip(), re.DOTALL)
            assert found, f"{where} prints:\n{done.stdout}"


# --- links ----------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as forges make them."""
    found: set[str] = set()
    fenced = False
    for line in page.read_text().splitlines():
        fenced ^= line.startswith("```")
        if not fenced and (heading := re.match(r"#+ (.*)", line)):
            text = re.sub(r"[^\w\- ]", "", heading[1].lower())
            found.add(text.strip().replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", ALL, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (page.parent / file) if file else page
        assert there.exists(), f"{page.name}: there is no {target}"
        assert not anchor or anchor in anchors(there), f"{page.name}: there is no {target}"


def test_every_page_is_reached_from_the_readme() -> None:
    readme, index = (ROOT / "README.md").read_text(), (ROOT / "docs" / "README.md").read_text()
    for kind in ("README", *KINDS):
        assert f"(docs/{kind}.md)" in readme
    for page in PAGES[1:]:
        if page.name != "README.md":
            assert f"({page.name})" in index, f"docs/README.md does not lead to {page.name}"


# --- the reference --------------------------------------------------------------------------------


def sections() -> dict[str, str]:
    """Name -> text of its section in the reference."""
    found: dict[str, str] = {}
    name = ""
    for line in (ROOT / "docs" / "reference.md").read_text().splitlines():
        if heading := re.match(r"### `(\w+)`", line):
            name = heading[1]
            assert name not in found, f"{name} has two sections"
            found[name] = ""
        elif re.match(r"##? ", line):
            name = ""
        elif name:
            found[name] += line + "\n"
    return found


def test_every_public_name_has_a_section() -> None:
    there = sections()
    public = {name for name in iodma.__all__ if not name.startswith("__")}
    assert public - set(there) == set(), "not in the reference"
    assert set(there) - public == set(), "in the reference, and not public"


def members(kind: type) -> set[str]:
    """The public attributes of a class that iodma itself gives it."""
    found: set[str] = set()
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] == "iodma":
            found |= {*vars(base), *getattr(base, "__annotations__", ())}
    return {name for name in found if not name.startswith("_")}


@pytest.mark.parametrize(
    "name", [name for name in iodma.__all__ if isinstance(getattr(iodma, name), type)]
)
def test_a_section_names_everything_public(name: str) -> None:
    kind = getattr(iodma, name)
    text = sections().get(name, "")
    assert text.strip(), f"{name} has no section, or an empty one"
    # What it has from a base with a section of its own is described there.
    wanted = members(kind)
    for base in kind.__mro__[1:]:
        if base.__name__ in iodma.__all__ and f"`{base.__name__}`" in text:
            wanted -= members(base)
    missing = {
        each
        for each in wanted
        if not re.search(
            rf"`[^`]*\b{each}\b[^`]*`|^\s*{each}\b|"
            rf"\.{each}\(",
            text,
            re.MULTILINE,
        )
    }
    assert not missing, f"the section on {name} does not name {sorted(missing)}"


# --- the design -----------------------------------------------------------------------------------


def test_the_diagram_of_states_is_that_of_the_core() -> None:
    (drawn,) = [b.text for b in blocks(ROOT / "docs" / "design.md") if b.language == "mermaid"]
    assert drawn.strip() == diagram().strip(), f"docs/design.md should have:\n{diagram()}"
    for line in drawn.splitlines()[1:]:  # Mermaid's grammar: a label ends at a colon or semicolon
        assert re.fullmatch(r"    \w+ --> \w+: [^:;]+", line), line


def test_the_house_is_drawn_as_it_stands() -> None:
    text = (ROOT / "docs" / "design.md").read_text()
    package = ROOT / "src" / "iodma"
    for each in package.iterdir():
        if each.name.startswith("_") or each.suffix in (".so", ".typed", ".pyi"):
            continue
        if each.is_dir() and not list(each.glob("*.py")):
            continue
        shown = f"{each.name}/" if each.is_dir() else each.name
        assert shown in text, f"docs/design.md does not show {shown}"
