"""What a panel is about, and what is known about it: made by the explorer, read by panels and overlays.

A panel asks nobody. It names the requests it wants for a scene, and shows the scene with what is known of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from memloc_core.requests import (
    Ablated,
    ActivationGradients,
    ActivationPatching,
    Attention,
    AttentionPattern,
    AttributionPatching,
    ParameterGradients,
    PatchSite,
    Reference,
    Request,
    Tokens,
)

if TYPE_CHECKING:
    from memloc_core.requests import ModelInfo
    from memloc_tui.catalogue import Catalogue
    from memloc_tui.runs import Runs
    from memloc_tui.samples import Samples
    from memloc_tui.screens.finding import Board
    from memloc_tui.view import Replacements, View

Head = tuple[int, int]


class Switch(NamedTuple):
    """Something with a few settings that one key cycles; `says` is what the help says of the key."""

    name: str
    key: str
    options: tuple[str, ...]
    says: str
    short: str = ""  # in the line of keys


class Want(NamedTuple):
    """A request that a panel would show. Not `ask`: only if it is known already, since it is expensive."""

    request: Request
    ask: bool = True


class Known(Protocol):
    """What is known of requests at one moment."""

    def result(self, request: Request | None, partial: bool = False) -> Any:
        """The result, or None; with `partial` also what an unfinished analysis has so far."""

    def lacks(self, request: Request | None) -> str:
        """Why there is no result, in a few words: an error, how far it is, that it was stopped; "" where there is."""

    def failed(self, request: Request | None) -> bool:
        """Whether it is an error that `lacks` says."""


@dataclass(frozen=True)
class Scene:
    """The paragraph on screen, the model, and what the person chose."""

    view: View
    catalogue: Catalogue = field(repr=False)
    model: ModelInfo = field(repr=False)
    samples: Samples = field(repr=False)
    head: Head = (1, 2)
    ablated: tuple[Head, ...] = ()
    switches: Mapping[str, str] = field(default_factory=dict)
    runs: Runs | None = field(default=None, repr=False)  # of unlearning; only while their tab is open
    board: Board | None = field(default=None, repr=False)  # of the claims and the set; only while their tab is open

    def setting(self, switch: Switch) -> str:
        """A switch's setting, its first unless the person chose another."""
        chosen = self.switches.get(switch.name, "")
        return chosen if chosen in switch.options else switch.options[0]

    @property
    def key(self) -> tuple[int, Replacements, tuple[Head, ...]]:
        """What the paragraph's own pictures are of."""
        return self.view.index, self.view.replacements, self.ablated

    @property
    def tokens(self) -> Tokens:
        """The paragraph with its replacements in it."""
        return (*self.view.perturbed, *self.view.continuation)

    @property
    def where(self) -> str:
        """What the paragraph's own numbers are of, where that is not simply the paragraph."""
        said = []
        if n := len(self.view.replacements):
            said.append(f"with {n} replacement{'s' if n > 1 else ''}")
        if self.ablated:
            from memloc_tui.figures import head_names

            said.append(f"without {head_names(self.ablated)}")
        if self.view.edits:
            said.append(f"edited by {self.view.edits}")
        return ", ".join(said)

    def posed(self, request: Request) -> Request:
        """A question about this paragraph, with the heads ablated that the person ablated."""
        return Ablated(request, self.ablated) if self.ablated else request

    # ------------------------------------------------------------------------------ questions about this paragraph

    def gradients(self) -> Request:
        return self.posed(ParameterGradients((self.tokens,), self.view.prefix_length))

    def activation_gradients(self) -> Request:
        return self.posed(ActivationGradients(self.tokens, self.view.prefix_length))

    def attention(self, query: int) -> Request:
        return self.posed(Attention(self.tokens, self.view.prefix_length, query))

    def pattern(self) -> Request:
        return self.posed(AttentionPattern(self.tokens, *self.head))

    @property
    def twin(self) -> tuple[Replacements, Reference] | None:
        """The replacements that make the perturbed twin: those that stand now, else the newest that were tried."""
        if self.view.replacements:
            return self.view.replacements, self.view.reference
        if self.view.trials:
            return self.view.trials[0].replacements, self.view.trials[0].score.against
        return None

    def attribution(self) -> Request | None:
        if self.twin is None:
            return None
        return self.posed(AttributionPatching(self.view.tokens, self.twin[0], self.view.prefix_length, self.twin[1]))

    def patching(self, cells: tuple[tuple[PatchSite, int, int], ...]) -> Request | None:
        if self.twin is None:
            return None
        return self.posed(
            ActivationPatching(self.view.tokens, self.twin[0], self.view.prefix_length, self.twin[1], cells)
        )
