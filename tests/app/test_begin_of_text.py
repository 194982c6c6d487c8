"""Paragraphs after a begin-of-text token, as the explorer shows, copies and exports them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake import DOG, PIECES, FakeSession, P, make_paragraphs
from helpers import opened, shown
from scenes import Answers, Host, attention, make_scene

from memloc_core.requests import ParagraphSet
from memloc_tui import tables
from memloc_tui.app import MemlocApp
from memloc_tui.settings import Settings
from memloc_tui.widgets.attention_panel import AttentionPanel

WIDE = (140, 40)
NAME = PIECES[DOG].decode()


@pytest.fixture
def paragraphs() -> ParagraphSet:
    """Rows that begin with the token " dog", which no other of theirs is."""
    plain = make_paragraphs()
    tokens = plain.tokens.copy()
    tokens[:, 0] = DOG
    return replace(plain, tokens=tokens, begin=DOG)


@pytest.fixture
def app(paragraphs: ParagraphSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MemlocApp:
    monkeypatch.chdir(tmp_path)
    return MemlocApp(Settings(model="fake", paragraphs="fake"), FakeSession(30, paragraphs))  # type: ignore[arg-type]


async def test_it_is_shown_by_its_name_without_a_count_or_a_rank_and_is_no_text(
    app: MemlocApp, paragraphs: ParagraphSet
) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await opened(pilot)
        row = paragraphs.row(app.explorer.current)
        prefix = app.explorer.prefix
        prefix.focus()
        await pilot.press("home")
        await pilot.pause()
        assert f'0 "{NAME}" id {DOG} · begin-of-text token' in shown(app, "#prefix")
        await pilot.press("o", "o")
        ids = sorted(set(row[1:P]), reverse=True)  # the fake corpus counts fall with the id
        assert [c[1].text.strip() for c in prefix.columns] == ["·", *(str(ids.index(t) + 1) for t in row[1:P])]
        assert prefix.columns[0][0].text == NAME
        await pilot.press("y")
        assert app.clipboard == b"".join(PIECES[t] for t in row[1:]).decode()
        assert NAME.strip() not in shown(app, "#paragraphs")
        table = tables.tokens(app.explorer.study.view(), app.explorer.study.catalogue)
        count, rank = (table.columns.index(name) for name in ("corpus_count", "rarity_rank"))
        assert [line[count] for line in table.rows[:2]] == [None, int(paragraphs.counts[row[1]])]
        assert [line[rank] for line in table.rows[:2]] == [None, ids.index(row[1]) + 1]
        listed = tables.paragraph_list(app.explorer.study.catalogue, [3]).rows[0]
        assert listed[-1] == b"".join(PIECES[t] for t in paragraphs.row(3)[1:]).decode()
        assert app.explorer.study.catalogue.pieces[row[0]].decode() == NAME
        app.explorer.commit(((0, 5),))  # another token in its place is one like any
        await pilot.pause()
        ids = sorted({5, *row[1:P]}, reverse=True)
        assert [c[1].text.strip() for c in prefix.columns] == [str(ids.index(t) + 1) for t in (5, *row[1:P])]


async def test_attention_to_it_is_shown_without_a_rank() -> None:
    scene = make_scene()
    view = replace(scene.view, ranks=(0, *scene.view.ranks[1:]), counts=(-1, *scene.view.counts[1:]))
    scene, known = replace(scene, view=view), Answers()
    result = attention(P - 1)
    weights = np.concatenate([np.full((*result.weights.shape[:2], 1), 0.9), 0.1 * result.weights[..., 1:]], -1)
    known.results[scene.attention(P - 1)] = replace(result, weights=weights.astype(np.float32))
    panel = Host(AttentionPanel, scene, known)
    async with panel.run_test(size=(84, 18)) as pilot:
        await pilot.pause()
        piece = PIECES[view.tokens[0]].decode()
        first, second = panel.text("#attention-list").split("\n")[:2]
        assert first.split(maxsplit=3)[2:] == ["0", f'"{piece}"']
        assert first.index('"') == second.index('"')
        columns = tables.TABS["attention"](scene, known)
        assert columns.rows[0][3:5] == (None, None)
        assert columns.rows[1][3:5] == (10 * (P - 1), P - 1)
