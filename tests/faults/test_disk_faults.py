"""Edits, the place where one was, and exports, on a disk that is full, read-only or damaged: whole, or not there."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from memloc_core import edit_files
from memloc_tui import edits, state
from memloc_tui.files import write_whole
from memloc_tui.state import Resume
from tests.faults.rounds import rounds
from tests.faults.test_edit_faults import edit, run_of

ROOT = Path(__file__).parents[2]
ODD = (
    None,
    True,
    -1,
    0,
    10**30,
    1.5,
    "",
    "x" * 5000,
    "\x00\x1b[2J[red]",
    [],
    {},
    [[1]],
    [["a"] * 4],
    {"a": "b"},
    [10**9],
)

# Everything that is written, once; each either done or told in a sentence.
_WRITE = """
import os, sys
from pathlib import Path
from memloc_core.errors import MemlocError
from memloc_tui import edits, state
from memloc_tui.files import write_whole
from memloc_tui.state import Resume
from tests.faults.test_edit_faults import edit, run_of
folder, seed = Path(sys.argv[1]), int(sys.argv[2])
os.environ["MEMLOC_STATE_DIR"] = str(folder / "state")
run, text = run_of(edit(seed=seed)), "a row\\n" * 3000
{limit}
told = []
for write in (
    lambda: edits.store(run),
    lambda: state.save("m", "p", Resume(f"{{seed}}", filter="x" * 3000)),
    lambda: write_whole(folder / "export.csv", f"{{seed}} {{text}}"),
):
    try:
        write()
        told.append("written")
    except (MemlocError, OSError) as error:
        told.append(f"{{type(error).__name__}}: {{error}}")
