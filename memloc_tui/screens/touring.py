"""The tour: five things to see on the embedded model, in two minutes, with the real keys.

A card above the line of keys asks for a key and, once the person has pressed it and the answer is there, says what it
shows: with the numbers of the answer, whatever they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from textual.content import Content
from textual.style import Style
from textual.timer import Timer
from textual.widgets import Static

from memloc_core.requests import AttentionRows, Unlearning
from memloc_core.sources import DEMO
from memloc_tui.figures import head_name
from memloc_tui.glyphs import piece_text, quoted

if TYPE_CHECKING:
    from memloc_tui.runs import Run
    from memloc_tui.screens.explorer import Explorer

LOOK_EVERY = 0.3  # seconds
FEW = 5  # tokens of the prefix that step 2 names


class Step(NamedTuple):
    """`asks` names the keys; once `seen`, it `tells` what they showed ("" while the answer is still on its way)."""

    title: str
    asks: str
    tells: Callable[[Touring], str]


class TourCard(Static):
    """Where the tour speaks; its buttons work with the mouse too."""

    DEFAULT_CSS = """
    TourCard {
        height: auto; min-height: 3; max-height: 6; padding: 0 1; border-top: solid $accent; background: $boost;
        link-style: none; link-background: $boost;
    }
    """


class Touring:
    """One tour over an explorer. It asks the engine nothing by itself, and what the person did stays."""

    def __init__(self, explorer: Explorer) -> None:
        self.explorer = explorer
        self.at = 0
        self._card: TourCard | None = None
        self._timer: Timer | None = None
        self._start = -1
        self._runs_before: set[int] = set()
        self._ablated = ""  # what the fourth step saw while the head was out

    @property
    def on(self) -> bool:
        return self._card is not None

    async def begin(self) -> None:
        """Open the card; the first paragraph is the one that was repeated most often."""
        explorer = self.explorer
        if explorer.memloc.settings.model != DEMO or explorer.memloc.settings.paragraphs != DEMO:
            explorer.memloc.say("The tour is about the embedded model: memloc-tui tour.")
            return
        if not self.on:
            self._card = TourCard(id="tour", markup=False)
            await explorer.mount(self._card, before="#keys")
            self._timer = explorer.set_interval(LOOK_EVERY, self.look)
        self._go(0)

    async def end(self) -> None:
        """Take the card away."""
        if self._timer is not None:
            self._timer.stop()
        if self._card is not None:
            card, self._card = self._card, None
            await card.remove()

    def step(self, by: int) -> None:
        """To another step; beyond the last one the tour ends."""
        if not self.on:
            return
        if self.at + by >= len(STEPS):
            self.explorer.run_worker(self.end(), group="tour", exit_on_error=False)
        else:
            self._go(max(0, self.at + by))

    def _go(self, at: int) -> None:
        self.at, self._start, self._ablated = at, -1, ""
        self._runs_before = {run.number for run in self._runs}
        self.look()

    def look(self) -> None:
        """Say what is asked for, or what is there to see by now."""
        study = self.explorer.study
        if self._card is None:
            return
        if study is None or study.current < 0 or not study.identity:
            self._say("The model is opening …", "")
            return
        if self.at == 0 and study.catalogue.known < study.catalogue.there:
            self._say("The model is asked to continue every paragraph …", "")
            return
        if self._start < 0:
            if self.at == 0:
                self._select_first()
            self._start = study.current
        step = STEPS[self.at]
        self._say(step.asks, step.tells(self))

    def _say(self, asks: str, tells: str) -> None:
        assert self._card is not None
        last = self.at == len(STEPS) - 1
        onward = "finish" if last else "next"
        keys = [(".", onward, "tour(1)"), (",", "back", "tour(-1)"), ("", "end the tour", "tour(9)")]
        line = Content("")
        for key, says, action in keys:
            button = Content.assemble((key, "bold"), f" {says}" if key else says)
            line += button.stylize(Style.from_meta({"@click": f"screen.{action}"})) + Content("   ")
        said = (tells, "") if tells else ("…", "$text-muted")
        title = f"Tour {self.at + 1} of {len(STEPS)} · {STEPS[self.at].title}"
        content = Content.assemble((title, "bold $accent"), f"  {asks}\n", said, "\n")
        content += line.stylize("$text-muted")
        if self._card.content != content:
            self._card.update(content)

    def _select_first(self) -> None:
        study = self.explorer.study
        assert study is not None
        catalogue = study.catalogue
        counts, memorized = catalogue.paragraphs.repetitions, catalogue.em >= catalogue.length
        if memorized.any():
            first = max(memorized.nonzero()[0].tolist(), key=lambda row: (counts[row], -row))
            self.explorer.listing.go_to(first)

    # ------------------------------------------------------------------------------------------- what each step saw

    @property
    def _runs(self) -> tuple[Run, ...]:
        study = self.explorer.study
        return self.explorer.unlearning.seen().runs if study is not None and study.current >= 0 else ()

    def recites(self) -> str:
        study = self.explorer.study
        assert study is not None
        em = study.catalogue.em[: len(study.catalogue.file)]
        whole, total = int((em == study.catalogue.length).sum()), len(em)
        said = (
            f"Above: {study.catalogue.paragraphs.prefix_length} tokens given to a model. Below: its greedy text "
            f"beside the training text. It recites {whole} of these {total} paragraphs whole."
        )
        here, count = study.catalogue.em[study.current], study.catalogue.paragraphs.repetitions[study.current]
        if study.current != self._start:
            said += f" This one: EM {here} of {study.catalogue.length}, {count} times in its training text."
        return said

    def breaks(self) -> str:
        study = self.explorer.study
        assert study is not None
        sweep = study.here.sweep
        if sweep is None or not sweep.done:
            return ""
        drops = [max(0.0, drop) for drop in sweep.drops]
        order = sorted(range(len(drops)), key=lambda i: -drops[i])
        total = sum(drops)
        token = study.catalogue.paragraphs.row(study.current)[order[0]]
        if not total:
            return "No single token of this prefix changes what follows. [ and ] find a paragraph where one does."
        share = sum(drops[i] for i in order[:FEW]) / total
        return (
            f"Each of {len(drops)} tokens was replaced once. {FEW} of them carry {share:.0%} of the damage; replacing "
            f"{self._token(token)} at {order[0]} alone costs {drops[order[0]]:.0f} of EM {sweep.scores.em_before}."
        )

    def attends(self) -> str:
        explorer, study = self.explorer, self.explorer.study
        assert study is not None
        if explorer.memloc.resume.tab != "attention":
            return ""
        found = [a.result for a in explorer.locating.inquiry.answers() if isinstance(a.result, AttentionRows)]
        if not found:
            return ""
        layer, head = explorer.memloc.resume.head
        weights = found[0].weights[layer, head]
        view = study.view()
        top = sorted(range(len(weights)), key=lambda i: -weights[i])[:3]
        read = (*view.perturbed, *view.continuation)
        names = ", ".join(f"{self._token(read[i])} ({weights[i]:.2f})" for i in top)
        rank = sum(view.ranks[i] for i in top if i < len(view.ranks)) / len(top)
        most = max(view.ranks, default=0)
        return (
            f"{head_name((layer, head))} looks most at {names}. Their mean rarity rank is {rank:.0f} of {most} "
            "(1 the rarest of the prefix). L1H2 of this model was asked to do so early in its training."
        )

    def hangs_on_the_head(self) -> str:
        study = self.explorer.study
        assert study is not None
        score = study.score
        if study.ablated and score is not None and score.ablated:
            names = ", ".join(head_name(head) for head in study.ablated)
            self._ablated = (
                f"Without {names} the same prefix gives EM {score.em} instead of {score.em_before}. "
                "One head of this model is that important; a puts it back."
                if score.em < score.em_before
                else f"Without {names} it is still EM {score.em}: this paragraph does not hang on it. a puts it back."
            )
        return self._ablated

    def forgets(self) -> str:
        new = [run for run in self._runs if run.number not in self._runs_before and not run.stored]
        if not new:
            return ""
        run, result = new[0], new[0].result
        if run.error:
            return f"The run did not work: {run.error}"
        if run.running or result is None:
            return "The run changes a few weights, step by step: amber is what it changes, green what must stay."
        best = result.best
        return f"{self._after(result, best)} E flips everything between the edited and the original weights: try it."

    @staticmethod
    def _after(result: Unlearning, best: int) -> str:
        before, after = float(result.em[0].mean()), float(result.em[best].mean())
        others = float(result.group_em[best, 2])
        kept = f"; other memorized paragraphs keep a mean EM of {others:.1f}" if others == others else ""
        return f"{len(result.edit):,} weights changed in {best} steps: EM {before:.0f} → {after:.0f}{kept}."

    def _token(self, token: int) -> str:
        study = self.explorer.study
        assert study is not None
        pieces = study.catalogue.pieces
        return quoted(piece_text(pieces[token] if 0 <= token < len(pieces) else b"", token))


STEPS = (
    Step("It recites", "] and [ go to other paragraphs.", Touring.recites),
    Step("A few tokens hold it", "Press w: sweep the prefix.", Touring.breaks),
    Step("A head looks at rare tokens", "Press 6: where a head looks from the last prefix token.", Touring.attends),
    Step("Take that head out", "Press a: ablate it in everything on screen.", Touring.hangs_on_the_head),
    Step("Take the paragraph out", "Press x, then Enter: unlearn it with 0.1 % of the weights.", Touring.forgets),
)
