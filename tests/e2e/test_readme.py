"""Every command and example of the README and docs/, run as it stands there, with a few names filled in."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from memloc_core.demo import MODEL_FOLDER
from memloc_core.requests import ExactMatch
from tests.conftest import result
from tests.e2e.conftest import Memloc

TREE = Path(__file__).parents[2]
PAGES = (TREE / "README.md", *sorted((TREE / "docs").glob("*.md")))

# What a reader would fill in, by the names of the folder below.
FILLED = {"path/to/checkpoint": "checkpoint", "cuda:0": "cpu", "$(memloc-tui completion bash)": ""}
# What would take minutes is asked for less; the command is otherwise the page's own.
SHORTER = {
    "unlearn": ("--keep", "8", "--relearn", "0"),
    "compare-masks": ("--limit", "1", "--masks", "top", "--objectives", "unlearn", "--steps", "3", "--keep", "8"),
    "findings": ("--only", "all-or-nothing"),
    "detect": ("--limit", "60"),
    "compare": ("--limit", "2"),
    "analyze": ("--limit", "16"),  # ten of them are unrelated
}
# What a test cannot do: a window in a browser, a person at a terminal, a network, a cluster. Their options are checked.
UNRUN = ("serve", "tour", "download")
# These need nothing of the others, so they run beside them.
APART = ("analyze", "findings", "detect")


def blocks(language: str) -> list[str]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        found += [
            body
            for name, body in re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
            if name == language
        ]
    return found


def commands() -> list[str]:
    """Each command of the pages, once, in their order: in blocks, and between backquotes where it is a whole one."""
    lines = [line for body in blocks("") for line in body.replace("\\\n", " ").splitlines()]
    inline = [
        found for page in PAGES for found in re.findall(r"`(memloc-tui [^`]+)`", page.read_text(encoding="utf-8"))
    ]
    wanted = (re.sub(r"^ssh .*? memloc-tui", "memloc-tui", re.sub(r"\s+#.*", "", line)) for line in (*lines, *inline))
    return list(dict.fromkeys(" ".join(line.split()) for line in wanted if line.startswith("memloc-tui")))


def words(command: str) -> list[str]:
    for name, value in FILLED.items():
        command = command.replace(name, value)
    return shlex.split(command)[1:]


def test_there_are_commands_to_check() -> None:
    names = {words(command)[0] for command in commands() if words(command)}
    assert {"scan", "unlearn", "analyze", "edits", "report", "serve", "tour", "findings", "--model"} <= names
    assert len(blocks("python")) == 1


@pytest.fixture(scope="module")
def place(demo, demo_paragraphs, scored_cache, tmp_path_factory) -> Path:
    """A reader's folder: a checkpoint, rows of it, a corpus, and the cache of an earlier visit."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(scored_cache, folder / "cache")
    shutil.copytree(MODEL_FOLDER, folder / "checkpoint")
    em = result(demo, ExactMatch(tuple(map(tuple, demo_paragraphs.tokens.tolist())))).em
    rows = [*np.flatnonzero(em == 50)[:10], *np.flatnonzero(em <= 10)[:10]]
    lines = [json.dumps({"tokens": demo_paragraphs.tokens[row].tolist()}) + "\n" for row in rows]
    (folder / "rows.jsonl").write_text("".join(lines))
    (folder / "corpus.jsonl").write_text("".join(lines[8:12]))
    (folder / "id").write_text(demo_paragraphs.ids[rows[0]])
    return folder


@pytest.mark.parametrize("apart", [True, False])
def test_every_command_of_the_readme_does_what_it_says(memloc: Memloc, place: Path, apart: bool) -> None:
    for command in commands():
        arguments = [(place / "id").read_text() if word == "ID" else word for word in words(command)]
        if not arguments or arguments == ["scan"]:  # a name in a sentence
            continue
        name = arguments[0]
        if (name in APART) != apart:
            continue
        if name in UNRUN or "/shared/" in command or "--stream" in command:
            arguments.append("--help")
        elif "--paragraph" not in arguments or name == "unlearn":
            arguments += SHORTER.get(name, ())
        done = memloc(*arguments)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        if "--json" in arguments and "--help" not in arguments:
            json.loads(done.stdout)
    left = ["recited.parquet", "gone.safetensors", "edited-checkpoint/config.json", "report.html", "figure5/table.md"]
    left = ["em.jsonl"] if apart else left
    assert [file for file in left if not (place / file).exists()] == []


def test_the_library_example_runs_and_its_numbers_are_those_of_the_model(capsys, demo, demo_paragraphs) -> None:
    (example,) = blocks("python")
    exec(compile(example, "README.md", "exec"), {})
    rows = tuple(demo_paragraphs.row(i) for i in range(24))
    recited = int((result(demo, ExactMatch(rows)).em == 50).sum())
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"{recited} of 24 recited whole"
    assert re.fullmatch(r"costliest position: \d+ drop: \d+\.0", second)
