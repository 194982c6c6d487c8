"""The panels on the embedded model: a real terminal, the real engine, one start."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.terminal import ENTER, Terminal

COMMAND = [sys.executable, "-m", "memloc_tui"]
READY, SLOW = 60.0, 120.0


def number(text: str) -> float:
    return float(text.replace("−", "-"))


def test_every_panel_of_the_embedded_model(demo: Any, demo_paragraphs: Any, scored: None, tmp_path: Path) -> None:
    environment = {"MEMLOC_STATE_DIR": str(tmp_path / "state"), "MEMLOC_CACHE_DIR": str(tmp_path / "cache")}
    with Terminal(COMMAND, env=environment) as terminal:
        terminal.until(lambda text: re.search(r" \d+ mem ", text) and "EM 50 of 50" in text, SLOW)
        short = re.search(r"▸\s?([0-9a-f]{4,})", terminal.text)[1]
        (row,) = [row for row, id_ in enumerate(demo_paragraphs.ids) if id_.startswith(short)]
        ids = torch.from_numpy(demo_paragraphs.tokens[row])[None]

        terminal.type("5")
        text = terminal.until(lambda text: re.search(r"above \d+ % of 32 memorized", text), SLOW)
        printed = number(re.search(r"L0 W_Q H0 (\S+)", text)[1])
        weight = demo.model.transformer.h[0].attn.attention.q_proj.weight.requires_grad_()
        logits = demo.model(input_ids=ids[:, :-1]).logits[0, 49:]
        (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, ids[0, 50:]), weight)
        weight.requires_grad_(False)
        query = gradient[: demo.model.config.hidden_size // demo.model.config.num_heads]
        assert printed == pytest.approx(float(query.abs().max()), rel=0.05)

        terminal.type("6")
        text = terminal.until(lambda text: "L1H2 from position 49" in text and re.search(r"[01]\.\d+ █", text), SLOW)
        with torch.no_grad():
            weights = demo.model(input_ids=ids, output_attentions=True).attentions[1][0, 2, 49, :50]
        first = text[text.index("weight") :].split("\n")[1]
        assert number(re.search(r"([01]\.\d+) █", first)[1]) == pytest.approx(float(weights.max()), abs=6e-4)
        assert re.search(rf" {int(weights.argmax())} ", first)

        terminal.type("7")
        terminal.until(lambda text: "rarity τ" in text and "chosen" in text, SLOW)
        terminal.type("a")
        terminal.until(lambda text: "ablated: L1H2" in text and "without L1H2 · EM" in text, SLOW)
        terminal.type("a")
        terminal.until(lambda text: "edits: none" in text and "without L1H2" not in text, SLOW)

        terminal.type("2" + ENTER)
        terminal.until("Choose a token")
        terminal.type(ENTER)
        terminal.until(lambda text: "Choose a token" not in text and "EM 50 →" in text, SLOW)
        terminal.type("8")
        text = terminal.until(lambda text: "m runs all" in text, SLOW)
        assert "residual L0 @0" in text
        terminal.type("q")
        assert terminal.wait_exit() == 0
