"""The explorer's screen: paragraphs, prefix, continuation and the tabs below; keys, focus, drawers.

It is imported before the first frame, so it knows no data: what leads to questions lives in `listing`, `asking`,
`sweeping` and `choosing`, over the state in `study`, which come with the session.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.geometry import Size
from textual.screen import Screen
from textual.style import Style
from textual.widget import Widget

from memloc_tui.glyphs import quoted, visible
from memloc_tui.screens.dialog import NotSelecting
from memloc_tui.widgets.continuation_pane import ContinuationPane
from memloc_tui.widgets.one_line import Key, KeyLine, OneLine, TopLine
from memloc_tui.widgets.panels import PANELS, Panel, build_panel, panel_type, tab_named
from memloc_tui.widgets.paragraph_list import ParagraphList
from memloc_tui.widgets.prefix_pane import PrefixPane
from memloc_tui.widgets.row_list import RowList
from memloc_tui.widgets.token_grid import TokenGrid

if TYPE_CHECKING:
    from memloc_tui.app import MemlocApp
    from memloc_tui.screens.asking import Asking
    from memloc_tui.screens.choosing import Choosing
    from memloc_tui.screens.editing import Editing
    from memloc_tui.screens.finding import Finds
    from memloc_tui.screens.listing import Listing
    from memloc_tui.screens.locating import Locating
    from memloc_tui.screens.owning import Owning
    from memloc_tui.screens.study import Study
    from memloc_tui.screens.sweeping import Sweeping
    from memloc_tui.screens.touring import Touring
    from memloc_tui.screens.unlearning import UnlearnRuns
    from memloc_tui.session import Session
    from memloc_tui.view import Overlay, Replacements
    from memloc_tui.widgets.chooser import Chooser
    from memloc_tui.widgets.findings_panel import FindingsPanel
    from memloc_tui.widgets.local_panel import LocalPanel
    from memloc_tui.widgets.perturb_panel import PerturbPanel
    from memloc_tui.widgets.unlearn_panel import UnlearnPanel

REFERENCES = {
    "auto": "the true text, but the model's own for non-memorized paragraphs",
    "true": "the true text",
    "own": "the model's own text after the clean prefix",
}


def binding(key: str, action: str, short: str, name: str, tooltip: str, **more: Any) -> Binding:
    return Binding(key, action, short, id=f"explorer.{name}", tooltip=tooltip, **more)


class Explorer(NotSelecting, Screen[None]):
    """See the module."""

    AUTO_FOCUS = "#prefix"
    HORIZONTAL_BREAKPOINTS = [(0, "-thin"), (60, "-narrow"), (100, "-wide")]
    VERTICAL_BREAKPOINTS = [(0, "-low"), (16, "-high")]
    BINDINGS = [
        binding("slash", "filter", "filter", "filter", "Filter the paragraphs", key_display="/"),
        binding(
            "s",
            "sort",
            "sort",
            "sort",
            "Sort by the next: EM, change by an edit, NLL, margin, count, told, genre, file",
        ),
        binding("S", "reverse", "reverse", "reverse", "Reverse the sort", key_display="S"),
        binding("p", "paragraphs", "list", "paragraphs", "Go to the paragraph list (or open it over the panes)"),
        binding("left_square_bracket", "walk(-1)", "before", "before", "The paragraph before", key_display="["),
        binding("right_square_bracket", "walk(1)", "next", "next", "The next paragraph", key_display="]"),
        binding(
            "plus", "own_text", "own text", "own_text", "Study a text of your own: type or paste it", key_display="+"
        ),
        binding(
            "minus", "take_away", "take away", "take_away", "Take the text of your own on screen away", key_display="-"
        ),
        binding("1", "pane('paragraphs')", "list", "pane1", "Focus the paragraph list"),
        binding("2", "pane('prefix')", "prefix", "pane2", "Focus the prefix"),
        binding("3", "pane('continuation')", "continuation", "pane3", "Focus the continuation"),
        *(binding(p.key, f"panel('{p.name}')", p.title, f"panel_{p.name}", f"Open the {p.title} tab") for p in PANELS),
        binding("x", "unlearn", "unlearn", "unlearn", "Unlearn the paragraph on screen, or the marked ones"),
        binding("m", "mark", "mark", "mark", "Mark this paragraph to be changed with others, or unmark it"),
        binding("asterisk", "mark_shown", "mark all", "mark_shown", "Mark all that the list shows", key_display="*"),
        binding("M", "unmark", "unmark", "unmark", "Unmark all paragraphs", key_display="M"),
        binding("E", "flip", "edited", "flip", "Show the edited weights everywhere, or the original", key_display="E"),
        binding("w", "sweep", "sweep", "sweep", "Sweep: replace each prefix token in turn"),
        binding("W", "sweep_options", "options", "sweep_options", "Sweep options", key_display="W"),
        binding("o", "overlay", "overlay", "overlay", "Next overlay: none, EM drop, rarity, attention, gradient"),
        binding("a", "ablate", "ablate", "ablate", "Ablate the chosen head too in all that is shown, or put it back"),
        binding("A", "unablate", "all heads", "unablate", "Put all ablated heads back", key_display="A"),
        binding("f", "reference", "reference", "reference", "Match against: auto, the true text, the model's own text"),
        binding("u", "undo", "undo", "undo", "Undo the last replacement"),
        binding("U", "clear", "clear", "clear", "Take all replacements back", key_display="U"),
        binding("r", "again", "ask again", "again", "Ask the engine again"),
        binding("y", "copy", "copy", "copy", "Copy the paragraph's text"),
        binding("Y", "copy_token", "copy token", "copy_token", "Copy the token under the cursor", key_display="Y"),
        binding("e", "export", "export", "export", "Export this view: JSON, CSV, SVG"),
        binding("full_stop", "tour(1)", "next", "tour_next", "Tour: the next step", key_display=".", show=False),
        binding("comma", "tour(-1)", "back", "tour_back", "Tour: the step before", key_display=",", show=False),
        binding("escape", "back", "back", "back", "Back out one level; stops a running job"),
    ]
    WITHOUT_DATA = frozenset(("again", "back", "pane", "paragraphs"))  # actions that mean something before any data

    def __init__(self, size: Size) -> None:
        """`size` is the terminal's: with its classes from the start, the first frame is styled once."""
        fit = ((size.width, self.HORIZONTAL_BREAKPOINTS), (size.height, self.VERTICAL_BREAKPOINTS))
        classes = [[name for start, name in points if cells >= start][-1] for cells, points in fit]
        super().__init__(id="explorer", classes=" ".join(classes))
        self.study: Study | None = None
        self.listing: Listing
        self.asking: Asking
        self.sweeping: Sweeping
        self.choosing: Choosing
        self.locating: Locating
        self.editing: Editing
        self.unlearning: UnlearnRuns
        self.finds: Finds
        self.owning: Owning
        self.touring: Touring

    @property
    def memloc(self) -> MemlocApp:
        return cast("MemlocApp", self.app)

    @property
    def session(self) -> Session:
        """There is one while it opens, and always once a model was known."""
        assert self.memloc.session is not None
        return self.memloc.session

    @property
    def current(self) -> int:
        """The paragraph on screen, -1 for none."""
        return self.study.current if self.study is not None else -1

    def compose(self) -> ComposeResult:
        yield TopLine(id="top")
        with Horizontal(id="body"):
            with Vertical(id="list-pane", classes="pane"):
                yield OneLine(id="list-head")
                yield ParagraphList(id="paragraphs", empty="Opening the paragraphs …")
            with Vertical(id="right"):
                yield PrefixPane(id="prefix", empty="Opening the paragraphs …", classes="pane")
                yield ContinuationPane(id="continuation", classes="pane")
                yield Vertical(id="bottom", classes="pane")
        yield KeyLine(id="keys")

    def on_mount(self) -> None:
        self.top = self.query_one(TopLine)
        self.list = self.query_one(ParagraphList)
        self.prefix = self.query_one(PrefixPane)
        self.continuation = self.query_one(ContinuationPane)
        self.query_one("#list-pane").border_title = "1 Paragraphs"
        self.prefix.title("2 Prefix")
        self.continuation.title("3 Continuation")
        self.name_tabs()

    def on_unmount(self) -> None:
        if self.study is not None:
            self.unlearning.leave()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Before the paragraphs are there, a key that needs them does nothing."""
        if action in ACTIONS and action not in self.WITHOUT_DATA:
            return self.current >= 0
        return True

    # ------------------------------------------------------------------------------------------- what the session says

    async def begin(self) -> None:
        """After the first frame: the parts that hold data."""
        from memloc_tui.screens.asking import Asking
        from memloc_tui.screens.choosing import Choosing
        from memloc_tui.screens.editing import Editing
        from memloc_tui.screens.finding import Finds
        from memloc_tui.screens.locating import Locating
        from memloc_tui.screens.owning import Owning
        from memloc_tui.screens.sweeping import Sweeping
        from memloc_tui.screens.touring import Touring
        from memloc_tui.screens.unlearning import UnlearnRuns
        from memloc_tui.widgets.chooser import Chooser

        chooser = Chooser(id="chooser")
        chooser.display = False
        await self.query_one("#bottom").mount(build_panel(self._tab), chooser)
        await self.mount(OneLine(id="strip"), before=self.query_one("#body"))
        await self.mount(OneLine("Enlarge the terminal (needs 60x16).", id="enlarge", markup=False))
        self.name_tabs()
        self.asking, self.sweeping, self.choosing = Asking(self), Sweeping(self), Choosing(self, chooser)
        self.locating, self.editing, self.finds = Locating(self), Editing(self), Finds(self)
        self.unlearning, self.touring, self.owning = UnlearnRuns(self), Touring(self), Owning(self)
        self.list.moved = self._follow_list
        if self.memloc.wants_tour:
            await self.touring.begin()

    def part(self, part: str) -> None:
        """The session has opened `part`: "vocabulary", "paragraphs" or "model" (again, if the cache was wrong)."""
        session = self.session
        identity = session.model.identity if session.model is not None else ""
        if session.model is not None:
            model = session.model
            self.top.show_model(visible(model.name), visible(f" · {model.device} · {model.dtype}"))
            if part == "model":
                self.unlearning.opened()
                self.editing.opened()
        if session.vocabulary is None or session.paragraphs is None:
            return
        if self.study is None or part != "model":
            self._start(self.owning.catalogue(session), identity)
        elif not self.study.identity:
            self.study.identity = identity
        elif self.study.identity != identity:
            # The engine corrected what the cache had said: every number on screen was another model's.
            self._start(self.owning.catalogue(session), identity)
        else:
            return
        assert self.study is not None
        self.editing.started(self.study)
        if identity:
            self.locating.begin()
            self.listing.scan()
            self.sweeping.peek()
            self.asking.ask()

    def _start(self, catalogue: Any, identity: str) -> None:
        """A new study, where the person left the last one."""
        from memloc_tui.screens.listing import Listing
        from memloc_tui.screens.study import Study
        from memloc_tui.view import OVERLAYS

        resume = self.memloc.resume
        if resume.overlay not in OVERLAYS:
            resume.overlay = "none"
        if resume.reference not in REFERENCES:
            resume.reference = "auto"
        before = self.study
        self.study, self.listing = Study(resume, catalogue, identity), Listing(self)
        rows = catalogue.rows_called({resume.paragraph, *resume.replacements})
        row = rows.get(resume.paragraph, -1)
        if before is not None and before.current >= 0 and before.catalogue.file is catalogue.file:
            for other, work in before.work.items():
                self.study.work_on(other).replacements = work.replacements
            row = before.current
        else:
            for id_, pairs in resume.replacements.items():
                kept = {i: t for i, t in pairs if self.study.fits(i, t)}
                if kept and id_ in rows:
                    self.study.work_on(rows[id_]).replacements = tuple(sorted(kept.items()))
        catalogue.perturbed.update(other for other, work in self.study.work.items() if work.replacements)
        self.choosing.reset()
        self.name_tabs()
        self.show_tab()
        self.list.empty = "No paragraph passes the filter." if len(catalogue) else "The paragraph set is empty."
        self.listing.filter(then=row)

    def fail(self, message: str) -> None:
        """No model: say why in the place where what it says would be."""
        message = visible(message)
        if self.study is None:
            self.list.empty = message
            self.list.refresh()
            self.prefix.show([], empty=message)
        else:
            self.asking.ask()
        self.memloc.say(message, severity="error")

    # ------------------------------------------------------------------------------------------- the current paragraph

    def select(self, row: int) -> None:
        """Show this paragraph and ask what is not known of it."""
        study = self.study
        if study is None or row == study.current:
            return
        self.choosing.close()
        study.current = row
        study.forget()
        self.prefix.move_to(0)
        self.continuation.move_to(0)
        self._remember()
        self.sweeping.peek()
        self.asking.ask()
        self.listing.draw_strip()

    def _remember(self) -> None:
        study = self.study
        assert study is not None
        self.memloc.resume.paragraph = study.id
        self.memloc.save_soon()

    def draw(self, all_panes: bool = True) -> None:
        """Show the current view; each pane paints only what differs."""
        study = self.study
        if study is None or study.current < 0:
            return
        panel = self.panel if study.trying is None else None
        view, scene = self.locating.look(study.view(), panel)
        self.prefix.show_view(view, study.catalogue)
        if all_panes:
            self.continuation.show_view(view, study.catalogue)
            if panel is not None:
                panel.show(view, study.catalogue, scene, self.locating.inquiry)

    def commit(self, replacements: Replacements) -> None:
        """Keep these replacements for the current paragraph; undo brings the former ones back."""
        study = self.study
        if study is not None and study.current >= 0 and replacements != study.here.replacements:
            study.here.undo.append(study.here.replacements)
            self._keep(replacements)

    def _keep(self, replacements: Replacements) -> None:
        study = self.study
        assert study is not None
        study.here.replacements = replacements
        study.resume.replace(study.id, replacements)
        (study.catalogue.perturbed.add if replacements else study.catalogue.perturbed.discard)(study.current)
        self.list.repaint_paragraphs(range(study.current, study.current + 1))
        self.listing.changed("perturbed")
        self._remember()
        self.asking.ask()

    # ------------------------------------------------------------------------------------------ what the widgets report

    def _follow_list(self) -> None:
        if self.list.current is not None:
            self.select(self.list.current)

    def on_row_list_chosen(self, message: RowList.Chosen) -> None:
        if message.rows is self.list and self.list.current is not None:
            self.select(self.list.current)
            if self._close_drawer():
                self.set_focus(self.prefix)

    def on_token_grid_moved(self, message: TokenGrid.Moved) -> None:
        message.grid.show_cursor()

    def on_token_grid_chosen(self, message: TokenGrid.Chosen) -> None:
        if message.grid is self.prefix and self.current >= 0:
            self.choosing.open(message.index)
        elif message.grid is self.continuation and self.study is not None and self.study.trying is None:
            view = self.study.view()
            if view.score is not None:
                from memloc_tui.screens.likely import Likely

                self.app.push_screen(Likely(self, view, view.score, message.index))

    def on_chooser_tried(self, message: Chooser.Tried) -> None:
        self.choosing.tried(message)

    def on_chooser_done(self, message: Chooser.Done) -> None:
        self.choosing.done(message.keep)

    def on_perturb_panel_apply(self, message: PerturbPanel.Apply) -> None:
        self.commit(message.replacements)

    def on_perturb_panel_jump(self, message: PerturbPanel.Jump) -> None:
        self.prefix.move_to(message.position)

    def on_local_panel_chose(self, message: LocalPanel.Chose) -> None:
        self.locating.choose(message.name, message.option)

    def on_local_panel_chose_head(self, message: LocalPanel.ChoseHead) -> None:
        self.locating.choose_head(message.head)

    def on_local_panel_jump(self, message: LocalPanel.Jump) -> None:
        self.prefix.move_to(message.position)

    def on_local_panel_changed(self, message: LocalPanel.Changed) -> None:
        self.draw()

    def on_findings_panel_test(self, message: FindingsPanel.Test) -> None:
        self.finds.start(message.overview)

    def on_findings_panel_open_claim(self, message: FindingsPanel.OpenClaim) -> None:
        self.finds.open_claim(message.finding)

    def on_findings_panel_open_row(self, message: FindingsPanel.OpenRow) -> None:
        self.finds.open_row(message.row)

    def on_unlearn_panel_wants(self, message: UnlearnPanel.Wants) -> None:
        self.unlearning.wanted(message)

    def on_filter_line_typed(self, message: Any) -> None:
        self.listing.typed(message.text)

    def on_filter_line_left(self, message: Any) -> None:
        self.query("FilterLine").remove()
        self.listing.wrong = ""
        self.listing.draw_head()
        self.set_focus(self.list if self.list.is_on_screen else self.prefix)

    def on_click(self, event: events.Click) -> None:
        if event.widget is not None and event.widget.id == "strip":
            self.action_paragraphs()

    # ------------------------------------------------------------------------------------------------- actions on data

    def action_filter(self) -> None:
        from memloc_tui.widgets.filter_line import FilterLine

        self._open_drawer()
        if line := self.query(FilterLine):
            self.set_focus(line.first())
        else:
            line_before = self.query_one("#list-head")
            self.query_one("#list-pane").mount(FilterLine(self.memloc.resume.filter), before=line_before)

    def action_sort(self) -> None:
        self.listing.sort()

    def action_reverse(self) -> None:
        self.listing.reverse()

    def action_walk(self, step: int) -> None:
        """To another paragraph; in the new text of a run of several, to another of those."""
        panel = self.panel
        if not (hasattr(panel, "walk") and panel.has_focus_within and panel.walk(step)):
            self.list.action_step(step)

    def action_own_text(self) -> None:
        self.owning.open()

    def action_take_away(self) -> None:
        self.owning.take_away()

    def action_perturb(self) -> None:
        self.set_focus(self.prefix)
        self.prefix.action_choose()

    def action_undo(self) -> None:
        self.choosing.done(keep=False)
        if self.study is not None and (undo := self.study.here.undo):
            self._keep(undo.pop())

    def action_clear(self) -> None:
        self.choosing.done(keep=False)
        self.commit(())

    def action_sweep(self) -> None:
        self.choosing.done(keep=False)
        self.sweeping.start()

    def action_sweep_options(self) -> None:
        from memloc_tui.screens.sweep_options import SweepOptions

        def chosen(run: bool | None) -> None:
            self.memloc.save_soon()
            self.sweeping.peek()
            self.asking.ask()  # the reference is part of the question
            if run:
                self.action_sweep()

        if self.study is not None:
            self.app.push_screen(SweepOptions(self.memloc.resume, self.study.catalogue.pieces), chosen)

    def action_unlearn(self) -> None:
        self.action_panel("unlearn")
        cast("UnlearnPanel", self.panel).action_new()

    def action_mark(self) -> None:
        self.unlearning.planning.mark_paragraph()

    def action_mark_shown(self) -> None:
        self.unlearning.planning.mark_shown()

    def action_unmark(self) -> None:
        self.unlearning.planning.unmark()

    def action_flip(self) -> None:
        self.editing.flip()

    async def action_begin_tour(self) -> None:
        await self.touring.begin()

    def action_tour(self, by: int) -> None:
        self.touring.step(by)

    def action_overlay(self) -> None:
        from memloc_tui.view import OVERLAYS

        resume = self.memloc.resume
        resume.overlay = OVERLAYS[(OVERLAYS.index(cast("Overlay", resume.overlay)) + 1) % len(OVERLAYS)]
        self.memloc.save_soon()
        self.draw()

    def action_ablate(self) -> None:
        self.locating.ablate()

    def action_unablate(self) -> None:
        self.locating.unablate()

    def action_reference(self) -> None:
        resume, modes = self.memloc.resume, list(REFERENCES)
        resume.reference = modes[(modes.index(resume.reference) + 1) % len(modes)]
        self.memloc.say(f"Match against {resume.reference}: {REFERENCES[resume.reference]}.")
        self.memloc.save_soon()
        self.sweeping.peek()
        self.asking.ask()

    def action_again(self) -> None:
        """Ask for everything that is missing once more, after an error, or with an engine that is not there."""
        self.memloc.reopen()
        if self.memloc.session is not None and self.study is not None and self.study.identity:
            self.listing.telling.again()
            self.listing.scan()
            self.locating.inquiry.again()
            self.finds.again()
            self.unlearning.again()
            self.study.answered = None
            self.asking.ask()

    def action_copy(self) -> None:
        if self.study is not None:
            self.app.copy_to_clipboard(self.study.catalogue.text(self.current))
            self.memloc.say("The paragraph's text is copied.")

    def action_copy_token(self) -> None:
        if self.study is not None:
            view, pieces = self.study.view(), self.study.catalogue.pieces
            in_continuation = self.focused is self.continuation
            upper = view.score.reference if view.score is not None else view.continuation  # as the pane shows it
            token = (upper if in_continuation else view.perturbed)[
                self.continuation.cursor if in_continuation else self.prefix.cursor
            ]
            self.app.copy_to_clipboard(pieces[token].decode("utf-8", "replace") if 0 <= token < len(pieces) else "")
            self.memloc.say("The token's text is copied.")

    def action_export(self) -> None:
        from memloc_tui.screens.export import Export

        if self.study is not None:
            self.app.push_screen(Export(self))

    def action_back(self) -> None:
        """One level: the chooser, the drawer, a running job, then the focus."""
        if self.study is not None and self.study.trying is not None:
            self.choosing.done(keep=False)
        elif self._close_drawer():
            self.set_focus(self.prefix)
        elif self._tab == "unlearn" and self.unlearning.stop():
            pass  # it says itself what became of the run
        elif self.busy:
            self.sweeping.stop()
            self.locating.inquiry.stop()
            self.listing.telling.stop()
            self.finds.stop()
        else:
            self.set_focus(self.prefix)

    @property
    def running(self) -> bool:
        """Whether a job of the person's is running: quitting asks first."""
        jobs = self.study is not None and (self.sweeping.running or self.locating.inquiry.long)
        return jobs or (self.study is not None and (self.unlearning.running or self.finds.running))

    @property
    def busy(self) -> bool:
        """Whether anything runs that Esc stops."""
        return self.study is not None and (
            self.sweeping.running or self.locating.inquiry.running or self.listing.telling.running or self.finds.running
        )

    # ----------------------------------------------------------------------------------------------- panes and drawers

    @property
    def panel(self) -> Panel:
        return cast(Panel, self.query_one(f"#panel-{self._tab}"))

    @property
    def _tab(self) -> str:
        tab = self.memloc.resume.tab if self.study is not None else ""
        return tab if any(p.name == tab for p in PANELS) else PANELS[0].name

    def name_tabs(self) -> None:
        """The tab strip stands in the lower pane's edge."""
        bottom = self.query_one("#bottom")
        if self.study is not None and self.study.trying is not None:
            position = self.choosing.chooser.position
            original = self.prefix.text(self.study.view().prefix[position])
            bottom.border_title = Content(f"4 Choose a token for position {position}, {quoted(original)}")
            return
        names = [f"{p.key} {p.title}" for p in PANELS]
        between = " │ " if len(" │ ".join(names)) + 4 <= (bottom.size.width or self.size.width) else "│"
        bottom.border_title = Content(between).join(
            Content.styled(name, "bold" if p.name == self._tab else "dim").stylize(
                Style.from_meta({"@click": f"screen.panel('{p.name}')"})
            )
            for p, name in zip(PANELS, names, strict=True)
        )

    def show_tab(self, shown: bool = True) -> None:
        """Show the current tab's widget, or none of them; one that was never open is imported and made now."""
        if not self.query(f"#panel-{self._tab}"):
            self.query_one("#bottom").mount(build_panel(self._tab))
        self.set_class(self._tab != PANELS[0].name, "-tall")
        self.set_class(self._tab == "unlearn", "-taller")
        for p in PANELS:
            for widget in self.query(f"#panel-{p.name}"):
                widget.display = shown and p.name == self._tab

    def action_panel(self, panel_id: str) -> None:
        self.choosing.done(keep=False)
        self.memloc.resume.tab = panel_id
        self.memloc.save_soon()
        self.name_tabs()
        self.show_tab()
        self.draw()
        self.panel.focus_inside()

    def action_pane(self, name: str) -> None:
        if name == "paragraphs":
            self._open_drawer()
        self.set_focus(self.query_one(f"#{name}"))  # at once: the next key may be there already

    def action_paragraphs(self) -> None:
        if self._close_drawer():
            self.set_focus(self.prefix)
        else:
            self.action_pane("paragraphs")

    def _open_drawer(self) -> None:
        """On a narrow terminal the list opens over the panes."""
        if not self.has_class("-wide"):
            self.add_class("-drawer")
            if self.current >= 0:
                self.call_after_refresh(self.listing.draw_head)  # it says as much as there is room for

    def _close_drawer(self) -> bool:
        """Whether there was one to close."""
        was_open = self.has_class("-drawer")
        self.remove_class("-drawer")
        return was_open

    def on_resize(self) -> None:
        if self.size.width >= 100:
            self._close_drawer()
        if self.current >= 0:
            self.listing.draw_head()
        self.name_tabs()
        self.show_keys()

    def on_descendant_focus(self) -> None:
        # Not `:focus-within`: with it Textual styles the whole screen anew at each change of focus.
        for name in ("list-pane", "bottom"):
            pane = self.query_one(f"#{name}")
            pane.set_class(self.focused is not None and pane in self.focused.ancestors, "-active")
        if not self.query_one("#list-pane").has_class("-active"):
            self._close_drawer()  # nobody looks at what is behind it
        self.show_keys()

    def show_keys(self) -> None:
        """The line of keys for the pane that has the keyboard."""
        keys, last = (CHOOSER_KEYS, []) if self.focused is not None and self.focused.id == "chooser" else (KEYS, QUIT)
        if self.focused is self.list:
            keys = LIST_KEYS
        elif self.focused is not None and (own := panel_keys(self.focused)):
            last_own = [("o", "overlay", "screen.overlay"), ("a", "ablate", "screen.ablate")]
            keys = [*GENERAL[:2], *FLIP, *own] if self._tab == "unlearn" else [*GENERAL[:2], *own, *last_own]
        if self.memloc.keys:
            from memloc_tui.keys import relabelled

            keys, last = relabelled(keys, self.memloc.keys), relabelled(last, self.memloc.keys)
        self.query_one(KeyLine).show_keys(keys, last)

    def action_panel_key(self, tab: str, binding_id: str) -> None:
        """A key of a tab, clicked in the line of keys or chosen in the palette."""
        self.action_panel(tab)
        panel = cast(Widget, self.panel)
        action = next(
            b.action for b in panel_type(tab_named(tab)).BINDINGS if isinstance(b, Binding) and b.id == binding_id
        )
        self.call_after_refresh(self.app.run_action, action, panel)

    def action_chooser_key(self, what: str) -> None:
        """A key of the chooser, clicked in the line of keys."""
        getattr(self.choosing.chooser, f"action_{what}")()


