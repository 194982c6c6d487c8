"""The tabs of the lower part. A new one is one widget file and one line in `PANELS`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

from textual.widget import Widget

if TYPE_CHECKING:
    from memloc_tui.catalogue import Catalogue
    from memloc_tui.scene import Known, Scene
    from memloc_tui.view import View


class Tab(NamedTuple):
    """A tab: `name` in the resume state, the key that opens it, and where its widget is (imported after the frame)."""

    name: str
    title: str
    key: str
    widget: str


class Panel(Protocol):
    """What the explorer asks of a tab's widget."""

    @property
    def has_focus_within(self) -> bool: ...

    def show(self, view: View, catalogue: Catalogue, scene: Scene | None, known: Known) -> None:
        """Show this paragraph under its current replacements; no scene before the model is known."""

    def focus_inside(self) -> None:
        """Take the keyboard."""


PANELS = (
    Tab("perturb", "Perturb", "4", "perturb_panel:PerturbPanel"),
    Tab("gradients", "Gradients", "5", "gradients_panel:GradientsPanel"),
    Tab("attention", "Attention", "6", "attention_panel:AttentionPanel"),
    Tab("heads", "Heads", "7", "heads_panel:HeadsPanel"),
    Tab("patch", "Patch", "8", "patch_panel:PatchPanel"),
    Tab("unlearn", "Unlearn", "9", "unlearn_panel:UnlearnPanel"),
    Tab("findings", "Findings", "0", "findings_panel:FindingsPanel"),
)


def panel_type(tab: Tab) -> type[Widget]:
    """The class of a tab's widget; importing it is what costs."""
    module, _, name = tab.widget.partition(":")
    return cast(type[Widget], getattr(import_module(f"memloc_tui.widgets.{module}"), name))


def tab_named(name: str) -> Tab:
    return next(tab for tab in PANELS if tab.name == name)


def build_panel(name: str) -> Widget:
    """A new widget for a tab, `panel-<name>`."""
    return panel_type(tab_named(name))(id=f"panel-{name}", classes="-panel")
