"""Which edits are on: the stack of them, the flip between original and edited weights, and a study under each."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from memloc_core.errors import MemlocError, UsageError
from memloc_core.requests import Edited, Request
from memloc_tui import edits as edit_store
from memloc_tui.edits import ActiveEdit
from memloc_tui.figures import head_names
from memloc_tui.glyphs import visible

if TYPE_CHECKING:
    from memloc_tui.runs import Run
    from memloc_tui.screens.explorer import Explorer
    from memloc_tui.screens.study import Study


class Editing:
    """One per explorer; it outlives studies, as the weights' edits do."""

    def __init__(self, explorer: Explorer) -> None:
        self.explorer = explorer
        self.stack: list[ActiveEdit] = []  # every edit that can be on, in the order in which they are applied
        self.edited = False  # whether the explorer shows the weights with them
        self._studies: dict[tuple[str, ...], Study] = {}  # by the fingerprints of the edits that are on
        self._restored = False  # the edits of the last sitting

    def opened(self) -> None:
        """The session knows the model (again): the edits of the last sitting, as far as they fit it."""
        memloc, session = self.explorer.memloc, self.explorer.session
        if not self._restored:
            self._restored = True
            if memloc.settings.edits:
                self.stack, self.edited = list(session.edits), True
            else:
                self._read_resume()
        try:
            session.set_edits(self._on_paper())
        except MemlocError as error:
            self.stack, self.edited = [], False
            session.set_edits(())
            memloc.say(f"{error} It was on last time; these are the original weights.", "warning")
        self.show_top()

    def _read_resume(self) -> None:
        """What was on last time. A file that is gone is said, and what stood on it goes with it."""
        resume = self.explorer.memloc.resume
        for fingerprint, file, name, on in resume.edits:
            try:
                found = edit_store.active(file)
                if found.fingerprint != fingerprint:
                    raise UsageError(f"{file} holds another edit now.")
                self.stack.append(replace(found, name=name, on=on == "on"))
            except MemlocError as error:
                said = f"The edit {visible(name)} of the last visit is off: {error}"
                self.explorer.memloc.say(said, "warning" if on == "on" else "information")
        self._settle()
        self.edited = resume.edited and any(edit.on for edit in self.stack)

    def started(self, study: Study) -> None:
        """There is a new study under the edits as they are; those of another model or set are of no use any more."""
        self._studies = {self.on: study}
        study.edits = self.names
        if marked := set(self.explorer.memloc.resume.marked):
            study.catalogue.marked = set(study.catalogue.rows_called(marked).values())

    @property
    def studies(self) -> list[Study]:
        """Of this sitting, one under each set of edits that was shown."""
        return list(self._studies.values())

    def _on_paper(self) -> tuple[ActiveEdit, ...]:
        """The stack as the session gets it: nothing is on while the original is shown."""
        return tuple(replace(edit, on=edit.on and self.edited) for edit in self.stack)

    @property
    def on(self) -> tuple[str, ...]:
        """The fingerprints of the edits that are on in what is shown, the lowest first."""
        return tuple(edit.fingerprint for edit in self._on_paper() if edit.on)

    @property
    def names(self) -> str:
        """The edits that are on in what is shown."""
        return ", ".join(visible(edit.name) for edit in self._on_paper() if edit.on)

    def flip(self) -> None:
        """The whole explorer between the original and the edited weights."""
        if not any(edit.on for edit in self.stack):
            why = "every edit is off (t in the Unlearn tab)" if self.stack else "there is no edit yet: x makes one"
            self.explorer.memloc.say(f"These are the original weights; {why}.")
            return
        self.edited = not self.edited
        self._turn()

    def toggle(self, run: Run) -> None:
        """A run's edit on or off in the stack, on with those that it was made on top of, off with those that were made
        on top of it; shown at once if the explorer shows edited weights."""
        memloc = self.explorer.memloc
        if not run.file:
            memloc.say("This run has no edit." if not run.running else "Its edit comes when it ends.")
            return
        before = {edit.fingerprint for edit in self.stack if edit.on}
        try:
            if run.fingerprint in before:
                self.stack = [replace(e, on=e.on and e.fingerprint != run.fingerprint) for e in self.stack]
            else:
                self._put_in(replace(edit_store.active(run.file), name=run.name))
        except MemlocError as error:
            memloc.say(str(error), "error")
            return
        self._settle()
        others = [edit for edit in self.stack if edit.fingerprint != run.fingerprint]
        on = [visible(e.name) for e in others if e.on and e.fingerprint not in before]
        off = [visible(e.name) for e in others if not e.on and e.fingerprint in before]
        if on:
            memloc.say(f"{visible(run.name)} was made on top of {', '.join(on)}: {is_or_are(on)} on too.")
        if off:
            memloc.say(f"{', '.join(off)} cannot stand on what is on now: {is_or_are(off)} off too.")
        self.edited = self.edited and any(edit.on for edit in self.stack)
        self._turn()

    def _put_in(self, edit: ActiveEdit) -> None:
        """An edit on, and what it was made on top of, in its order, before all others. Raises MemlocError where one of
        these is kept no more."""
        known = {e.fingerprint: e for e in self.stack}
        ground = [replace(known.get(one) or edit_store.active(one), on=True) for one in edit.below]
        rest = [edit if e.fingerprint == edit.fingerprint else e for e in self.stack if e.fingerprint not in edit.below]
        self.stack = [*ground, *rest, *([edit] if edit not in rest else [])]

    def _settle(self) -> None:
        """Off with every edit that lacks what it was made on top of: with it no question could be asked."""
        on: list[str] = []
        for at, edit in enumerate(self.stack):
            self.stack[at] = edit = replace(edit, on=edit.on and edit_store.stands(edit, on))
            on += [edit.fingerprint] if edit.on else []

    def put_on(self, edit: ActiveEdit, below: tuple[str, ...], show: bool) -> None:
        """A new edit on top of those it was made on, and of nothing else."""
        self.stack = [replace(e, on=e.fingerprint in below) for e in self.stack if e.fingerprint != edit.fingerprint]
        self.stack.append(edit)
        if show:
            self._turn()
        else:
            self._remember()

    def forget(self, fingerprint: str) -> None:
        """An edit that is off is kept no more."""
        self.stack = [edit for edit in self.stack if edit.fingerprint != fingerprint]
        self.explorer.session.set_edits(self._on_paper())
        self._remember()
        self.show_top()

    def known(self, on: tuple[str, ...]) -> Study | None:
        """The study under exactly these edits, if they were shown in this sitting."""
        return self._studies.get(on)

    def _turn(self) -> None:
        """Show the weights of the stack as it is now: what is known of them at once, the rest as it comes."""
        explorer, before = self.explorer, self.explorer.study
        if before is None or self.explorer.memloc.session is None:
            return
        try:
            self.explorer.memloc.session.set_edits(self._on_paper())
        except MemlocError as error:
            explorer.memloc.say(str(error), "error")
            self.edited = False
            self.explorer.memloc.session.set_edits(self._on_paper())
        self._remember()
        self.show_top()
        study, original = self._studies.get(self.on), self._studies.get(())
        if study is not before:
            study = study if study is not None else self._new_study(before)
            study.catalogue.original = original.catalogue if original is not None and study is not original else None
            self._show(before, study)
        explorer.draw()

    def _show(self, before: Study, study: Study) -> None:
        """Another study of the same paragraphs: on the same one, with the same replacements."""
        from memloc_tui.screens.listing import Listing

        explorer = self.explorer
        before.trying = None
        explorer.choosing.reset()
        explorer.listing.telling.stop()
        explorer.finds.stop()
        for row, work in before.work.items():
            other = study.work_on(row)
            other.replacements, other.undo = work.replacements, work.undo
        study.current = before.current
        study.forget()
        explorer.study, explorer.listing = study, Listing(explorer)
        explorer.locating.begin()
        explorer.listing.filter(then=study.current)
        explorer.listing.scan()
        explorer.sweeping.peek()
        explorer.asking.ask()

    def _new_study(self, before: Study) -> Study:
        from memloc_tui.screens.study import Study

        catalogue = self.explorer.owning.catalogue(self.explorer.session)
        catalogue.perturbed, catalogue.marked = before.catalogue.perturbed, before.catalogue.marked
        study = self._studies[self.on] = Study(before.resume, catalogue, before.identity)
        study.edits = self.names
        return study

    def _remember(self) -> None:
        resume = self.explorer.memloc.resume
        resume.edits = [[e.fingerprint, e.file, e.name, "on" if e.on else "off"] for e in self.stack]
        resume.edited = self.edited
        self.explorer.memloc.save_soon()

    def show_top(self) -> None:
        """What differs from the model as it was loaded."""
        heads = tuple((layer, head) for layer, head in self.explorer.memloc.resume.ablated)
        ablated = f"ablated: {head_names(heads)}" if heads else ""
        names = ", ".join(visible(edit.name) for edit in self.stack if edit.on)
        said = short = ""
        if self.names:
            said, short = f"edits: {names} on (E original)", "edited (E)"
        elif names:
            said, short = f"original weights (E {names})", "original (E)"
        parts = [part for part in (said, ablated) if part]
        self.explorer.top.show_edits(" · ".join(parts), " · ".join(p for p in (short, ablated) if p), bool(self.names))

    def posed(self, request: Request, fingerprints: tuple[str, ...], files: dict[str, str] | None = None) -> Request:
        """A question with exactly these edits, whatever is on when it is asked."""
        places = {edit.fingerprint: edit.file for edit in self.stack} | (files or {})
        for fingerprint in fingerprints:
            if fingerprint not in places:
                places[fingerprint] = str(edit_store.find(fingerprint))
        return Edited(request, fingerprints, tuple(places[f] for f in fingerprints))


def is_or_are(names: list[str]) -> str:
    return "it is" if len(names) == 1 else "they are"
