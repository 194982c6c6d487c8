"""The Unlearn tab on the embedded model in a real terminal: a run is watched, paused, stopped; its engine is killed."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from tests.e2e.test_explorer import current, engine_of, known_and_settled
from tests.terminal import ENTER, ESCAPE, Terminal

COMMAND = [sys.executable, "-m", "memloc_tui"]
READY, SLOW = 90.0, 300.0
DOWN, RIGHT = "\x1b[B", "\x1b[C"
STEP = re.compile(r"unlearn (\d+)/500")


def step_of(text: str) -> int:
    """The run's step as the top line says it, -1 where it says none."""
    found = STEP.search(text.split("\n")[0])
    return int(found[1]) if found else -1


def exact_match(model: Any, ids: torch.Tensor) -> int:
    """By a plain pass of transformers' forward."""
    with torch.no_grad():
        said = model(input_ids=ids[None]).logits[0, 49:-1].argmax(-1)
    matches = (said == ids[50:]).tolist()
    return matches.index(False) if False in matches else 50


def edited_exact_match(model: Any, file: Path, ids: torch.Tensor) -> int:
    """The same with the file's values written into the weights, as its format says; they are put back."""
    parameters = dict(model.named_parameters())
    with safe_open(str(file), "pt") as edit:
        names = json.loads(edit.metadata()["parameters"])
        starts, indices = edit.get_tensor("result.edit.starts"), edit.get_tensor("result.edit.indices")
        new = edit.get_tensor("result.edit.new")
    before = {name: parameters[name].detach().clone() for name in names}
    try:
        with torch.no_grad():
            for i, name in enumerate(names):
                at = indices[starts[i] : starts[i + 1]]
                parameters[name].view(-1)[at] = new[starts[i] : starts[i + 1]]
        return exact_match(model, ids)
    finally:
        with torch.no_grad():
            for name, value in before.items():
                parameters[name].copy_(value)


def test_a_run_is_watched_paused_stopped_flipped_to_and_survives_its_engine(
    demo: Any, demo_paragraphs: Any, scored: None, tmp_path: Path
) -> None:
    environment = {"MEMLOC_STATE_DIR": str(tmp_path / "state"), "MEMLOC_CACHE_DIR": str(tmp_path / "cache")}
    with Terminal(COMMAND, env=environment) as terminal:
        terminal.until(lambda text: known_and_settled(text) and not re.search(r"EM [\d,]+/\d", text), READY)
        row = current(terminal, demo_paragraphs)
        ids = torch.from_numpy(demo_paragraphs.tokens[row])
        terminal.type("x")
        terminal.until(lambda text: re.search(r"weights · ≤ \d+:\d\d", text), SLOW)
        # goal: to the last step, 500 of them; eight paragraphs kept.
        for keys, seen in (
            (DOWN * 2, "goal "),
            (RIGHT, "‹ forget ›"),
            (RIGHT, "‹ steps ›"),
            (DOWN * 3, "‹ 100▏ ›"),
            ("5", "‹ 5▏ ›"),
            ("00", "‹ 500▏ ›"),
            (DOWN * 3, "‹ 96▏ ›"),
            ("8", "‹ 8▏ ›"),
        ):
            terminal.type(keys)
            terminal.until(seen, READY)
            terminal.settle(0.2, 2.0)
        terminal.type(ENTER)
        text = terminal.until(lambda text: step_of(text) >= 3 and re.search(r"changed EM +50\.0 → ", text), SLOW)
        assert "others' EM" in text

        terminal.type(" ")
        terminal.until(lambda text: "paused" in text.split("\n")[0], READY)
        at = int(re.search(r"paused at (\d+)", terminal.text)[1])
        terminal.settle(0.5, 2.0)
        assert f"paused at {at}" in terminal.text
        terminal.type("]")  # a click is answered meanwhile
        terminal.until(lambda text: current(terminal, demo_paragraphs) != row and "EM 50 of 50" in text, READY)
        terminal.type("[")
        terminal.until(lambda text: current(terminal, demo_paragraphs) == row and "EM 50 of 50" in text, READY)
        terminal.type(" ")
        terminal.until(lambda text: step_of(text) > at, SLOW)

        terminal.type(ESCAPE)
        text = terminal.until(lambda text: re.search(r"original weights \(E [0-9a-f]{8}\)", text), READY)
        name = re.search(r"original weights \(E ([0-9a-f]{8})\)", text)[1]
        (file,) = (tmp_path / "state" / "edits").glob("*.safetensors")
        assert file.name.startswith(name)
        edited = edited_exact_match(demo.model, file, ids)
        assert exact_match(demo.model, ids) == 50

        def shows(em: int, top: str) -> Any:
            """The list's line of the paragraph, the continuation and the top line, in one frame."""

            def holds(text: str) -> bool:
                line = next((line for line in text.split("\n") if "▸" in line[:4]), "")
                listed = re.search(r"▸\s?[0-9a-f]{4,}\s+(\d+)", line)
                said = re.search(r"3 Continuation.* EM (\d+) of 50", text)
                return bool(listed and said and int(listed[1]) == int(said[1]) == em and top in text.split("\n")[0])

            return holds

        terminal.type("E")
        terminal.until(shows(edited, f"edits: {name} on"), SLOW)
        terminal.type("E")
        terminal.until(shows(50, "original weights"), READY)

        terminal.type("x")
        # Another seed: the same run would come to the same edit.
        for keys, seen in (("", "‹ 8▏ ›"), (DOWN, "‹ 0▏ ›"), (RIGHT, "‹ 1▏ ›")):
            terminal.type(keys)
            terminal.until(seen, READY)
            terminal.settle(0.2, 2.0)
        terminal.type(ENTER)
        # Once it has come to something: before that its best step is the one before the first, and nothing is kept.
        terminal.until(lambda text: step_of(text) >= 2 and re.search(r"changed EM +50\.0 → (?!50)\d", text), SLOW)
        os.kill(engine_of(terminal), signal.SIGKILL)
        terminal.until(lambda text: "killed by signal 9" in text and step_of(text) < 0, READY)
        assert len(list((tmp_path / "state" / "edits").glob("*.safetensors"))) == 2
        terminal.type("r")
        terminal.until(shows(50, "original weights"), SLOW)
        terminal.type("q")
        assert terminal.wait_exit() == 0
