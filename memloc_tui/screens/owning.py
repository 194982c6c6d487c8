"""Texts of the person's own among the paragraphs: typed, kept between sittings, and taken away again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memloc_core.requests.studied import paragraph_id
from memloc_tui import own_texts
from memloc_tui.catalogue import OWN, Catalogue
from memloc_tui.glyphs import fit
from memloc_tui.own_texts import Full, OwnText

if TYPE_CHECKING:
    from memloc_core.requests import ParagraphSet, Tokens, Vocabulary
    from memloc_tui.screens.explorer import Explorer
    from memloc_tui.session import Session

SHOWN = 40  # cells of a text in a notice


class Owning:
    """One per explorer. Every catalogue, of whichever weights, holds the same texts in the same rows."""

    def __init__(self, explorer: Explorer) -> None:
        self.explorer = explorer

    @staticmethod
    def row(paragraphs: ParagraphSet, tokens: Tokens) -> Tokens:
        """A text as a row of this set: cut where a paragraph ends, after the begin-of-text token if the set has it."""
        begun = paragraphs.begin < 0 or tokens[:1] == (paragraphs.begin,)
        return (tokens if begun else (paragraphs.begin, *tokens))[: paragraphs.tokens.shape[1]]

    def catalogue(self, session: Session) -> Catalogue:
        """The session's paragraphs and behind them the person's own: those of the study on screen, else those kept."""
        import numpy as np

        paragraphs, vocabulary, study = session.paragraphs, session.vocabulary, self.explorer.study
        assert paragraphs is not None
        assert vocabulary is not None
        if study is not None and study.catalogue.file is paragraphs:
            again = Catalogue(study.catalogue.paragraphs, vocabulary, paragraphs)
            again.gone = set(study.catalogue.gone)
            return again
        texts, notice = own_texts.load(vocabulary)
        if notice:
            self.explorer.memloc.say(notice, severity="warning")
        length, there = paragraphs.tokens.shape[1], set(paragraphs.ids)
        rows = dict.fromkeys(self.row(paragraphs, text.tokens) for text in texts)
        if short := sum(len(row) < length for row in rows):
            self.explorer.memloc.say(f"{short} of your own texts have fewer than {length} tokens and are left out.")
        new = [row for row in rows if len(row) == length and paragraph_id(np.array(row)) not in there]
        return Catalogue(paragraphs.with_rows(new, OWN), vocabulary, paragraphs)

    # ----------------------------------------------------------------------------------------------------- a new one

    def open(self) -> None:
        """Have a text typed."""
        from memloc_tui.screens.own_text import OwnTextDialog

        study = self.explorer.study
        assert study is not None
        catalogue = study.catalogue
        p = catalogue.paragraphs.prefix_length - int(catalogue.paragraphs.begin >= 0)
        dialog = OwnTextDialog(self.explorer, p, catalogue.length, len(catalogue.pieces))
        self.explorer.app.push_screen(dialog, self._given)

    def _given(self, tokens: Tokens | None) -> None:
        """Show the paragraph of a text: the row that is there, or a new one."""
        study, memloc = self.explorer.study, self.explorer.memloc
        if tokens is None or study is None:
            return
        catalogue = study.catalogue
        row = self.row(catalogue.paragraphs, tokens)
        there = catalogue.rows_of([row])
        if not there:
            number, whole = len(catalogue), catalogue.paragraphs.with_rows([row], OWN)
            for each in self.explorer.editing.studies:
                each.catalogue.extend(whole)
        else:
            number = there[0]
            if number not in catalogue.gone:
                memloc.say(f"This paragraph is in the {'list' if catalogue.is_own(number) else 'file'} already.")
            for each in self.explorer.editing.studies:
                each.catalogue.gone.discard(number)
        if catalogue.is_own(number):
            self._keep(catalogue.vocabulary, tokens[: len(row)])
        self._show(number)
        self.explorer.listing.scan()

    def _keep(self, vocabulary: Vocabulary, tokens: Tokens) -> None:
        try:
            own_texts.keep(vocabulary, OwnText(tokens, vocabulary.text(tokens)))
        except OSError as error:
            self.explorer.memloc.say(
                f"Your text is here until you quit: it cannot be kept ({error.strerror}).", "warning"
            )
        except Full as full:
            self.explorer.memloc.say(f"Your text is here until you quit. {full}", "warning")

    def _show(self, row: int) -> None:
        self.explorer.listing.go_to(row)
        self.explorer.listing.filter()

    # --------------------------------------------------------------------------------------------------- taken away

    def take_away(self) -> None:
        """The text on screen, after a question where the person has worked on it."""
        study = self.explorer.study
        assert study is not None
        row, id_ = study.current, study.id
        if not study.catalogue.is_own(row):
            self.explorer.memloc.say("This paragraph is one of the file: only texts of your own can be taken away.")
            return
        runs = sum(id_ in run.ids for run in self.explorer.unlearning.all.values())
        has = ["replacements"] if study.here.replacements or study.here.trials else []
        has += [f"{runs} run{'s' if runs > 1 else ''}"] if runs else []
        if not has:
            self._take_away(row)
            return
        from memloc_tui.screens.confirm import Confirm

        question = f"This text of yours has {' and '.join(has)}. Take it away?"
        self.explorer.app.push_screen(Confirm(question), lambda yes: self._take_away(row) if yes else None)

    def _take_away(self, row: int) -> None:
        explorer, memloc = self.explorer, self.explorer.memloc
        study = explorer.study
        if study is None or row in study.catalogue.gone:
            return
        paragraphs, resume, order = study.catalogue.paragraphs, memloc.resume, explorer.list.order
        id_ = paragraphs.ids[row]
        for each in explorer.editing.studies:
            each.catalogue.gone.add(row)
            each.work.pop(row, None)
            each.catalogue.perturbed.discard(row)
        resume.replace(id_, ())
        resume.tried.pop(id_, None)
        if row in study.catalogue.marked:
            study.catalogue.marked.remove(row)
            explorer.unlearning.planning.remember_marked()
        at = order.index(row) if row in order else 0
        left = [other for other in order if other not in study.catalogue.gone]
        self._show(left[min(at, len(left) - 1)] if left else 0)
        try:
            own_texts.drop(
                study.catalogue.vocabulary, lambda text: self.row(paragraphs, text.tokens) == paragraphs.row(row)
            )
        except OSError as error:
            memloc.say(f"Your text comes back the next time: its file cannot be written ({error.strerror}).", "warning")
            return
        memloc.say(f"Taken away: {fit(study.catalogue.snippet(row), SHOWN).rstrip()}")
