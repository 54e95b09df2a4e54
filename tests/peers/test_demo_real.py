"""`iodma demo` on a large real file, as a user runs it: against coreutils' own SHA-256."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SIZE = 300_000_001


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter and what lies beside it, again and again, with a tail that is odd."""
    path = tmp_path_factory.mktemp("demo") / "large.bin"
    real = Path(sys.executable).resolve().read_bytes() + Path(json.__file__).read_bytes()
    with open(path, "wb") as file:
        while file.tell() < SIZE:
            file.write(real + os.urandom(1_000_003))
        file.truncate(SIZE)
    return path


@pytest.mark.limit(180)
@pytest.mark.parametrize(
    "options",
    [
        ["--engine", "auto"],
        ["--engine", "threads"],
        ["--engine", "auto", "--direct"],
        ["--engine", "threads", "--direct"],
    ],
    ids=" ".join,
)
def test_a_large_file_arrives(large: Path, options: list[str], peer: Callable[[str], str]) -> None:
    told = subprocess.run(
        [peer("sha256sum"), str(large)], capture_output=True, text=True, timeout=60, check=True
    )
    done = subprocess.run(
        [sys.executable, "-m", "iodma", "demo", str(large), "--json", *options],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if "--direct" in options and "Invalid argument" in done.stderr:
        pytest.skip("this file system has no O_DIRECT")
    assert (done.returncode, done.stderr) == (0, "")
    data = json.loads(done.stdout)
    assert data["sha256"] == told.stdout.split()[0]
    assert (data["bytes_to_memory"], data["bytes_from_memory"]) == (SIZE, SIZE)
    assert data["python_bytes"] == 0
    bounced = data["bounced"]
    assert bounced["alignment"] < 8192 if "--direct" in options else bounced["alignment"] == 0
    assert bounced["lanes"] == bounced["not_ram"] == bounced["small"] == 0
