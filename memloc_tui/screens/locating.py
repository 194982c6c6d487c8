"""The panels of 'where it is stored': the scene they are about, their answers, the chosen head and the ablated ones."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from memloc_tui import overlays
from memloc_tui.samples import Samples
from memloc_tui.scene import Head, Scene
from memloc_tui.screens.inquiry import Inquiry
from memloc_tui.widgets.local_panel import LocalPanel

if TYPE_CHECKING:
    from memloc_core.requests import ModelInfo
    from memloc_tui.screens.explorer import Explorer
    from memloc_tui.screens.study import Study
    from memloc_tui.view import View


class Locating:
    """One inquiry and one set of samples per study."""

    def __init__(self, explorer: Explorer) -> None:
        self.explorer = explorer
        self.inquiry = Inquiry(explorer, explorer.draw)
        self._study: Study | None = None
        self._samples: Samples | None = None
        self._complete = False  # whether the samples were shown as complete
        self._kept: WeakKeyDictionary[Study, tuple[Inquiry, Samples]] = WeakKeyDictionary()  # of studies put aside

    @property
    def _model(self) -> ModelInfo | None:
        session = self.explorer.memloc.session
        return session.model if session is not None else None

    def begin(self) -> None:
        """A study's model is known: what was chosen for another model goes where it does not exist here."""
        study, model, resume = self.explorer.study, self._model, self.explorer.memloc.resume
        assert study is not None
        assert model is not None
        if self._study is not study:
            self.inquiry.close()
            if study not in self._kept:
                self._kept[study] = Inquiry(self.explorer, self.explorer.draw), Samples(study.catalogue)
            self._study, (self.inquiry, self._samples), self._complete = study, self._kept[study], False

        def exists(head: list[int]) -> bool:
            return 0 <= head[0] < model.layers and 0 <= head[1] < model.heads

        if not exists(resume.head):
            resume.head = [min(1, model.layers - 1), min(2, model.heads - 1)]
        resume.ablated = [head for head in resume.ablated if exists(head)]
        self._show_ablation()

    def scene(self, view: View) -> Scene | None:
        """What the panels are about; None before the model is known."""
        study, model, resume = self.explorer.study, self._model, self.explorer.memloc.resume
        if study is None or model is None or self._study is not study or self._samples is None:
            return None
        head = (resume.head[0], resume.head[1])
        runs = self.explorer.unlearning.seen() if resume.tab == "unlearn" else None
        board = self.explorer.finds.seen() if resume.tab == "findings" else None
        return Scene(view, study.catalogue, model, self._samples, head, study.ablated, resume.switches, runs, board)

    def scored(self) -> None:
        """More exact matches are known: the samples may exist now, or say how far they are."""
        if self._samples is not None and not self._complete:
            self._complete = self._samples.ready
            if isinstance(self.explorer.panel, LocalPanel):
                self.explorer.draw()

    def look(self, view: View, panel: Any) -> tuple[View, Scene | None]:
        """Ask for what the overlay and the open tab need; the view with its overlay's numbers, and the scene."""
        scene = self.scene(view)
        if scene is None:
            return view, None
        for _ in range(2):  # what is known already may tell what else is wanted
            wants = overlays.wanted(scene)
            if isinstance(panel, LocalPanel):
                wants += panel.wanted(scene, self.inquiry)
            self.inquiry.want(wants)
        values, says = overlays.painted(scene, self.inquiry)
        return replace(view, overlay_values=values, overlay_says=says), scene

    # ------------------------------------------------------------------------------------------------ what is chosen

    def choose(self, name: str, option: str) -> None:
        """Another setting of a switch."""
        self.explorer.memloc.resume.switches[name] = option
        self.explorer.memloc.save_soon()
        self.explorer.draw()

    def choose_head(self, head: Head) -> None:
        """The head of the Attention tab and of the overlays."""
        self.explorer.memloc.resume.head = list(head)
        self.explorer.memloc.save_soon()
        self.explorer.draw()

    def ablate(self) -> None:
        """Take the chosen head too out of every forward pass about the paragraph, or put it back."""
        ablated, head = self.explorer.memloc.resume.ablated, list(self.explorer.memloc.resume.head)
        self._take_out([other for other in ablated if other != head] if head in ablated else [*ablated, head])

    def unablate(self) -> None:
        """Put all of them back."""
        self._take_out([])

    def _take_out(self, heads: list[list[int]]) -> None:
        self.explorer.memloc.resume.ablated = sorted(heads)
        self.explorer.memloc.save_soon()
        self._show_ablation()
        self.explorer.sweeping.peek()
        self.explorer.asking.ask()

    def _show_ablation(self) -> None:
        self.explorer.editing.show_top()
