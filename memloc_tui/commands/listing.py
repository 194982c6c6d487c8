"""`memloc-tui list`."""

from __future__ import annotations

from typing import Any

from rich.text import Text

from memloc_core.codec import to_json
from memloc_tui.commands.console import Asker, Out, print_json, run, table_of
from memloc_tui.glyphs import visible
from memloc_tui.settings import Settings

_TEXT_WIDTH = 60


def list_paragraphs(settings: Settings, as_json: bool) -> None:
    """Every paragraph with its scores, in the file's order."""

    async def work(asker: Asker) -> list[dict[str, Any]]:
        catalogue, paragraphs = asker.catalogue, asker.catalogue.paragraphs
        await asker.score(range(len(catalogue)))
        return [
            {
                "id": paragraphs.ids[row],
                "em": int(catalogue.em[row]),
                "nll": float(f"{catalogue.nll[row]:.6g}"),
                "margin": float(f"{catalogue.margin[row]:.6g}"),
                "count": _known(paragraphs.repetitions[row]),
                "genre": paragraphs.genre[row],
                "family": _known(paragraphs.family[row]),
                "split": paragraphs.split[row],
                "text": catalogue.text(row),
            }
            for row in range(len(catalogue))
        ]

    records = run(settings, work)
    if as_json:
        print_json(to_json(records))
        return
    table = table_of("id", "EM", "NLL", "margin", "count", left=("genre", "text"))
    for line in records:
        count = "–" if line["count"] is None else str(line["count"])
        numbers = (str(line["em"]), f"{line['nll']:.3f}", f"{line['margin']:.2g}", count)
        text = Text(visible(line["text"][:_TEXT_WIDTH]), no_wrap=True, overflow="ellipsis")
        table.add_row(line["id"], *map(Text, numbers), Text(visible(line["genre"])), text)
    Out().print(table)


def _known(value: Any) -> int | None:
    return None if value < 0 else int(value)