print(*told, sep="\\n")
"""


def write(folder: Path, seed: int, limit: str) -> list[str]:
    command = [sys.executable, "-c", _WRITE.format(limit=limit), str(folder), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def held(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_on_a_full_disk_what_was_there_stays_and_nothing_half_is_left(tmp_path: Path, seen: Any) -> None:
    """A limit on the size of files stands in for the disk: both end a write in the middle."""
    n = rounds(2, 40)
    assert write(tmp_path, 0, "") == ["written"] * 3
    before, rng = held(tmp_path), random.Random(1)
    assert len(before) == 3
    for seed in range(1, n + 1):
        size = rng.randrange(1, 2500)
        told = write(tmp_path, seed, f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))")
        assert all("too large" in one.lower() or "no space" in one.lower() for one in told), told
        assert held(tmp_path) == before
    seen(f"{3 * n} writes to a full disk, each told in a sentence; the files that were there as they were")


def test_in_folders_that_are_read_only(tmp_path: Path) -> None:
    """As another user where the tests run as root, for whom nothing is read-only."""
    base = Path(tempfile.mkdtemp())
    try:
        base.chmod(0o755)
        assert write(base, 0, "") == ["written"] * 3
        before = held(base)
        become = ""
        if os.getuid() == 0:
            become = "os.setgroups([]); os.setgid(65534); os.setuid(65534)"
        for path in (base, *base.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        told = write(base, 1, become)
        assert all("denied" in one for one in told), told
        assert held(base) == before
    finally:
        for path in (base, *base.rglob("*")):
            path.chmod(0o700)
        shutil.rmtree(base)


def test_random_damage_to_the_place_where_one_was(seen: Any, no_code: Any) -> None:
    """It is read as it was written, or set aside with a notice: never an exception, never a value of another kind."""
    rng, n = random.Random(6), rounds(500, 10_000)
    whole = Resume(
        "abc", replacements={"abc": [[3, 9]]}, given=[1], switches={"a": "b"}, edits=[["f", "file", "n", "on"]]
    )
    state.save("m", "p", whole)
    path = state.state_file("m", "p")
    good = path.read_bytes()
    kinds = {f.name: type(getattr(Resume(), f.name)) for f in dataclasses.fields(Resume)}
    asides = 0
    for number in range(n):
        if number % 2:
            record = json.loads(good)
            key = rng.choice(sorted(record))
            kind = rng.randrange(3)
            if kind == 0:
                del record[key]
            else:
                record[key if kind == 1 else "more"] = rng.choice(ODD)
            data = json.dumps(record).encode()
        else:
            changed = bytearray(good)
            for _ in range(rng.choice((1, 2, 20))):
                at = rng.randrange(len(changed))
                changed[at : at + rng.randint(0, 3)] = rng.randbytes(rng.randint(0, 3))
            data = bytes(changed)
        path.write_bytes(data)
        resume, notice = state.load("m", "p")
        assert all(type(getattr(resume, name)) is kind for name, kind in kinds.items())
        if notice:
            asides += 1
            assert path.with_suffix(".broken").read_bytes() == data
            assert resume == Resume()
    seen(f"{n:,} damaged resume files: {asides:,} set aside with a notice, {n - asides:,} read")


async def test_the_explorer_opens_wherever_a_damaged_file_says_it_was(seen: Any) -> None:
    """Values of the right kind that mean nothing here: a tab, a head, an edit, a token that there is not."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "app"))
    from fake import FakeSession

    from memloc_tui.app import MemlocApp
    from memloc_tui.settings import Settings
    from tests.app.helpers import opened

    rng, n = random.Random(12), rounds(3, 100)
    texts = ("", "nonsense", "\x1b[2J[red]", "perturb", "EM", "x" * 500, "em>=50", "-1", "unlearn", "gradient")
    numbers = (0, -1, 7, 49, 50, 10**6, -(10**9), 2**63)

    def odd(value: Any) -> Any:
        if isinstance(value, bool):
            return rng.random() < 0.5
        if isinstance(value, str):
            return rng.choice(texts)
        return rng.choice(numbers)

    def pairs() -> list[list[int]]:
        return [[rng.choice(numbers), rng.choice(numbers)] for _ in range(rng.randint(0, 3))]

    for _ in range(n):
        resume = Resume(paragraph="003abc")
        for f in dataclasses.fields(Resume):
            if rng.random() < 0.5:
                continue
            value = getattr(resume, f.name)
            if f.name == "draws":
                value = rng.randint(1, 99)
            elif f.name == "ablated":
                value = pairs()
            elif f.name == "replacements":
                value = {rng.choice((*texts, "003abc")): pairs() for _ in range(3)}
            elif f.name == "tried":
                value = {"003abc": [[rng.choice(("true", "own")), pairs(), pairs()] for _ in range(3)]}
            elif f.name == "head":
                value = [rng.choice(numbers), rng.choice(numbers)]
            elif f.name == "edits":
                value = [[rng.choice(texts) for _ in range(4)] for _ in range(rng.randint(0, 2))]
            elif f.name in ("switches", "unlearn"):
                names = (*texts, "steps", "goal", "mask", "sparsity", "place", "gradients", "score")
                value = {rng.choice(names): rng.choice(texts) for _ in range(rng.randint(0, 4))}
            elif isinstance(value, list):
                value = [rng.choice(numbers if f.name == "given" else texts) for _ in range(rng.randint(0, 3))]
            else:
                value = odd(value)
            setattr(resume, f.name, value)
        state.save("fake", "fake", resume)
        app = MemlocApp(Settings(model="fake", paragraphs="fake"), FakeSession())  # type: ignore[arg-type]
        async with app.run_test(size=(120, 36)) as pilot:
            if not resume.filter:
                await opened(pilot)
            for key in "4567890w":
                await pilot.press(key)
            await pilot.press("o", "o", "escape")
            assert not [n for n in app._notifications if "Something went wrong" in n.message], resume
    seen(f"{n} odd places to open at")


def test_two_explorers_keep_edits_and_places_at_once(tmp_path: Path, seen: Any) -> None:
    n = rounds(4, 60)
    running = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITE.format(limit=""), str(tmp_path), str(seed)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for seed in range(4)
    ]
    for process in running:
        out, err = process.communicate(timeout=60)
        assert out.splitlines() == ["written"] * 3, err
    os.environ["MEMLOC_STATE_DIR"] = str(tmp_path / "state")
    assert {one.summary is not None for one in edits.stored()} == {True}
    assert len(edits.stored()) == 4
    found, notice = state.load("m", "p")
    assert found.paragraph in "0123"
    assert not notice
    for number in range(n):
        run = run_of(edit(seed=number % 3))
        assert edit_files.read_edit(edits.store(run)).result.edit.fingerprint == run.result.edit.fingerprint
        write_whole(tmp_path / "export.csv", str(number))
    assert not list(tmp_path.rglob(".*"))
    seen("4 explorers writing at once: every edit and the place whole")


pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="limits and users as POSIX has them")
