"""A report as one HTML file: pictures inline, no script, readable on a phone, in the dark, and by a screen reader.

Text reaches the page through `pictures.label` alone. The page also forbids itself, by its content security policy,
to load or run anything.
"""

from __future__ import annotations

from memloc_tui.reports import pictures
from memloc_tui.reports.document import Block, Chart, Document, Grid, Section, Token, Tokens, Words
from memloc_tui.reports.pictures import label

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_HUES = ("match", "leave", "perturb", "attention", "gradient", "rarity")


def _colours(hues: dict[str, str], ground: str) -> str:
    return f"--ground:{ground};" + "".join(f"--{name}:{hue};" for name, hue in hues.items())


_STYLE = (
    f":root{{color-scheme:light dark;{_colours(pictures.LIGHT, '#fff')}}}"
    f"@media(prefers-color-scheme:dark){{:root{{{_colours(pictures.DARK, '#0d1117')}}}}}"
    """
body{max-width:46rem;margin:0 auto;padding:1rem;background:var(--ground);color:var(--ink);
font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.5rem;line-height:1.25}h2{font-size:1.2rem;margin-top:2.5rem;border-bottom:1px solid var(--line)}
h3{font-size:1rem;margin-top:1.75rem}
.wide{overflow-x:auto;margin:1rem 0}.wide:focus-visible{outline:2px solid var(--attention)}
table{border-collapse:collapse;min-width:60%}
caption{text-align:left;color:var(--faint);padding:.25rem 0}
th,td{padding:.2rem .75rem .2rem 0;border-bottom:1px solid var(--line);text-align:right;vertical-align:top;
font-variant-numeric:tabular-nums;white-space:nowrap}
th{font-weight:600}th.left,td.left{text-align:left;white-space:normal}
figure{margin:1rem 0}figcaption,.says{color:var(--faint)}svg.pic{display:block;width:100%;max-width:36rem;height:auto}
.upright svg.pic{max-width:none;min-width:32rem}
.tokens{font:14px/2 ui-monospace,Menlo,Consolas,monospace;white-space:pre-wrap}
.tokens span{border-bottom:1px solid var(--line);padding-bottom:1px}
.tokens span:nth-of-type(2n){border-bottom-style:dotted}
.tokens sub{font-size:.7em;color:var(--faint);margin:0 .2em}
"""
    + "".join(
        f".tokens .{hue}{{background:color-mix(in srgb,var(--{hue}) calc(var(--level,.25)*70%),transparent)}}"
        for hue in _HUES
    )
    + ".tokens b{color:var(--leave)}"
)


def write(document: Document) -> str:
    """The whole file."""
    body = [f"<h1>{label(document.title)}</h1>", *(f'<p class="says">{label(line)}</p>' for line in document.about)]
    for section in document.sections:
        body += _section(section)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{label(document.title)}</title>\n<style>{_STYLE}\n{pictures.STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def _section(section: Section) -> list[str]:
    heading = f"<h{section.level}>{label(section.heading)}</h{section.level}>"
    return ["<section>", heading, *map(_block, section.blocks), "</section>"]


def _block(block: Block) -> str:
    if isinstance(block, Words):
        return f"<p>{label(block.text)}</p>"
    if isinstance(block, Tokens):
        tokens = "".join(map(_token, block.tokens))
        return f'<figure><figcaption>{label(block.caption)}</figcaption><p class="tokens">{tokens}</p></figure>'
    if isinstance(block, Chart):
        draw = pictures.columns if block.kind == "upright" else pictures.bars
        picture = draw(block.title, block.says, block.bars, block.hue)
        caption = f"<figcaption>{label(block.caption)}</figcaption>"
        return f'<figure class="{block.kind}">{caption}{_scrolled(picture, block.title)}</figure>'
    return _grid(block)


def _token(token: Token) -> str:
    sign = f"<b>{label(token.sign)}</b>" if token.sign else ""
    value = f"<sub>{label(token.value)}</sub>" if token.value else ""
    hue = token.hue if token.hue in _HUES else ""
    look = f' class="{hue}"' if hue else ""
    look += f' style="--level:{min(1.0, max(0.0, token.level)):.2f}"' if hue and token.level else ""
    return f"{sign}<span{look}>{label(token.text)}</span>{value}"


def _grid(grid: Grid) -> str:
    def cell(tag: str, number: int, text: str, scope: str = "") -> str:
        left = ' class="left"' if number == 0 or grid.columns[number] in grid.left else ""
        return f"<{tag}{scope}{left}>{label(text)}</{tag}>"

    head = "".join(cell("th", i, name, ' scope="col"') for i, name in enumerate(grid.columns))
    rows = [
        "<tr>"
        + cell("th", 0, row[0], ' scope="row"')
        + "".join(cell("td", i, text) for i, text in enumerate(row) if i)
        + "</tr>"
        for row in grid.rows
    ]
    caption = f"<caption>{label(grid.caption)}</caption>" if grid.caption else ""
    table = f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>\n"
    return _scrolled(table + "\n".join(rows) + "\n</tbody></table>", grid.caption or ", ".join(grid.columns))


def _scrolled(inner: str, name: str) -> str:
    """What is wider than a phone scrolls by itself, also by keyboard."""
    return f'<div class="wide" role="region" tabindex="0" aria-label="{label(name)}">{inner}</div>'
