"""What the panels of 'where it is stored' share: they name requests, show a scene, and report what the person chose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from textual.binding import Binding
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widget import Widget

from memloc_core.requests import Request
from memloc_tui.glyphs import piece_text, quoted
from memloc_tui.scene import Head, Known, Scene, Switch, Want
from memloc_tui.widgets.one_line import OneLine

if TYPE_CHECKING:
    from memloc_tui.catalogue import Catalogue
    from memloc_tui.view import View


def switch_bindings(panel_id: str, switches: Sequence[Switch]) -> list[Binding]:
    """One key per switch; bindings are read by the help, the palette and the line of keys."""
    return [
        Binding(s.key, f"switch('{s.name}')", s.short or s.name, id=f"{panel_id}.{s.name}", tooltip=s.says)
        for s in switches
    ]


class LocalPanel(Vertical):
    """Base of the panels. A subclass says what it wants (`wanted`) and draws `scene` from `known` (`draw`)."""

    panel_id: ClassVar[str]
    title: ClassVar[str]
    key: ClassVar[str]
    SWITCHES: ClassVar[tuple[Switch, ...]] = ()
    MAIN: ClassVar[type[Widget]]  # what takes the keyboard
    DEFAULT_CSS = """
    LocalPanel {
        & .head { height: 1; color: $text-muted; padding: 0 1; }
        & .now { height: 1; padding: 0 1; &.-failed { height: auto; max-height: 4; text-wrap: wrap; } }
        & RowList { height: 1fr; padding: 0 1; }
        &.-stale { & RowList, & Heatmap { opacity: 50%; } }
        & .-none { display: none; }
    }
    """

    class Chose(Message):
        """The person chose another setting of a switch."""

        def __init__(self, name: str, option: str) -> None:
            super().__init__()
            self.name, self.option = name, option

    class ChoseHead(Message):
        """The person chose another head."""

        def __init__(self, head: Head) -> None:
            super().__init__()
            self.head = head

    class Jump(Message):
        """The person looks at this prefix position."""

        def __init__(self, position: int) -> None:
            super().__init__()
            self.position = position

    class Changed(Message):
        """The panel wants other requests than before."""

    scene: Scene | None = None
    known: Known | None = None

    def wanted(self, scene: Scene, known: Known) -> list[Want]:
        """The requests that this panel shows now, the paragraph's own first."""
        raise NotImplementedError

    def draw(self, scene: Scene, known: Known) -> None:
        """Show the scene with what is known."""
        raise NotImplementedError

    def show(self, view: View, catalogue: Catalogue, scene: Scene | None, known: Known) -> None:
        """Show a scene; None before the model is known. A panel that is just being mounted shows it then."""
        self.scene, self.known = scene, known
        self._lacks = view.error or "The model is still opening …"
        self._redraw()

    def on_mount(self) -> None:
        self._ready = True
        self._redraw()
        if self._wants_focus:
            self.focus_inside()

    def focus_inside(self) -> None:
        """Take the keyboard, now or once the panel is mounted."""
        self._wants_focus = True
        if self._ready:
            for main in self.query(self.MAIN).results(Widget):  # none where the app is ending while this opens
                self.screen.set_focus(main)
                return

    _ready = False
    _wants_focus = False
    _lacks = ""  # why there is no scene

    def line(self, selector: str, content: Content | str) -> None:
        """Say something in one of the panel's lines; unchanged ones paint nothing."""
        line = self.query_one(selector, OneLine)
        content = content if isinstance(content, Content) else Content(content)
        if line.content != content:
            line.say(content)

    def headline(self, selector: str, content: Content, lacks: str = "", failed: bool = False) -> None:
        """The first line, with why there is nothing to show; an error takes as many lines as it needs."""
        line = self.query_one(selector, OneLine)
        if lacks:
            says = " · " if content.plain else ""
            content = Content.assemble(content, (f"{says}{lacks}", "$text-error" if failed else "$text-muted"))
        changed = line.has_class("-failed") != failed
        line.set_class(failed, "-failed")
        if line.content != content or changed:
            line.update(content, layout=failed or changed)

    def on_resize(self) -> None:
        self.call_after_refresh(self._redraw)

    def _redraw(self) -> None:
        if self._ready and self.scene is not None and self.known is not None:
            self.draw(self.scene, self.known)
        elif self._ready:
            self.line(".now", Content.styled(self._lacks, "$text-muted"))

    def stale(self, request: Request | None, known: Known) -> str:
        """Mark the pictures as old while `request` has no result; why it has none."""
        missing = request is not None and known.result(request) is None
        lacks = known.lacks(request) if missing else ""
        self.set_class(missing and bool(lacks), "-stale")
        return lacks

    def action_switch(self, name: str) -> None:
        """The next setting of a switch."""
        switch = next(s for s in self.SWITCHES if s.name == name)
        if self.scene is not None:
            at = switch.options.index(self.scene.setting(switch))
            self.post_message(self.Chose(name, switch.options[(at + 1) % len(switch.options)]))


def token_name(scene: Scene, token: int) -> str:
    """A token's shown text between quotes."""
    pieces = scene.catalogue.pieces
    return quoted(piece_text(pieces[token] if 0 <= token < len(pieces) else b"", token))
