"""Reports: the same numbers in every form, and no paragraph that becomes more than text in any of them."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from unicodedata import category
from xml.etree import ElementTree

import numpy as np
import pytest
from fake import PIECES, FakeSession, P, base_em, effect, make_paragraphs
from hypothesis import given, settings as budget, strategies as st
from markdown_it import MarkdownIt
from rich.progress import Progress
from scenes import attention
from test_hostile import hostile

from memloc_core.errors import MemlocError
from memloc_core.requests import Attention, ComponentGradients, Finding, ParameterGradients, Request
from memloc_tui.commands.console import Asker
from memloc_tui.commands.report import FORMATS, written
from memloc_tui.reports import as_html, as_markdown, content, pictures
from memloc_tui.reports.document import Chart, Document, Grid, Section, Token, Tokens, Words
from memloc_tui.reports.pictures import Bar

NASTY = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</title></style></svg></desc><iframe src=//evil>",
    "&lt;b&gt; &#60;i&#62; ]]>",
    "![x](http://evil/x.png) [a](javascript:alert(1)) <http://evil> http://evil www.evil.com a@evil.com",
    "| a | b |\n|---|---|\n# head\n- item\n1. one\n> quote\n```\ncode\n~~~",
    "\x1b]0;title\x07 \u202e \x00 \ufffe \ud800 \u2028",
    "=cmd|' /C calc'!A0",
)
TEXT = st.one_of(st.sampled_from(NASTY), st.text(max_size=40), st.text("<>&\"'`*_[]()|#-=\n\\ a", max_size=40))


class ScoredSession(FakeSession):
    """The fake, with attention and gradients: layer l's gradients are l + 1 in each of three components."""

    def answer(self, request: Request) -> Any:
        if isinstance(request, Attention):
            return attention(P - 1)
        if isinstance(request, ParameterGradients):
            values = np.repeat(np.arange(1.0, 3.0, dtype=np.float32)[None, :, None], 3, 2)
            return ComponentGradients(("W_in", "W_out", "W_O H0"), values, values, values, np.ones(1, np.float32), 0)
        return super().answer(request)


def asked(session: FakeSession, work: Any) -> Document:
    async def main() -> Any:
        await session.open()
        session.edits = ()  # type: ignore[attr-defined]
        given: Any = session
        with Progress(disable=True) as progress:
            return await work(Asker(given, progress))

    document = asyncio.run(main())
    assert isinstance(document, Document)
    return document


