"""The public names are pinned: one that comes or goes changes public_names.txt too."""

import inspect
from pathlib import Path

import iodma

PINNED = {
    line
    for line in Path(__file__).with_name("public_names.txt").read_text().splitlines()
    if line and not line.startswith("#")
}


def test_public_names_are_those_pinned() -> None:
    assert len(iodma.__all__) == len(set(iodma.__all__))
    assert set(iodma.__all__) - PINNED == set(), "new: add to public_names.txt and the changelog"
    assert PINNED - set(iodma.__all__) == set(), "gone: see docs/stability.md"


def test_every_public_name_is_there_and_documented() -> None:
    for name in iodma.__all__:
        thing = getattr(iodma, name)
        if inspect.isclass(thing) or inspect.isroutine(thing):
            assert thing.__doc__, f"iodma.{name} has no docstring"
