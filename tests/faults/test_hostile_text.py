"""Text that wants to be more than text, and every character there is, on every road: screen, export, report, commands.

The tokens of a vocabulary made for it, and every name, genre, split and id around them, go through the real explorer
over a real model. No control byte reaches the terminal, nothing becomes markup, a link, an action or a script.
"""

from __future__ import annotations

import csv
import io
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any
from unicodedata import category
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from markdown_it import MarkdownIt
from rich.progress import Progress
from textual import events
from textual.pilot import Pilot

sys.path.insert(0, str(Path(__file__).parents[1] / "app"))  # as the explorer's own tests find their helpers

from memloc_core.requests import (
    EncodedText,
    EncodeText,
    OpenModel,
    OpenParagraphs,
    ParagraphSet,
    ReadVocabulary,
    Request,
    Vocabulary,
)
from memloc_tui import tables
from memloc_tui.app import MemlocApp
from memloc_tui.catalogue import Catalogue
from memloc_tui.commands.console import Asker
from memloc_tui.commands.report import FORMATS, written
from memloc_tui.glyphs import fit, glyph, piece_text, visible
from memloc_tui.reports import as_html, as_markdown, content
from memloc_tui.session import Session
from memloc_tui.settings import Settings
from tests.app.helpers import opened, until
from tests.app.test_report import ATTRIBUTES, TAGS, Page, nasty
from tests.faults.inside import InsideClient
from tests.faults.rounds import FULL, rounds

FORBIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
ROOT = Path(__file__).parents[2]
SEEDS = (
    "\x1b]52;c;cHduZWQ=\x07", "\x1b]0;pwned\x07", "\x1b[2J\x1b[H", "\x9b31m", "\x1bP+q544e\x1b\\",
    "\x1b_Gf=100\x1b\\", "\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "\x1b[?1049l", "\x1bc", "\x1b[6n",
    "\x1b[>c", "\x00", "\x7f\x08\x08", "\r\n", "\u202e\u2066\u2069", "\u200b\u200d\ufeff", "\ufe0f\u20e3",
    "👩‍👩‍👧‍👦", "e\u0301\u0301\u0301", "\U000e0041\U000e007f", "\u2028", "[bold]x[/bold]", "[/]",
    "[@click=app.pwned]y[/]", "[link=http://evil]z[/link]", "[red on blue]", "\\[", "$pwned", "[[", "{}",
    "<script>pwned()</script>", '"><img src=x onerror=pwned()>', "' onload='pwned()", "</text></svg><script>",
    "<![CDATA[", "]]>", "&lt;&#60;&amp;", "<!-- ", "<?xml?>", "javascript:pwned()", "![x](http://evil)",
    "| a |\n|---|", "# head\n- i", "```\n~~~", "=cmd|' /C calc'!A0", "+1+1", "-2", "@SUM(A1)", '"quoted","',
    "\ttab", "%s %n {0}", "../../etc/passwd", "漢字かな", "ﷺ", "𐏿",
)  # fmt: skip


def strings(n: int, seed: int = 0) -> Iterator[str]:
    """n strings: the seeds, cut, joined and salted with any character, and any bytes as a tokenizer may have them."""
    rng = random.Random(seed)
    for number in range(n):
        if number < len(SEEDS):
            yield SEEDS[number]
            continue
        parts = []
        for _ in range(rng.randint(1, 4)):
            kind = rng.random()
            if kind < 0.5:
                one = rng.choice(SEEDS)
                at = rng.randrange(len(one))
                parts.append(one if kind < 0.3 else one[at:] if kind < 0.4 else one[: at + 1])
            elif kind < 0.8:
                parts.append("".join(chr(rng.choice((rng.randrange(256), rng.randrange(0x110000)))) for _ in range(4)))
            else:
                parts.append(rng.randbytes(rng.randint(1, 6)).decode("utf-8", "surrogateescape"))
        yield "".join(parts)


def unicode(step: int, length: int = 24) -> Iterator[str]:
    """Every `step`th character, `length` in a string."""
    codes = range(0, 0x110000, step)
    for start in range(0, len(codes), length):
        yield "".join(map(chr, codes[start : start + length]))


def clean(text: str, but: str = "") -> None:
    wrong = [c for c in text if c not in but and category(c) in FORBIDDEN]
    assert not wrong, f"{wrong[:5]!r} in {text[:300]!r}"


def test_all_of_unicode_and_any_string_is_drawn_in_its_width(seen: Any) -> None:
    from rich.cells import cell_len

    step, n = rounds(37, 1), rounds(1_000, 20_000)
    for code in range(0, 0x110000, step):
        clean(glyph(chr(code)))
        drawn = visible("a" + chr(code))
        clean(drawn)
    for text in strings(n):
        piece = text.encode("utf-8", "surrogatepass")
        for drawn in (visible(text), piece_text(piece), piece_text(piece[1:-1])):
            clean(drawn)
            assert cell_len(fit(drawn, 17)) == 17
    seen(f"{len(range(0, 0x110000, step)):,} characters and {n:,} strings at the display boundary")


# ------------------------------------------------------------------------------------------------------- the explorer


class World:
    """A model whose folder has a hostile name, and a vocabulary and paragraphs of nothing but hostile text."""

    def __init__(self, folder: Path) -> None:
        from transformers import GPTNeoConfig, GPTNeoForCausalLM

        from memloc_core.loading import load

        pieces = [*strings(rounds(300, 20_000)), *unicode(rounds(500, 1))]
        self.pieces = [text.encode("utf-8", "surrogatepass") for text in pieces]
        self.pieces += [b"\xe2", b"\xf0\x9f", b"\xff\xfe", b""] * 2
        n = self.size = -(-len(self.pieces) // 100) * 100
        self.pieces += [b" pad"] * (n - len(self.pieces))
        torch.manual_seed(0)
        config = GPTNeoConfig(
            vocab_size=n, hidden_size=16, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]],
            max_position_embeddings=128, window_size=16, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        self.folder = folder / "[red]\x1b]0;pwned\x07<script>[@click=app.pwned]"
        GPTNeoForCausalLM(config).save_pretrained(self.folder)
        self.lm = load(OpenModel(str(self.folder), device="cpu"))
        order = np.random.default_rng(0).permutation(n).reshape(-1, 100)
        rows, names = len(order), list(strings(len(order), 1))
        self.paragraphs = ParagraphSet(
            source=str(self.folder / "rows.jsonl"), fingerprint="f", prefix_length=50,
            ids=tuple(f"{row:04d}{name}" for row, name in enumerate(names)), tokens=order.astype(np.int64),
            counts=np.arange(1, n + 1), counts_of="set", repetitions=np.arange(rows), family=np.arange(rows),
            genre=tuple(names[::-1]), split=tuple(names), notices=(names[0], names[3]),
        )  # fmt: skip
        offsets = np.cumsum([0, *map(len, self.pieces)]).astype(np.int64)
        self.vocabulary = Vocabulary(np.frombuffer(b"".join(self.pieces), np.uint8), offsets, "f")

    @property
    def answers(self) -> dict[type[Request], Any]:
        return {ReadVocabulary: lambda request: self.vocabulary, OpenParagraphs: lambda request: self.paragraphs}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture
def settings(world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Settings:
    monkeypatch.setattr("memloc_tui.engine_client.EngineClient", InsideClient)
    monkeypatch.setattr(InsideClient, "lm", world.lm)
    monkeypatch.setattr(InsideClient, "answers", world.answers)
    monkeypatch.setattr("memloc_core.sources.paragraph_files", lambda name: ())
    monkeypatch.chdir(tmp_path)
    return Settings(str(world.folder), "hostile", "cpu", use_cache=False)


def look(app: MemlocApp) -> None:
    """Nothing on the screen is a control character, a link or an action of somebody else's."""
    for strip in app.screen._compositor.render_strips():
        assert strip.cell_length == app.size.width
        for segment in strip:
            assert not segment.control
            clean(segment.text)
            if segment.style is not None:
                assert "evil" not in str(segment.style.link or "")
                assert "pwned" not in str(segment.style.meta)


async def press(pilot: Pilot[Any], *keys: str) -> None:
    for key in keys:
        await pilot.press(key)
        await pilot.pause()
        look(pilot.app)  # type: ignore[arg-type]


async def burst(pilot: Pilot[Any], *keys: str) -> None:
    """The keys at once, which the app carries out in turn; a look at where they lead."""
    for key in keys:
        pilot.app.post_message(events.Key(key, None).set_sender(pilot.app))
    await until(pilot, lambda: not pilot.app.typing)  # type: ignore[attr-defined]
    look(pilot.app)  # type: ignore[arg-type]


QUARTERS = [((120, 36), quarter) for quarter in range(4)]  # so that two processes share all the paragraphs
NARROW = [((80, 24), None), ((62, 18), None)]  # three paragraphs


@pytest.mark.parametrize(("size", "quarter"), [*QUARTERS, *NARROW] if FULL else [((90, 30), None)])
async def test_every_pane_tab_and_dialog_shows_hostile_text_as_text(
    size: tuple[int, int], quarter: int | None, world: World, settings: Settings, seen: Any
) -> None:
    app, looks = MemlocApp(settings), 0
    n = len(world.paragraphs)
    rows = range(rounds(2, 3)) if quarter is None else range(n * quarter // 4, n * (quarter + 1) // 4)
    tabs, patience = ("4567890", 5) if FULL else ("456", 1)
    async with app.run_test(size=size, notifications=True) as pilot:
        await opened(pilot)
        look(app)
        explorer = app.explorer
        for number, row in enumerate(rows):
            if number % 40 == 0:  # every tab, dialog and overlay
                for tab in tabs:
                    await press(pilot, tab)
                    for _ in range(patience):
                        await pilot.pause(0.02)
                        look(app)
                    await press(pilot, "down", "right", "enter", "m", "escape")
                await press(pilot, "4", "w")
                await until(pilot, lambda: not explorer.running, 30)
                await press(
                    pilot, "o", "o", "o", "o", "o", "f", "2", "enter", "down", "x", "[", "down", "down", "escape"
                )
                await press(pilot, "e", "escape", "y", "Y", "W", "escape", "question_mark", "escape", "s", "S", "p")
                await press(pilot, "slash", "[", "b", "]", "enter", "slash", *["backspace"] * 4, "enter", "escape")
                await press(pilot, "ctrl+p", "t", "escape", "escape", "2", "right_square_bracket")
            explorer.list.move_to(explorer.list.order.index(row))
            await until(pilot, lambda row=row: explorer.current == row)
            type_ = press if number % 20 == 0 else burst  # each key by itself takes a tenth of a second
            for pane in "23":
                await type_(pilot, pane, *["right"] * 3, "end")
            app.say(next(strings(1, row + 2)) + world.paragraphs.ids[row])
            await type_(pilot, "2")
            looks += 1
    seen(f"{looks:,} paragraphs of {world.size:,} hostile tokens at {size[0]} x {size[1]}")


async def test_a_text_of_ones_own_is_shown_as_text_and_asked_as_it_is(
    world: World, settings: Settings, monkeypatch: pytest.MonkeyPatch, seen: Any
) -> None:
    asked: list[str] = []

    def encoded(request: Any) -> EncodedText:
        asked.append(request.text)
        return EncodedText(np.array([ord(c) % world.size for c in request.text], np.int64))

    monkeypatch.setattr(InsideClient, "answers", {**world.answers, EncodeText: encoded})
    app, n = MemlocApp(settings), rounds(12, 150)
    async with app.run_test(size=(90, 30), notifications=True) as pilot:
        await opened(pilot)
        for number, text in enumerate(strings(n, 5)):
            await press(pilot, "plus")
            for part in (text, "".join(f"{text} {i} " for i in range(50))):
                app.post_message(events.Paste(part).set_sender(app))
                await until(pilot, lambda: not app.typing)
                await press(pilot, "enter", "up", "left", "end", "down")
            await press(pilot, "home", "shift+end", "ctrl+x", "ctrl+z", *"[a", "ctrl+s")
            await until(pilot, lambda: app.screen is app.explorer)
            whole = (c for c in asked[-1] if not 0xD800 <= ord(c) <= 0xDFFF)
            assert set(text) - set("\r") <= {*whole, "\n", *(chr(c) for c in range(0xD800, 0xE000))}
            look(app)
            if number % 3 == 0:
                await press(pilot, "minus")
    seen(f"{n:,} hostile texts typed into the explorer as paragraphs")


async def test_every_export_and_report_holds_hostile_text_as_text(world: World, settings: Settings, seen: Any) -> None:
    session = Session(settings)
    await session.open()
    try:
        catalogue = Catalogue(world.paragraphs, world.vocabulary)
        with Progress(disable=True) as progress:
            asker = Asker(session, progress)
            asker.catalogue = catalogue
            sample = list(range(0, len(catalogue.paragraphs), rounds(2, 60)))
            document = await content.of_paragraphs(asker, sample, (0, 1))
            whole = await content.of_set(asker, sample)
            for report in (document, whole):
                for form in FORMATS:
                    text = written(report, form)
                    clean(text, "\n")
                    if form == "html":
                        page = Page(text)
                        assert set(page.tags) <= TAGS
                        assert page.attributes <= ATTRIBUTES
                    elif form == "md":
                        only_text(text)
                    elif form == "json":
                        json.loads(text)
    finally:
        await session.close()
    app = MemlocApp(settings)
    exported = 0
    async with app.run_test(size=(120, 36)) as pilot:
        await opened(pilot)
        explorer = app.explorer
        for number in range(rounds(2, len(world.paragraphs))):
            study = explorer.study
            assert study is not None
            shown, scene = explorer.locating.look(study.view(), explorer.panel)
            every = [
                tables.tokens(shown, study.catalogue),
                tables.of_tab("perturb", explorer.panel, scene, explorer.locating.inquiry),
            ]
            if number % 50 == 0:
                every.append(tables.paragraph_list(study.catalogue, explorer.list.order))
                drawn = app.export_screenshot()
                tags = {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(drawn).iter()}
                assert not tags & {"script", "foreignObject", "a", "image", "use", "iframe"}, tags
                clean(drawn, "\n")
            for table in filter(None, every):
                holds_no_formula(tables.as_csv(table))
                json.loads(tables.as_json(table))
                clean(tables.as_json(table), "\n")
                exported += 1
            await pilot.press("right_square_bracket")
            await pilot.pause()
    seen(f"{exported:,} tables, and reports of {len(sample)} paragraphs in {len(FORMATS)} forms")


def test_a_document_of_nothing_but_hostile_text(seen: Any) -> None:
    n, step = rounds(40, 20_000), rounds(5000, 1)
    tags = len(Page(as_html.write(nasty("x"))).tags)
    for text in chain(strings(n, 3), unicode(step, 120)):
        page = Page(as_html.write(nasty(text)))
        assert set(page.tags) <= TAGS
        assert page.attributes <= ATTRIBUTES
        if visible(text).strip():
            assert len(page.tags) == tags
        only_text(as_markdown.write(nasty(text)))
        clean(written(nasty(text), "terminal"), "\n")
    every = len(range(0, 0x110000, step))
    seen(f"{n:,} strings and {every:,} characters in every place of a report, in HTML, Markdown and text")


READER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def only_text(markdown: str) -> None:
    tokens = READER.parse(markdown)
    assert not {"html_block", "fence", "code_block", "hr"} & {token.type for token in tokens}
    inner = {child.type for token in tokens for child in token.children or ()}
    assert not inner & {"html_inline", "link_open", "image", "code_inline"}, inner


def holds_no_formula(text: str) -> None:
    """Every cell is a number, or text that no spreadsheet calculates; nothing in it is a control character."""
    clean(text, "\n")
    for line in csv.reader(io.StringIO(text)):
        for cell in line:
            if cell.startswith(("=", "+", "-", "@", "\t", "\r")):
                float(cell)


# ------------------------------------------------------------------------------------------------------- the commands


@pytest.mark.skipif(not FULL, reason="nine processes; the same roads are walked above")
def test_commands_print_hostile_text_as_text(tmp_path: Path, seen: Any) -> None:
    from tests.faults.test_soak import ATTACK, hostile_set

    rows = tmp_path / "\x1b]0;pwned\x07rows.jsonl"
    hostile_set(rows)
    own = ("--paragraphs", str(rows))
    limit = ("--all", "--limit", "6")
    for command in (
        (*own, "list"),
        (*own, "list", "--json"),
        (*own, "analyze", "exact-match", *limit),
        (*own, "analyze", "sweep", *limit),
        (*own, "analyze", "attention", *limit),
        (*own, "report", *limit),
        ("--model", f"/nowhere/{ATTACK}".replace("\0", ""), "list"),
        ("list", "--edit", ATTACK.replace("\0", "")),
        ("edits", "show", ATTACK.replace("\0", "")),
        (*own, "analyze", "perturb", "--paragraph", ATTACK.replace("\0", ""), "--position", "1", "--token", "\x1b[31m"),
    ):
        run = subprocess.run([sys.executable, "-m", "memloc_tui", *command], capture_output=True, timeout=300, cwd=ROOT)
        assert run.returncode in (0, 1, 2)
        for said in (run.stdout, run.stderr):
            clean(said.decode(), "\n")
        assert b"Traceback" not in run.stderr
    seen("10 commands over hostile rows and names")
