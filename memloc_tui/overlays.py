"""The prefix's overlays that come from the engine: one number per token, of the head that was chosen."""

from __future__ import annotations

import math
from typing import NamedTuple

from memloc_core.requests import AttentionRows, HeadGradients
from memloc_tui.figures import head_name
from memloc_tui.readings import activation_of
from memloc_tui.scene import Known, Scene, Want
from memloc_tui.widgets.attention_panel import attention_request, query_of
from memloc_tui.widgets.gradients_panel import SITE


class Painted(NamedTuple):
    """An overlay's values [p], nan where not known, what they are, and why they are missing if they are."""

    values: tuple[float, ...]
    says: str


def wanted(scene: Scene) -> list[Want]:
    """What the overlay shows."""
    if scene.view.overlay == "attention":
        return [Want(attention_request(scene))]
    if scene.view.overlay == "gradient":
        return [Want(scene.activation_gradients())]
    return []


def painted(scene: Scene, known: Known) -> Painted:
    p = scene.view.prefix_length
    layer, head = scene.head
    unknown = (float("nan"),) * p
    if scene.view.overlay == "attention":
        request = attention_request(scene)
        rows: AttentionRows | None = known.result(request)
        says = f"attention {head_name(scene.head)} from position {query_of(scene)}"
        if rows is None:
            return Painted(unknown, _with(says, known.lacks(request)))
        return Painted(tuple(rows.weights[layer, head, :p].tolist()), says)
    if scene.view.overlay == "gradient":
        request, site = scene.activation_gradients(), scene.setting(SITE)
        gradients: HeadGradients | None = known.result(request)
        says = f"gradient {head_name(scene.head)}, max |dNLL/dh| of {'q, k, v, z' if site == 'max' else site}"
        if gradients is None:
            return Painted(unknown, _with(says, known.lacks(request)))
        values = activation_of(gradients, site)[layer, head, :p]
        power = math.floor(math.log10(values.max())) if values.max() > 0 else 0
        unit = f" in {10.0**power:.0e}".replace("e-0", "e−").replace("e+0", "e") if power else ""
        return Painted(tuple((values / 10.0**power).tolist()), says + unit)
    return Painted((), "")


def _with(says: str, lacks: str) -> str:
    return f"{says} · {lacks}" if lacks else says