def panel_keys(focused: Widget) -> list[Key]:
    """The keys of the tab that the keyboard is in."""
    for tab in PANELS:
        for node in focused.ancestors_with_self:
            if node.id == f"panel-{tab.name}":
                own = [b for b in type(node).BINDINGS if isinstance(b, Binding) and b.id and b.show]
                return [(b.key, b.description, f"screen.panel_key('{tab.name}','{b.id}')") for b in own]
    return []


ACTIONS = {b.action.partition("(")[0] for b in Explorer.BINDINGS if isinstance(b, Binding)}
ACTIONS |= {"panel_key", "chooser_key", "begin_tour"}  # of the line of keys and of the palette
FLIP: list[Key] = [("E", "original/edited", "screen.flip")]
QUIT: list[Key] = [("q", "quit", "app.leave")]
GENERAL: list[Key] = [
    ("?", "help", "app.help"),
    ("^p", "palette", "app.command_palette"),
    ("/", "filter", "screen.filter"),
]
KEYS: list[Key] = [
    *GENERAL,
    ("⏎", "perturb", "screen.perturb"),
    ("w", "sweep", "screen.sweep"),
    ("o", "overlay", "screen.overlay"),
    ("u", "undo", "screen.undo"),
    ("x", "unlearn", "screen.unlearn"),
    ("W", "options", "screen.sweep_options"),
    ("y", "copy", "screen.copy"),
    ("e", "export", "screen.export"),
]
LIST_KEYS: list[Key] = [
    *GENERAL,
    ("s", "sort", "screen.sort"),
    ("S", "reverse", "screen.reverse"),
    ("m", "mark", "screen.mark"),
    ("w", "sweep", "screen.sweep"),
    ("*", "mark all", "screen.mark_shown"),
    ("o", "overlay", "screen.overlay"),
    ("+", "own text", "screen.own_text"),
    ("e", "export", "screen.export"),
]
CHOOSER_KEYS: list[Key] = [
    ("↑↓ ←→", "try", "app.nothing"),
    ("⏎", "keep", "screen.chooser_key('keep')"),
    ("esc", "put back", "screen.chooser_key('leave')"),
    ("^r", "next draw", "screen.chooser_key('draw')"),
    ("type", "to look for a token", "app.nothing"),
]
