"""The form of the next run: a field a line; arrows or typing change it, Enter (or a click on the last line) starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from rich.cells import cell_len
from rich.segment import Segment
from textual import events
from textual.binding import Binding
from textual.message import Message

from memloc_tui.glyphs import fit, fit_end, visible
from memloc_tui.runs import DEFAULTS, NUMBERS, Field, Runs, fields, mistake, percentage
from memloc_tui.widgets.row_list import RowList

NAME, VALUE = 12, 14


class RunForm(RowList):
    """Shows the form's values and reports changes; the last row starts the run."""

    BINDINGS = [
        Binding("left", "change(-1)", "Less", id="run_form.less", tooltip="The value before", show=False),
        Binding("right", "change(1)", "More", id="run_form.more", tooltip="The next value", show=False),
        Binding("backspace", "erase", "Erase", id="run_form.erase", tooltip="Erase a character", show=False),
        Binding("delete", "default", "Default", id="run_form.default", tooltip="The default again", show=False),
    ]

    class Changed(Message):
        """The person changed a field."""

        def __init__(self, name: str, value: str) -> None:
            super().__init__()
            self.name, self.value = name, value

    class Start(Message):
        """The person wants this run."""

    runs: Runs = Runs()
    paragraph = ""  # the one on screen
    fields: tuple[Field, ...] = ()

    @property
    def field(self) -> Field | None:
        """The field under the cursor; None on the line that starts."""
        return self.fields[self.cursor] if 0 <= self.cursor < len(self.fields) else None

    def show_form(self, runs: Runs, paragraph: str) -> None:
        """Show these values. The cursor stays on its field."""
        here = self.field.name if self.field is not None else ""
        self.runs, self.paragraph = runs, paragraph
        self.fields = fields(runs.form)
        names = [f.name for f in self.fields]
        last = len(self.fields)
        cursor = names.index(here) if here in names else min(max(0, self.cursor), last)
        if self.count == last + 1 and cursor == self.cursor:
            self.refresh()
        else:
            self.show_rows(last + 1, cursor)

    def row(self, index: int, width: int) -> list[Segment]:
        if index == len(self.fields):
            start = self.look("faint" if self.runs.wrong else "match")
            return [Segment(" ▸ start ", start), Segment("  ⏎", self.look("faint"))]
        field_, form = self.fields[index], self.runs.form
        value = self._value(field_, form)
        wrong = mistake(field_.name, form[field_.name])
        note, look = (wrong, "leave") if wrong else (self._note(field_, form), "faint")
        here = index == self.cursor
        if here:  # what is typed comes to its end
            value = fit_end(value, max(1, width - NAME - 4))
        if field_.options:
            shown = f"‹ {value}{'▏' if here and field_.typed else ''} ›"
        else:
            shown = f"  {value}{'▏' if here else ''}"
        changed = form[field_.name] != DEFAULTS[field_.name]
        return [
            Segment(f" {fit(field_.name, NAME - 1)}", self.look("faint") if not here else None),
            Segment(fit(shown, max(VALUE, cell_len(shown) + 1)), self.look("perturb") if changed else None),
            Segment(note, self.look(look)),
        ]

    def _value(self, field_: Field, form: Mapping[str, str]) -> str:
        if field_.name == "paragraphs":
            return f"{len(self.runs.chosen)} marked" if form["paragraphs"] == "marked" else "on screen"
        return visible(form[field_.name])

    def _note(self, field_: Field, form: Mapping[str, str]) -> str:
        value = form[field_.name]
        if field_.name == "paragraphs":
            return "m marks one, * all in the list, M none" if value == "marked" else visible(self.paragraph)
        if field_.name == "place" and form["mask"] == "neurons":
            return "a layer, L2; the middle if empty"
        if field_.name == "sparsity":
            return f"{percentage(float(value))} may change"
        if field_.name == "instead" and self.runs.alternative:
            return self.runs.alternative
        return field_.says if isinstance(field_.says, str) else field_.says.get(value, "")

    # --------------------------------------------------------------------------------------------------------- changing

    def action_change(self, step: int) -> None:
        """The option before or after; of a typed number, the nearest one in that direction."""
        field_ = self.field
        if field_ is None or not field_.options:
            return
        value, options = self.runs.form[field_.name], field_.options
        if field_.name in NUMBERS and value not in options:
            if mistake(field_.name, value):
                self._change(field_, DEFAULTS[field_.name])
                return
            beyond = [o for o in options if (float(o) > float(value)) == (step > 0)]
            if beyond:
                self._change(field_, beyond[0] if step > 0 else beyond[-1])
            return
        at = options.index(value) + step
        if field_.name in NUMBERS:
            at = max(0, min(at, len(options) - 1))
        self._change(field_, options[at % len(options)])

    def action_erase(self) -> None:
        if self.field is not None and self.field.typed:
            self._change(self.field, self.runs.form[self.field.name][:-1])

    def action_default(self) -> None:
        if self.field is not None:
            self._change(self.field, DEFAULTS[self.field.name])

    def _change(self, field_: Field, value: str) -> None:
        if value != self.runs.form[field_.name]:
            # Here already: the next character may come before the explorer has answered.
            self.runs = replace(self.runs, form={**self.runs.form, field_.name: value})
            self.post_message(self.Changed(field_.name, value))

    _begun = ""  # the number that is being typed over

    def on_key(self, event: events.Key) -> None:
        if event.is_printable and event.character and self._type(event.character):
            event.stop()
            event.prevent_default()

    def on_paste(self, event: events.Paste) -> None:
        event.stop()
        self._type((event.text.splitlines() or [""])[0])

    def _type(self, text: str) -> bool:
        """Characters go into a typed field: any into a text, those of a number into a number. Whether they did."""
        field_ = self.field
        if field_ is None or not field_.typed:
            return False
        if field_.name in NUMBERS:
            text = text.strip() if set(text.strip()) <= set("0123456789.e-") else ""
        if not text:
            return False
        old = self.runs.form[field_.name]
        if field_.name in NUMBERS and self._begun != field_.name:
            old = ""  # the first digit begins a new number
        self._begun = field_.name
        self._change(field_, (old + text)[:400])
        return True

    def move_to(self, index: int) -> None:
        self._begun = ""
        super().move_to(index)

    def action_choose(self) -> None:
        self.post_message(self.Start())

    def clicked(self, index: int, x: int) -> None:
        """Onto an arrow: change; onto the last line: start; elsewhere: only go there."""
        if index == len(self.fields):
            self.action_choose()
        elif self.fields[index].options:
            shown = f"‹ {self._value(self.fields[index], self.runs.form)} ›"
            if NAME <= x < NAME + 2:
                self.action_change(-1)
            elif NAME + 2 <= x <= NAME + cell_len(shown) + 1:
                self.action_change(1)
