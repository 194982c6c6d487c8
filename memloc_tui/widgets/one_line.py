"""Single lines of chrome: the top line and the line of keys."""

from __future__ import annotations

from time import monotonic
from typing import Literal

from rich.cells import cell_len
from textual.content import Content
from textual.style import Style
from textual.widgets import Static

from memloc_tui.glyphs import fit

Job = Literal["sweep", "claims", "answers"]  # whose: the first that runs is shown
JOBS: tuple[Job, ...] = ("sweep", "claims", "answers")


class OneLine(Static):
    """A line that repaints without laying the screen out again. What does not fit ends in an ellipsis."""

    DEFAULT_CSS = "OneLine { text-wrap: nowrap; text-overflow: ellipsis; }"

    def say(self, content: Content) -> None:
        self.update(content, layout=False)


class TopLine(OneLine):
    """Program and model on the left, edits in the middle, the engine or its running job on the right."""

    DEFAULT_CSS = "TopLine { height: 1; padding: 0 1; background: $foreground 7%; }"

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self.model, self.about, self.engine, self.run, self.edits, self.edits_short = "", "", "opening", "", "", ""
        self.is_edited = False
        self._jobs: dict[Job, str] = {}
        self._started: dict[Job, float] = {}

    def on_resize(self) -> None:
        self.refresh()

    def show_model(self, name: str, about: str) -> None:
        """The name is cut where there is no room for it."""
        self.model, self.about = name, about
        self.refresh()

    def show_engine(self, text: str) -> None:
        self.engine = text
        self.refresh()

    def show_edits(self, text: str, short: str = "", edited: bool = False) -> None:
        """What differs from the model as it was loaded (`short` for where that is too long); empty: nothing does."""
        self.edits, self.edits_short, self.is_edited = text, short or text, edited
        self.refresh()

    def show_run(self, text: str) -> None:
        """A run of unlearning, which goes on beside everything else; empty: none does."""
        self.run = text
        self.refresh()

    @property
    def job(self) -> str:
        """What there is room for of what runs."""
        return next((self._jobs[of] for of in JOBS if of in self._jobs), "")

    def show_job(self, of: Job, name: str = "", done: int = 0, total: int = 0) -> None:
        """A running job with its share done and time left; an empty name: none of these is running."""
        if not name:
            self._jobs.pop(of, None)
        else:
            if of not in self._jobs or not done:
                self._started[of] = monotonic()
            left = ""
            if done and total and (spent := monotonic() - self._started[of]) > 0.5:
                seconds = round(spent / done * (total - done))
                left = f" {seconds // 60}:{seconds % 60:02d} left"
            share = f" {100 * done // total}%" if total else ""
            self._jobs[of] = f"{name}{share}{left} [esc]"
        self.refresh()

    def _left(self, room: int) -> str:
        """Program and model in so many cells, as far as that goes."""
        left = f"memloc  {self.model}{self.about}" if self.model else "memloc"
        if cell_len(left) <= room:
            return left
        name, about = room - 8 - cell_len(self.about), self.about
        if name < 4:  # too little of it to know it by
            name, about = room - 8, ""
        return f"memloc  {fit(self.model, name)}{about}" if self.model and name > 0 else "memloc"

    def render(self) -> Content:
        # In the first frame already: nothing has to be told first.
        right = self.job or self.run or self.engine
        room = self.content_size.width
        left = self._left(room - cell_len(right) - cell_len(self.edits_short) - 2)
        middle = self.edits or "edits: none"
        gap = room - cell_len(left) - cell_len(right)
        if gap < cell_len(middle) + 6:
            middle = self.edits_short
        width = cell_len(middle)
        if gap >= width + 2:
            before = (gap - width) // 2
            spaced = " " * before + middle + " " * (gap - before - width)
        else:
            spaced = " " * max(1, gap)
        look = "bold $text-warning" if self.job or self.run else "$text-muted"
        edits = "bold $text-warning" if self.is_edited else "$text-muted"
        return Content.assemble(("memloc", "bold"), left[6:], (spaced, edits), (right, look))


Key = tuple[str, str, str]  # the key as shown, what it does here, its action


class KeyLine(OneLine):
    """What the keys do here; each is a button for the mouse too."""

    DEFAULT_CSS = """
    KeyLine {
        height: 1; padding: 0 1; color: $text-muted;
        link-style: none; link-color: $text-muted; link-background: $background;
    }
    """

    def show_keys(self, keys: list[Key], last: list[Key]) -> None:
        """`last` always stands at the end; of `keys`, those at the end fall off where there is no room."""
        parts: list[Content] = []

        def width(key: Key) -> int:
            return cell_len(key[0]) + cell_len(key[1]) + 3

        room = (self.content_size.width or 78) + 2 - sum(map(width, last))
        while keys and sum(map(width, keys)) > room:
            keys = keys[:-1]
        for key, says, action in [*keys, *last]:
            button = Content.assemble((key, "bold $foreground"), f" {says}")
            parts += [button.stylize(Style.from_meta({"@click": action})), Content("  ")]
        self.say(Content("").join(parts))