class Page(HTMLParser):
    """Everything in a page that is not text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError("a comment")

    def unknown_decl(self, data: str) -> None:
        raise AssertionError("a declaration")


TAGS = {
    *("html", "head", "meta", "title", "style", "body", "main", "section", "h1", "h2", "h3", "p", "div", "figure"),
    *("figcaption", "span", "sub", "b", "table", "caption", "thead", "tbody", "tr", "th", "td"),
    *("svg", "desc", "rect", "text", "line"),
}
ATTRIBUTES = {
    *("lang", "charset", "http-equiv", "content", "name", "class", "style", "scope", "role", "tabindex"),
    *("aria-label", "viewbox", "x", "y", "x1", "x2", "y1", "y2", "width", "height"),
}


def nasty(text: str) -> Document:
    """A document with the text in every place that a document has."""
    bars = (Bar(text, 1.0, text), Bar("b", float("nan"), "·", open=True))
    blocks = (
        Words(text),
        Grid(text, (text, "n"), ((text, text),), left=("n",)),
        Tokens(text, (Token(text, text, 0.5, text, text), Token(text, "match", 2.0))),
        Chart(text, text, "level", bars, "perturb"),
        Chart(text, text, "upright", bars, "perturb"),
    )
    return Document(text, (text,), (Section(text, blocks), Section(text, blocks, 3)))


@given(TEXT)
@budget(max_examples=60, deadline=None)
def test_nothing_in_a_page_is_markup_of_somebody_elses(text: str) -> None:
    page = Page(as_html.write(nasty(text)))
    assert set(page.tags) <= TAGS
    assert page.attributes <= ATTRIBUTES
    if pictures.visible(text):
        assert len(page.tags) == len(Page(as_html.write(nasty("x"))).tags)
    assert all(category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn") for word in page.words for c in word if c != "\n")
    assert pictures.label(text) == "" or page.words.count(pictures.visible(text)) > 10


@given(TEXT)
@budget(max_examples=60, deadline=None)
def test_nothing_in_markdown_is_markup_of_somebody_elses(text: str) -> None:
    reader = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])

    def kinds(said: str) -> list[str]:
        tokens = reader.parse(as_markdown.write(nasty(said)))
        inner = [child.type for token in tokens for child in token.children or ()]
        assert not {"html_block", "fence", "code_block", "hr", "bullet_list_open"} & {t.type for t in tokens}
        assert set(inner) <= {"text", "softbreak", "text_special"}
        return [token.type for token in tokens if token.type != "inline"]

    if pictures.visible(text).strip(" "):
        assert kinds(text) == kinds("x")
    else:
        kinds(text)


@given(TEXT)
@budget(max_examples=30, deadline=None)
def test_a_picture_alone_is_well_formed(text: str) -> None:
    for draw in (pictures.bars, pictures.columns):
        root = ElementTree.fromstring(pictures.standalone(draw(text, text, [Bar(text, 2.0, text)], "match")))
        found = {child.tag.rpartition("}")[2] for child in root.iter()}
        assert found <= {"svg", "style", "title", "desc", "text", "rect", "line"}
        title = root.find("{http://www.w3.org/2000/svg}title")
        assert title is not None
        assert (title.text or "") == pictures.visible(text)


def test_the_report_of_a_paragraph_says_what_was_computed() -> None:
    session = ScoredSession()
    document = asked(session, lambda asker: content.of_paragraphs(asker, [3, 21], (1, 1)))
    record = document.data["paragraphs"][1]
    assert (record["em"], record["id"]) == (base_em(21), make_paragraphs().ids[21])
    drops = [effect(i, 11 * i % len(PIECES)) for i in range(P)]  # against its own continuation, of EM 50
    assert record["sweep"]["drops"] == drops
    assert record["sweep"]["scored_against"] == "own"
    assert record["gradients"]["layer_shares"] == pytest.approx([1 / 3, 2 / 3])
    weights = attention(P - 1).weights[1, 1]
    assert record["attention"]["head_weights"] == pytest.approx(weights.tolist())
    assert len(record["own_continuation"]) == 50
    for form in ("terminal", "md", "html"):
        text = written(document, form).replace("\n", " ")
        for said in (f"{base_em(21)} of 50", f"Mean {sum(drops) / P:.1f}", "L1H1", f"{weights.max():.3f}", "67 %"):
            assert said in text, (form, said)
    page = Page(written(document, "html"))
    assert page.tags.count("svg") == 6
    assert page.tags.count("title") == 7  # the page's and each picture's
    assert page.tags.count("section") == sum(page.tags.count(h) for h in ("h2", "h3")) == 10


def test_every_form_of_every_report_is_safe_with_hostile_paragraphs() -> None:
    async def both(asker: Asker) -> Document:
        one = await content.of_paragraphs(asker, [0, 25], (0, 1))
        whole = await content.of_set(asker, range(30))
        return Document(one.title, one.about, (*one.sections, *whole.sections), {**one.data, **whole.data})

    document = asked(ScoredSession(30, hostile()), both)
    for form in FORMATS:
        text = written(document, form)
        assert not [c for c in text if c != "\n" and category(c) in ("Cc", "Cf", "Cs", "Co", "Cn")], form
    assert set(Page(written(document, "html")).tags) <= TAGS
    assert "fake [b]model[/b]" in written(document, "terminal")
    assert document.data["strata"][0]["paragraphs"] == 10
    assert document.data["corruption"][0]["mean_drop"] == pytest.approx(
        np.mean([effect(i, 11 * i % len(PIECES)) for i in range(P)])
    )


def test_what_a_model_lacks_is_said_and_the_rest_still_stands() -> None:
    session = ScoredSession()
    session.fail[Attention] = MemlocError("This family has no adapter: attention is not read.")
    document = asked(session, lambda asker: content.of_paragraphs(asker, [3], (0, 0)))
    for form in ("terminal", "md", "html"):
        assert "no adapter" in written(document, form)
    record = document.data["paragraphs"][0]
    assert record["lacks"][0]["why"].startswith("This family")
    assert record["gradients"]["layer_sums"] == [3.0, 6.0]
    beyond = asked(ScoredSession(), lambda asker: content.of_paragraphs(asker, [3], (5, 0)))
    assert "no head L5H0" in written(beyond, "md")


def test_a_set_without_memorized_paragraphs_is_said() -> None:
    document = asked(ScoredSession(), lambda asker: content.of_set(asker, range(20, 30)))
    assert document.data["corruption"][0] == {"stratum": "memorized", "paragraphs": 0}
    assert "10 of 30 paragraphs" in document.title


def findings() -> list[Finding]:
    text = "<b>x</b> | *y*"
    held = Finding("separate", text, "holds", 41.5, (40.25, 43.0), 64, 3, 21.0, text, "tokens", text, "abc", "perturb")
    none = Finding("heads", text, "inconclusive", None, None, 0, 3, None, "", "tau", "Too few.", "", "heads")
    return [held, none]


def test_the_report_of_findings_has_every_claim_with_its_numbers() -> None:
    async def work(asker: Asker) -> Document:
        return content.of_findings(asker, findings())

    document = asked(ScoredSession(), work)
    for form in ("terminal", "md", "html"):
        text = written(document, form)
        for said in ("separate", "41.5", "40.2", "43.0", "21.0", "64", "holds", "heads", "inconclusive", "Too few"):
            assert said in text, (form, said)
    assert "2 claims: 1 holds, 1 inconclusive" in written(document, "terminal")
    assert set(Page(written(document, "html")).tags) <= TAGS
    assert [f["verdict"] for f in document.data["findings"]] == ["holds", "inconclusive"]
    assert document.data["findings"][1]["effect"] is None


def test_findings_as_a_table() -> None:
    from types import SimpleNamespace

    from memloc_tui import tables

    board = SimpleNamespace(found={f.claim: f for f in findings()})
    scene: Any = SimpleNamespace(board=board, setting=lambda switch: switch.options[0])
    table = tables.of_tab("findings", None, scene, scene)
    assert table is not None
    assert table.rows[0][:7] == ("separate", "holds", 41.5, 40.25, 43.0, "tokens", 64)
    assert table.rows[1][2:5] == (None, None, None)


chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(chromium is None, reason="no Chromium here")
def test_a_real_browser_runs_nothing_and_fits_a_phone(tmp_path: Path) -> None:
    """The page, opened beside a probe that tells what the browser made of it."""
    document = nasty("".join(NASTY))
    probe = (
        "<script>onload=()=>document.body.dataset.found=JSON.stringify({w:document.documentElement.scrollWidth,"
        "s:document.querySelectorAll('script').length,i:document.querySelectorAll('img,iframe,a').length,"
        "h:document.querySelectorAll('section').length})</script>"
    )
    policy = re.compile(r"<meta http-equiv[^>]*>\n")
    (tmp_path / "page.html").write_text(policy.sub("", written(document, "html")).replace("</body>", f"{probe}</body>"))
    (tmp_path / "real.html").write_text(written(document, "html").replace("</body>", f"{probe}</body>"))

    def dom(name: str) -> str:
        command = [chromium, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
        more = ["--window-size=500,900", "--virtual-time-budget=2000", "--dump-dom", (tmp_path / name).as_uri()]
        done = subprocess.run([*command, *more], capture_output=True, text=True, timeout=60)
        return done.stdout

    seen = dom("page.html")
    found = re.search(r'data-found="([^"]*)"', seen)
    assert found is not None
    said = found.group(1).replace("&quot;", '"')
    assert '"s":1,"i":0,"h":2' in said  # the probe is the only script
    assert int(re.search(r'"w":(\d+)', said).group(1)) <= 500  # type: ignore[union-attr]
    assert "data-found" not in dom("real.html")  # the page's own policy forbids even the probe
