"""The Unlearn tab: the form of a run, its curves as it goes, what it left, and all runs compared."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

import numpy as np
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.style import Style
from textual.widgets import Static

from memloc_core.requests import GOALS, Goal, Remains
from memloc_tui.figures import figure
from memloc_tui.glyphs import piece_text, visible
from memloc_tui.runs import (
    AXES,
    Check,
    Run,
    Runs,
    checks,
    curve_table,
    curves,
    percentage,
    points,
    runs_table,
    spread,
    verdict,
)
from memloc_tui.scene import Known, Scene, Switch, Want
from memloc_tui.view import duration
from memloc_tui.widgets.curves import Curves, Lane
from memloc_tui.widgets.local_panel import LocalPanel, switch_bindings
from memloc_tui.widgets.one_line import OneLine
from memloc_tui.widgets.pareto import Pareto
from memloc_tui.widgets.row_list import RowList
from memloc_tui.widgets.run_form import RunForm
from memloc_tui.widgets.run_list import RunList
from memloc_tui.widgets.token_grid import Cell, Column, TokenGrid

if TYPE_CHECKING:
    from memloc_core.requests import Tokens
    from memloc_tui.tables import Table

VIEWS = ("curves", "result", "text", "compare")
VIEW = Switch("run_view", "v", VIEWS, "Unlearn: a run's curves, its result, its new text, or all runs compared", "view")
ON = Switch("run_axes", "g", tuple(AXES), "Unlearn: what the comparison is drawn over", "axes")


def clock(seconds: float) -> str:
    """`0:08`, or `1:02:03`."""
    if seconds != seconds:
        return "·:··"
    hours, rest = divmod(ceil(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def memory(size: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if size >= 10 or unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return ""


class ViewNames(OneLine):
    """The views of a run; each name is a button."""

    class Picked(Message):
        """A name was clicked."""

        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

    def action_pick(self, name: str) -> None:
        self.post_message(self.Picked(name))

    view = ""

    def show_views(self, view: str) -> None:
        if view == self.view:
            return
        self.view = view
        parts: list[Content] = []
        for name in VIEWS:
            look = "bold" if name == view else "$text-muted"
            parts += [Content.styled(name, look).stylize(Style.from_meta({"@click": f"pick('{name}')"}))]
        self.say(Content(" │ ").join(parts))


class TextGrid(TokenGrid):
    """The text, what the model said, and what it says now, token by token."""


class UnlearnPanel(LocalPanel):
    """See the module."""

    panel_id, title, key = "unlearn", "Unlearn", "9"
    MAIN = RunForm
    SWITCHES = (VIEW, ON)
    BINDINGS = [
        Binding("space", "pause", "pause", id="unlearn.pause", tooltip="Unlearn: pause the run, or go on"),
        Binding("n", "new", "new run", id="unlearn.new", tooltip="Unlearn: the form of a new run"),
        *switch_bindings("unlearn", SWITCHES),
        Binding("t", "on_off", "edit on/off", id="unlearn.toggle", tooltip="Unlearn: switch a run's edit on, or off"),
        Binding("b", "mark_run", "lay over", id="unlearn.mark_run", tooltip="Unlearn: lay a run over others, or not"),
        Binding(
            "i", "measure", "measure", id="unlearn.measure", tooltip="Unlearn: measure what a run left, and before"
        ),
        Binding("N", "name_run", "name", id="unlearn.name_run", tooltip="Unlearn: give a run a name of your own"),
        Binding(
            "c", "copy_file", "copy file", id="unlearn.copy_file", tooltip="Unlearn: copy the file of a run's edit"
        ),
        Binding("delete", "delete", "delete", id="unlearn.delete", tooltip="Unlearn: delete a run and its edit; asks"),
    ]
    DEFAULT_CSS = """
    UnlearnPanel {
        & #runs-side { width: 28; border-right: solid $foreground 15%; }
        & #runs-list { padding: 0 0 0 1; }
        & #run-view { width: 1fr; }
        & #run-views {
            height: 1; padding: 0 1; link-style: none; link-color: $foreground; link-background: $background;
        }
        & #run-cost { height: auto; max-height: 3; padding: 0 1; }
        & Curves, & Pareto, & #run-result, & TextGrid { height: 1fr; }
        & #run-result { padding: 0 1; overflow-y: auto; scrollbar-size-vertical: 1;
            scrollbar-color: $foreground 30%; scrollbar-background: $background; }
        & #run-said { height: auto; }
        & #run-what { height: 1; color: $text-muted; padding: 0 1; }
        &.-wide #runs-side { width: 34; }
        &.-huge #runs-side { width: 46; }
    }
    UnlearnPanel:ansi #runs-side { border-right: solid ansi_bright_black; }
    """

    class Wants(Message):
        """The person wants something: "set" a field of the form, "start", "pause"; "look" at a run, "mark", "toggle",
        "measure", "name" or "delete" it, "copy" its edit's file."""

        def __init__(self, what: str, run: Run | None = None, name: str = "", value: str = "") -> None:
            super().__init__()
            self.what, self.run, self.name, self.value = what, run, name, value

    def compose(self) -> ComposeResult:
        yield OneLine(classes="now", id="run-now")
        with Horizontal():
            with Vertical(id="runs-side"):
                yield OneLine(classes="head", id="runs-head")
                yield RunList(id="runs-list")
            with Vertical(id="run-view"):
                yield ViewNames(id="run-views")
                yield OneLine(id="run-what", markup=False)
                yield Static(id="run-cost", markup=False)
                yield RunForm(id="run-form")
                yield Curves(id="run-curves")
                with VerticalScroll(id="run-result", can_focus=True):
                    yield Static(id="run-said", markup=False)
                yield TextGrid(id="run-text")
                yield Pareto(id="run-pareto")

    def wanted(self, scene: Scene, known: Known) -> list[Want]:
        return []  # a run is no answer about the paragraph on screen

    def table(self) -> Table | None:
        """What an export of the tab holds: the curves of the run on show, or all runs where they are compared."""
        run = self.run
        return curve_table(run) if run is not None and self._view != "compare" else runs_table(self.runs)

    def show_number(self, number: int) -> None:
        """Go to this run."""
        numbers = [run.number for run in self.runs.runs]
        if self._ready and number in numbers:
            inside = self.query_one(RunForm).has_focus
            self.query_one(RunList).show_runs(self.runs, numbers.index(number) + 1)
            self._redraw()
            if inside:
                self.screen.set_focus(self.query_one(RunList))

    @property
    def runs(self) -> Runs:
        return (self.scene.runs if self.scene is not None else None) or Runs()

    @property
    def run(self) -> Run | None:
        """The run that is looked at; None for the form."""
        return self.query_one(RunList).run if self._ready else None

    @property
    def _view(self) -> str:
        """What is shown of the runs; without any there is only the form."""
        return self.scene.setting(VIEW) if self.scene is not None and self.runs.runs else VIEWS[0]

    def on_resize(self) -> None:
        self.set_class(self.size.width >= 100, "-wide")
        self.set_class(self.size.width >= 120, "-huge")
        super().on_resize()

    # ------------------------------------------------------------------------------------------------------- drawing

    def draw(self, scene: Scene, known: Known) -> None:
        runs, rows = self.runs, self.query_one(RunList)
        rows.show_runs(runs)
        run, view = rows.run, self._view
        self.line("#runs-head", f"{len(runs.runs)} runs" if len(runs.runs) != 1 else "1 run")
        if runs.runs:
            self.line("#runs-head", rows.head())
        self.query_one("#runs-side").display = bool(runs.runs)
        shown = {
            "#run-form": run is None and view != "compare",
            "#run-cost": run is None and view != "compare",
            "#run-curves": run is not None and view == "curves",
            "#run-result": run is not None and view == "result",
            "#run-text": run is not None and view == "text",
            "#run-pareto": view == "compare",
            "#run-what": (run is not None and view == "text") or view == "compare",
        }
        for selector, is_shown in shown.items():
            self.query_one(selector).display = is_shown
        self.query_one("#run-views").display = run is not None or view == "compare"
        self.query_one(ViewNames).show_views(view)
        going = any(r.running for r in runs.runs)
        error = visible(run.error) if run is not None and not going else ""
        self.headline("#run-now", self._now(runs, run), error, failed=bool(error))
        if shown["#run-form"]:
            self.query_one(RunForm).show_form(runs, f"{scene.view.id[:10]} {scene.catalogue.snippet(scene.view.index)}")
            self._cost(runs)
        elif view == "curves" and run is not None:
            self._curves(runs, run)
        elif view == "result" and run is not None:
            self._result(run)
        elif view == "text" and run is not None:
            self._text(scene, run)
        elif view == "compare":
            self._compare(scene, runs, run)
        if self._wants_new:
            self.call_after_refresh(self.action_new)

    def _now(self, runs: Runs, run: Run | None) -> Content:
        """The run that goes on, wherever the cursor is; else the one that is looked at."""
        going = next((r for r in runs.runs if r.running), None)
        if going is not None:
            of = f"{going.steps}/{going.request.steps}"
            left = f" · ≤ {clock(going.left)}" if going.left == going.left else ""
            waits = f"{left} · space pauses" if going.state == "running" else " · paused · space goes on"
            return Content.assemble(
                (f"{going.letter} {going.called}", "bold $text-warning"), f" · {of}{waits} · esc ends it"
            )
        if run is None:
            if not runs.known:
                return Content.styled("Reading the runs that are kept …", "$text-muted")
            return Content.assemble(("New run", "bold"), (" · ←→ change, or type · ⏎ starts", "$text-muted"))
        of = ", ".join(visible(i)[:8] for i in run.ids[:3]) + (" …" if len(run.ids) > 3 else "")
        state = {True: "its edit is on", False: "its edit is off"}.get(bool(run.on)) if run.on is not None else ""
        parts = [
            p
            for p in (
                visible(run.label),
                run.said if run.request.targets else "",
                f"of {of}" if of else "",
                f"edit {run.name}" if run.name else "",
                state,
            )
            if p
        ]
        return Content.assemble((f"{run.letter} ", "bold"), " · ".join(parts))

    def _cost(self, runs: Runs) -> None:
        """What the run will take, or why it cannot be started."""
        cost = runs.estimate
        if runs.wrong:
            said = Content.styled(runs.lacks, "$text-error")
        elif cost is None:
            said = Content.styled(runs.lacks or "…", "$text-muted")
        else:
            steps = int(runs.form["steps"]) if runs.form["steps"].isdecimal() else 0
            if runs.form["preset"] == "paper":
                steps = 10
            most = cost.seconds_to_start + steps * cost.seconds_per_step
            said = Content.assemble(
                (f"{cost.weights:,}", "bold"),
                " weights · ≤ ",
                (clock(most), "bold"),
                f", {duration(cost.seconds_per_step)} a step · {memory(cost.bytes)}",
            )
        line = self.query_one("#run-cost", Static)
        if line.content != said:
            line.update(said)

    def _curves(self, runs: Runs, run: Run) -> None:
        """The run's curves, with those of the marked runs behind them."""
        over = [run, *(r for r in runs.runs if r.number in runs.marked and r.number != run.number)]
        own = curves(run)
        others = {r.number: {c.name: c for c in curves(r)} for r in over[1:]}
        lanes = []
        for curve in own:
            same = [
                (visible(r.label) or r.letter, others[r.number][curve.name])
                for r in over[1:]
                if curve.name in others[r.number]
            ]
            low, high = spread([curve, *(c for _, c in same)])
            series = (curve.values, *(c.values for _, c in same))
            letters = (visible(run.label) or run.letter, *(letter for letter, _ in same))
            lanes.append(Lane(curve.name, curve.look, letters, series, run.best, low, high, curve.goal, curve.share))
        empty = visible(run.error) or (
            "Choosing the weights, measuring what is there …" if run.running else "No step yet."
        )
        self.query_one(Curves).show(lanes, empty)

    def _result(self, run: Run) -> None:
        """What it took, both goals, what remains."""
        wide = self.query_one("#run-result").size.width >= 76
        left, right = self._took(run), self._remains(run)
        said = _beside(left, right, 44) if wide else Content("\n").join([*left, Content(""), *right])
        box = self.query_one("#run-said", Static)
        if box.content != said:
            box.update(said)

    def _took(self, run: Run) -> list[Content]:
        result = run.result
        if result is None:
            return [Content.styled(visible(run.error) or "Nothing yet.", "$text-muted")]
        k = len(result.edit)
        took = f" · {duration(run.seconds)}" if run.seconds == run.seconds else ""
        back = f", drawn back to {percentage(result.drawn_back)}" if result.drawn_back < 1 else ""
        lines = [
            Content.assemble(
                (f"best step {run.best} of {run.steps}", "bold"), f"{back} · {result.changed or k:,} weights{took}"
            ),
            Content.styled(visible(result.reason), "$text-muted"),
            Content.styled(f"{duration(result.step_seconds)} a step · peak {memory(result.peak_bytes)}", "$text-muted"),
        ]
        if run.request.objective != "unlearn" and result.taught_em.size:
            first, best = float(result.taught_em[0].mean()), float(result.taught_em[run.best].mean())
            lines.append(Content(f"taught text: EM {figure(first)} → {figure(best)} of {run.length}"))
        if run.request.objective != "memorize":
            for goal in GOALS[:2]:
                lines += self._goal(run, goal)
        return lines

    @staticmethod
    def _goal(run: Run, goal: Goal) -> list[Content]:
        checked = checks(run, goal)
        says, met = verdict(checked)
        look = {True: "$text-success", False: "$text-error", None: "$text-muted"}[met]
        name = f"goal {goal}"

        def line(check: Check) -> Content:
            sign, hue = ("?", "$text-muted") if check.holds is None else ("✓", "$text-success")
            if check.holds is False:
                sign, hue = "✗", "$text-error"
            return Content.assemble(
                (f" {sign} ", hue), f"{check.name:<17}", (f"{check.wants:<9}", "$text-muted"), check.value
            )

        return [Content(""), Content.assemble((name, "bold"), " ", (says, look)), *map(line, checked)]

    def _remains(self, run: Run) -> list[Content]:
        """What is left of the paragraphs, before and after, as a table."""
        before, after = run.before, run.after
        n = len(run.request.targets)
        title = f"what remains, {'mean of ' + str(n) if n > 1 else 'n 1'}"
        lines = [Content.assemble((f"{title:<26}", "bold"), (f"{'before':>8}{'after':>8}", "$text-muted"))]
        if before is None and after is None:
            return [*lines, Content.styled(f" {run.measuring or 'not measured · i measures it'}", "$text-muted")]

        def row(name: str, read: object) -> Content:
            assert callable(read)
            values = [figure(float(read(r))) if r is not None else "·" for r in (before, after)]
            return Content.assemble(f" {name:<25}", (f"{values[0]:>8}", "$text-muted"), f"{values[1]:>8}")

        def relearned(r: Remains, values: object) -> float:
            return float("nan") if r.not_relearned else float(np.asarray(values)[-1].mean())

        known = after if after is not None else before
        assert known is not None
        steps = len(known.relearned_em) - 1 + known.not_relearned
        lines += [
            row("EM", lambda r: r.em.mean()),
            row("NLL", lambda r: r.nll.mean()),
            row("longest recited run", lambda r: r.longest_run.mean()),
            row("… under any prefix", lambda r: r.extracted_most().mean()),
            row("edit distance", lambda r: r.edit_distance.mean()),
            row("share 75 % similar", lambda r: r.extracted_at_75.mean()),
            row("repeated 4-grams", lambda r: r.repetition.mean()),
            row("… in fresh text", lambda r: r.fresh_repetition.mean() if len(r.fresh_repetition) else np.nan),
            row(f"EM, {steps} steps relearned", lambda r: relearned(r, r.relearned_em)),
            row("longest, relearned", lambda r: relearned(r, r.relearned_longest)),
            row("EM in 8 bits", lambda r: r.eight_bit_em.mean()),
            row("longest in 8 bits", lambda r: r.eight_bit_longest.mean()),
        ]
        if run.measuring:
            lines.append(Content.styled(f" {run.measuring}", "$text-muted"))
        return [*lines, *self._prefixes(known, before, after)]

    @staticmethod
    def _prefixes(known: Remains, before: Remains | None, after: Remains | None) -> list[Content]:
        """The longest recited run under each prefix that was tried."""
        lines = [Content.styled(" longest recited run, largest of all", "$text-muted")]
        for i, name in enumerate(known.variants):
            values = [str(int(r.extracted[i].max())) if r is not None else "·" for r in (before, after)]
            lines.append(
                Content.assemble(f"  {visible(name):<24}", (f"{values[0]:>8}", "$text-muted"), f"{values[1]:>8}")
            )
        return lines

    def _text(self, scene: Scene, run: Run) -> None:
        """One of the run's paragraphs, as it was and as it is."""
        grid = self.query_one(TextGrid)
        before, after = run.before, run.after
        known = after if after is not None else before
        if known is None:
            grid.show([], empty=f"The new text comes with what remains: {run.measuring or 'i measures it'}.")
            self.line("#run-what", "")
            return
        targets, at = run.request.targets, self._target(scene, run)
        p, length = run.request.prefix_length, run.length
        true: Tokens = targets[at][p:]
        old = tuple(before.greedy[at].tolist()) if before is not None else None
        new = tuple(after.greedy[at].tolist()) if after is not None else None
        labels = ["true"]
        if old is not None and old != true:
            labels.append("before")
        if new is not None:
            labels.append("after")
        if run.request.alternatives:
            labels.append("taught")
        rows = {"true": true, "before": old, "after": new}
        if run.request.alternatives:
            rows["taught"] = run.request.alternatives[at][p:]
        columns: list[Column] = []
        for i in range(length):
            columns.append(tuple(self._cell(scene, name, rows[name] or (), true, i) for name in labels))
        grid.show(columns, tuple(labels), "")
        ems = [str(int(r.em[at])) if r is not None else "·" for r in (before, after)]
        which = visible(run.ids[at])[:10] if at < len(run.ids) else f"paragraph {at + 1}"
        of = f", {at + 1} of {len(targets)}" if len(targets) > 1 else ""
        if of and self.has_focus_within:
            of += ": [ ] walk"
        self.line("#run-what", f"{which}{of} · EM {ems[0]} → {ems[1]} · greedy text · ✗ leaves the true one")

    _of: tuple[int, Tokens] | None = None  # the run and the paragraph on screen that the text was shown for
    _at = 0  # which of the run's paragraphs it is

    def _target(self, scene: Scene, run: Run) -> int:
        """The paragraph on screen if the run changed it, else its first one; until the person walks to another."""
        targets, tokens = run.request.targets, scene.view.tokens
        if self._of != (run.number, tokens):
            self._of, self._at = (run.number, tokens), targets.index(tokens) if tokens in targets else 0
        return self._at

    def walk(self, step: int) -> bool:
        """To the text of another of the run's paragraphs; False where no text of several is shown."""
        run, scene = self.run, self.scene
        if run is None or scene is None or self._view != "text" or len(run.request.targets) < 2:
            return False
        self._at = max(0, min(self._target(scene, run) + step, len(run.request.targets) - 1))
        self._redraw()
        return True

    def on_descendant_focus(self) -> None:
        self._redraw_text()

    def on_descendant_blur(self) -> None:
        self._redraw_text()

    def _redraw_text(self) -> None:
        """Its line names the keys that walk, where they do."""
        if self._view == "text":
            self._redraw()

    @staticmethod
    def _cell(scene: Scene, row: str, tokens: Tokens, true: Tokens, i: int) -> Cell:
        pieces = scene.catalogue.pieces
        if i >= len(tokens):
            return Cell("")
        token = tokens[i]
        text = piece_text(pieces[token] if 0 <= token < len(pieces) else b"", token)
        if row == "true":
            return Cell(text, "match")
        if row == "taught":
            return Cell(text, "faint")
        left = next((k for k, (a, b) in enumerate(zip(tokens, true, strict=False)) if a != b), len(true))
        if i < left:
            return Cell(text, "same")
        return Cell(f"✗{text}", "leave") if i == left else Cell(text, "astray" if token != true[i] else "")

    def _compare(self, scene: Scene, runs: Runs, run: Run | None) -> None:
        """The marked runs, or all where fewer than two are marked."""
        compared = tuple(r for r in runs.runs if r.number in runs.marked and r.result is not None)
        if len(compared) < 2:
            compared = tuple(r for r in runs.runs if r.result is not None and r.request.objective != "memorize")
        axes = scene.setting(ON)
        which = "marked" if len(runs.marked) > 1 else "all"
        self.line(
            "#run-what", f"{which} {len(compared)} at their best step · g axes · b marks · dim: another is better"
        )
        self.query_one(Pareto).show(points(compared, axes), axes, run.number if run is not None else -1, "No runs yet.")

    # ------------------------------------------------------------------------------------------------------ messages

    def on_row_list_moved(self, message: RowList.Moved) -> None:
        message.stop()
        if isinstance(message.rows, RunList):
            if message.rows.run is not None:
                self.post_message(self.Wants("look", message.rows.run))
            self._redraw()

    def on_row_list_chosen(self, message: RowList.Chosen) -> None:
        message.stop()
        if isinstance(message.rows, RunList):
            self._redraw()
            self._enter_view()

    def _enter_view(self) -> None:
        """Into the form, or into the picture of the run."""
        if self.run is None and self.scene is not None and self.scene.setting(VIEW) == "compare":
            self.post_message(self.Chose(VIEW.name, "curves"))
        target: type[RunForm] | str = RunForm if self.run is None else self._picture()

        def enter() -> None:
            if self.has_focus_within:  # else the person has gone elsewhere meanwhile
                self.screen.set_focus(self.query_one(target))

        self.call_after_refresh(enter)

    def _picture(self) -> str:
        pictures = {"curves": "#run-curves", "result": "#run-result", "text": "#run-text"}
        return pictures.get(self._view, "#runs-list")

    def focus_inside(self) -> None:
        """The form, or the list where a run is looked at."""
        self._wants_focus = True
        if self._ready:
            form = self.query_one(RunForm)
            self.screen.set_focus(form if form.display else self.query_one(RunList))

    def on_view_names_picked(self, message: ViewNames.Picked) -> None:
        message.stop()
        self.post_message(self.Chose(VIEW.name, message.name))

    def on_run_form_changed(self, message: RunForm.Changed) -> None:
        message.stop()
        self.post_message(self.Wants("set", name=message.name, value=message.value))

    def on_run_form_start(self, message: RunForm.Start) -> None:
        message.stop()
        self.post_message(self.Wants("start"))

    _wants_new = False

    def action_new(self) -> None:
        """The form of a new run, now or once the tab can show it."""
        self._wants_new = self.scene is None or not self._ready
        if self._wants_new or self.scene is None:
            return
        if self.scene.setting(VIEW) == "compare":
            self.post_message(self.Chose(VIEW.name, "curves"))
        self.query_one(RunList).show_runs(self.runs, 0)
        self._redraw()
        self._enter_view()

    def action_switch(self, name: str) -> None:
        """The form has no views but itself and the comparison, which takes a run."""
        if name == VIEW.name and not self.runs.runs:
            self.post_message(self.Wants("compare"))
        elif name == VIEW.name and self.run is None:
            self.post_message(self.Chose(name, VIEWS[0] if self._view == "compare" else "compare"))
        else:
            super().action_switch(name)

    def action_pause(self) -> None:
        self.post_message(self.Wants("pause"))

    def action_on_off(self) -> None:
        self.post_message(self.Wants("toggle", self.run))

    def action_mark_run(self) -> None:
        self.post_message(self.Wants("mark", self.run))

    def action_measure(self) -> None:
        self.post_message(self.Wants("measure", self.run))

    def action_name_run(self) -> None:
        self.post_message(self.Wants("name", self.run))

    def action_copy_file(self) -> None:
        self.post_message(self.Wants("copy", self.run))

    def action_delete(self) -> None:
        self.post_message(self.Wants("delete", self.run))


def _beside(left: list[Content], right: list[Content], width: int) -> Content:
    """Two columns of lines; the left one is padded, and cut where a line is too long."""
    lines = []
    for i in range(max(len(left), len(right))):
        one = left[i] if i < len(left) else Content("")
        cut = one.truncate(width, ellipsis=True, pad=True)
        lines.append(cut + (right[i] if i < len(right) else Content("")))
    return Content("\n").join(lines)
