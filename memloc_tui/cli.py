"""Every command. `memloc-tui` alone opens the explorer, or prints a report where there is no terminal.

Exit codes: 0 done, 1 the work failed, 2 wrong use. `--json` prints one JSON document on stdout and nothing else;
progress goes to stderr. What a command does is in modules of their own, imported when the command runs: the
explorer's first frame does not wait for it.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from memloc_core.errors import MemlocError, UsageError
from memloc_tui.settings import Settings
from memloc_tui.start import COMPLETE, explore, has_terminal

F = TypeVar("F", bound=Callable[..., Any])
OBJECTIVES = ("unlearn", "edit", "memorize")
MASKS = ("auto", "neurons", "gradient", "difference", "ratio", "random", "head", "layer", "component", "dense")
GOALS = ("break", "forget", "steps")
PROTOCOLS = ("memloc", "paper")
STRATEGY_NAMES = ("random", "next-best", "most-frequent", "rarest", "given")

# Each stands on the group and on every command that opens a model, so both orders of writing work.
_OPTIONS: tuple[Callable[[F], F], ...] = (
    click.option(
        "--model", metavar="MODEL", help="demo, a checkpoint folder, or a name in the local hub cache. [demo]"
    ),
    click.option("--revision", metavar="REV", help="Branch, tag or commit of a model in the hub cache. [main]"),
    click.option(
        "--paragraphs",
        metavar="SOURCE",
        help="demo, a .jsonl, .txt, .npy, .pt, .csv, .parquet or .arrow file, PREFIX.npy+SUFFIX.npy or a folder "
        "with one such pair, a folder saved by datasets, or ORG/NAME[@CONFIG][:SPLIT], prepared by datasets or fetched "
        "by download --data. [demo]",
    ),
    click.option("--device", metavar="DEVICE", help="auto, cpu, cuda:N or mps. [auto]"),
    click.option("--dtype", metavar="DTYPE", help="auto (float32), float32, bfloat16 or float16. [auto]"),
    click.option("--prefix-length", type=click.IntRange(1), metavar="N", help="Tokens to prompt with. [50]"),
    click.option("--continuation-length", type=click.IntRange(1), metavar="N", help="Tokens that should follow. [50]"),
    click.option(
        "--begin-of-text/--no-begin-of-text",
        default=None,
        help="Put the model's begin-of-text token before every paragraph, once, beside the tokens of the prefix. [no]",
    ),
    click.option(
        "--edit",
        "edits",
        multiple=True,
        metavar="EDIT",
        help="An edit file, or the beginning of a stored edit's name: ask the edited model. Repeatable, in order.",
    ),
    click.option("--cache-dir", type=click.Path(path_type=Path), metavar="DIR", help="Where results are kept."),
    click.option("--no-cache", is_flag=True, default=None, help="Neither read nor keep results on disk."),
)


def _with(options: tuple[Callable[[F], F], ...], command: F) -> F:
    for option in reversed(options):
        command = option(command)
    return command


def _settings(context: click.Context, given: dict[str, Any]) -> Settings:
    """The group's options with the command's own on top."""
    chosen = {name: given.pop(name, None) for name in (*Settings.__dataclass_fields__, "no_cache")}
    if chosen.pop("no_cache"):
        chosen["use_cache"] = False
    chosen["edits"] = chosen["edits"] or None  # none given is not none wanted
    return replace(context.obj or Settings(), **{name: value for name, value in chosen.items() if value is not None})


def _given(context: click.Context, *names: str) -> str:
    """Those of these options that stand on the command line, such as `--address, --stride`; "" where none does."""
    typed = click.core.ParameterSource.COMMANDLINE
    options = [option for option in context.command.params if option.name in names]
    return ", ".join(option.opts[0] for option in options if context.get_parameter_source(option.name or "") == typed)


class Commands(click.Group):
    """The commands; a reader who leaves early, as in `memloc-tui list | head`, is no failure."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes it at its end
            return None


@click.group(cls=Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@partial(_with, _OPTIONS)
@click.option("--theme", metavar="NAME", help="A Textual theme, such as textual-dark, ansi-dark or ansi-light.")
@click.option("--no-mouse", is_flag=True, help="Leave the mouse to the terminal.")
@click.version_option(None, "--version", package_name="memloc-tui", prog_name="memloc-tui")
@click.pass_context
def cli(context: click.Context, /, theme: str | None, no_mouse: bool, **given: Any) -> None:
    """See which paragraphs a language model recites verbatim, and what holds them, token by token.

    Without a command: the explorer, on the embedded demo model unless --model names another.
    """
    from memloc_tui import config

    chosen = config.load()
    context.obj = chosen.settings
    context.obj = settings = _settings(context, given)
    opens = context.invoked_subcommand is None and has_terminal()  # the explorer says what is wrong, and opens
    if chosen.problems and not opens and context.invoked_subcommand not in ("config", "completion", "tour"):
        raise UsageError(" ".join(chosen.problems))
    if context.invoked_subcommand is not None:
        if flags := _given(context, "theme", "no_mouse"):
            raise UsageError(f"{flags} goes with the explorer alone, which opens without a command.")
        if context.invoked_subcommand == "tour" and (
            flags := _given(context, "model", "revision", "paragraphs", "begin_of_text")
        ):
            raise UsageError(f"The tour shows the embedded model and its paragraphs; leave out {flags}.")
        return
    from memloc_core import sources

    sources.model_folder(settings.model, settings.revision)  # said now, not after the screen has been taken over
    sources.paragraph_files(settings.paragraphs)
    if settings.edits:
        from memloc_tui.edits import active

        for name in settings.edits:
            active(name)
    if has_terminal():
        chosen = replace(chosen, settings=settings, theme=theme or chosen.theme, mouse=chosen.mouse and not no_mouse)
        explore(chosen)
    from memloc_tui.commands.report import whole_set

    whole_set(settings)


@cli.command()
@click.pass_context
def tour(context: click.Context) -> None:
    """The explorer on the embedded model, with a card that says what to press and what it shows: two minutes."""
    if not has_terminal():
        raise UsageError("The tour needs a terminal; memloc-tui report says what it shows.")
    from memloc_tui.config import load

    own = {name: getattr(Settings, name) for name in ("model", "paragraphs", "begin_of_text")}
    demo = replace(context.obj or Settings(), **own)
    explore(replace(load(), settings=demo), tour=True)


@cli.command("list")
@partial(_with, _OPTIONS)
@click.option("--json", "as_json", is_flag=True, help="One JSON array, in the file's order.")
@click.pass_context
def list_(context: click.Context, /, as_json: bool, **given: Any) -> None:
    """Every paragraph: id, exact match, NLL, margin, repetitions, genre, text."""
    from memloc_tui.commands import listing

    listing.list_paragraphs(_settings(context, given), as_json)


@cli.command()
@partial(_with, _OPTIONS)
@click.option("--limit", type=click.IntRange(1), default=2000, show_default=True, metavar="N", help="Paragraphs.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--detector", type=click.Path(path_type=Path), metavar="FILE", help="Judge this one instead of fitting.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Keep the fitted detector.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.pass_context
def detect(
    context: click.Context,
    /,
    limit: int,
    seed: int,
    detector: Path | None,
    out: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Tell memorized paragraphs by their prefixes alone, and say how well that works (AUC, by cluster)."""
    from memloc_tui.commands import detect as asked

    asked.detect(_settings(context, given), limit, seed, detector, out, as_json)


@cli.command()
@partial(_with, _OPTIONS)
@click.option(
    "--quick",
    is_flag=True,
    help="Fewer paragraphs per claim, so wider intervals; rare-head is held against one null, not two.",
)
@click.option("--only", multiple=True, metavar="CLAIM", help="This claim alone, such as rare-head; repeatable.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Which paragraphs are drawn.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.pass_context
def findings(
    context: click.Context, /, quick: bool, only: tuple[str, ...], seed: int, as_json: bool, **given: Any
) -> None:
    """Test each claim of the paper on this model and these paragraphs, beside the paper's numbers."""
    from memloc_tui.commands import findings as asked

    asked.findings(_settings(context, given), quick, only, seed, as_json)


@cli.command()
@partial(_with, _OPTIONS)
@click.option("--paragraph", "ids", multiple=True, metavar="ID", help="An id or its beginning; repeatable.")
@click.option("--set", "stratum", type=click.Choice(("memorized", "non-memorized", "all")), help="One kind. [all]")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first N of the set.")
@click.option("--findings", is_flag=True, help="The paper's claims on this model and set instead.")
@click.option("--quick", is_flag=True, help="Findings on smaller samples.")
@click.option("--head", default="L1H2", show_default=True, metavar="HEAD", help="Whose attention a paragraph's holds.")
@click.option(
    "--format",
    "form",
    type=click.Choice(("terminal", "md", "html", "json")),
    help="[what --out ends in, else terminal]",
)
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Write it there, whole or not at all.")
@click.pass_context
def report(
    context: click.Context,
    /,
    ids: tuple[str, ...],
    stratum: str | None,
    limit: int | None,
    findings: bool,
    quick: bool,
    head: str,
    form: str | None,
    out: Path | None,
    **given: Any,
) -> None:
    """A report of paragraphs, of a set (all, without --paragraph or --set), or of the findings."""
    from memloc_tui.commands.console import Selection
    from memloc_tui.commands.report import report as write

    settings = _settings(context, given)
    if findings and (ids or stratum or limit):
        raise UsageError("--findings is about the whole set; it goes without --paragraph, --set and --limit.")
    if quick and not findings:
        raise UsageError("--quick goes with --findings.")
    if (stratum or not ids) and _given(context, "head"):
        raise UsageError("--head goes with --paragraph: the report of a set holds no attention.")
    selection = Selection(ids, stratum or (None if ids else "all"), limit, False, out)
    write(settings, selection, form, head, findings, quick)


_RUN: tuple[Callable[[F], F], ...] = (
    click.option("--objective", type=click.Choice(OBJECTIVES), help="What to do with it. [unlearn]"),
    click.option(
        "--alternative", "texts", multiple=True, metavar="TEXT", help="What edit teaches; repeatable, one a paragraph."
    ),
    click.option(
        "--replace",
        "replacements",
        nargs=2,
        type=(int, str),
        multiple=True,
        metavar="POSITION TOKEN",
        help="Or what the model says with this prefix token replaced. [the one that costs the most EM]",
    ),
    click.option("--mask", type=click.Choice(MASKS), help="How the weights that may change are chosen. [auto]"),
    click.option(
        "--place", metavar="WHERE", help="For the masks head (L1H2), layer (L3), component (W_out) and neurons (L2)."
    ),
    click.option(
        "--sparsity",
        type=float,
        metavar="SHARE",
        help="Share of the attention and MLP weights that may change. [0.001]",
    ),
    click.option(
        "--goal",
        type=click.Choice(GOALS),
        help="Where to stop: break, it no longer starts; forget, nothing of it is left; steps, after all. [break]",
    ),
    click.option("--steps", type=int, metavar="N", help="Adam steps, at most. [100]"),
    click.option("--lr", "learning_rate", type=float, metavar="RATE", help="Adam's learning rate. [0.01]"),
    click.option("--kl-weight", type=float, metavar="W", help="How firmly other text is held. [30]"),
    click.option("--keep", type=int, metavar="N", help="Paragraphs trained to stay as they are. [96]"),
    click.option("--seed", type=click.IntRange(0), metavar="N", help="Of the split, the batches and random masks. [0]"),
    click.option(
        "--protocol",
        type=click.Choice(PROTOCOLS),
        help="paper: as the paper did it, with its own goal, steps, rate and KL weight. [memloc]",
    ),
    click.option(
        "--relearn", type=click.IntRange(0), metavar="N", help="Steps on other text, to see what comes back. [20]"
    ),
)


def _check_sparsity(context: click.Context, masks: set[str]) -> None:
    """Raise UsageError for a share of the weights where all of them may change."""
    if masks and masks <= {"dense", "all"} and _given(context, "sparsity"):
        raise UsageError(f"Under the mask {min(masks)} every weight may change; leave out --sparsity.")


def _check_protocols(context: click.Context, protocols: tuple[str, ...], given: dict[str, Any]) -> None:
    """Raise UsageError for options that no run would look at."""
    from memloc_tui.unlearning import PAPERS_OWN

    own = [option for option in context.command.params if option.name in PAPERS_OWN and given[option.name] is not None]
    if own and set(protocols) == {"paper"}:
        flags = ", ".join(option.opts[0] for option in own)
        raise UsageError(f"The paper's protocol has its own goal, steps, rate and KL weight; leave out {flags}.")


@cli.command("unlearn")
@partial(_with, _OPTIONS)
@click.option("--paragraph", "ids", multiple=True, metavar="ID", help="An id or its beginning; repeatable.")
@click.option("--set", "stratum", type=click.Choice(("memorized", "non-memorized", "all")), help="All of one kind.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first N of the set.")
@partial(_with, _RUN)
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="EDIT", help="An edit file; the store has a finished run too."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.pass_context
def unlearn_(
    context: click.Context,
    /,
    ids: tuple[str, ...],
    stratum: str | None,
    limit: int | None,
    texts: tuple[str, ...],
    replacements: tuple[tuple[int, str], ...],
    out: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Take paragraphs out of the weights, in one run that changes few of them, and say what is left.

    The best step is kept as the run goes, so one that is stopped leaves an edit or nothing, never half a file.
    """
    from memloc_tui.commands import unlearn as asked
    from memloc_tui.commands.console import Selection
    from memloc_tui.unlearning import UnlearnOptions

    settings = _settings(context, given)
    _check_protocols(context, (given["protocol"],), given)
    _check_sparsity(context, {given["mask"] or "auto"})
    selection = Selection(ids, stratum, limit, as_json, out)
    options = UnlearnOptions(**{name: value for name, value in given.items() if value is not None})
    asked.unlearn(settings, selection, options, asked.Instead(texts, replacements))


@cli.command()
@partial(_with, _OPTIONS)
@click.option(
    "--with", "other", metavar="MODEL", help="The second model: a checkpoint folder, or a name in the local hub cache."
)
@click.option(
    "--with-edit", "edit", multiple=True, metavar="EDIT", help="Or the same model with this edit; repeatable."
)
@click.option("--paragraph", "ids", multiple=True, metavar="ID", help="An id or its beginning; repeatable.")
@click.option("--set", "stratum", type=click.Choice(("memorized", "non-memorized", "all")), help="All of one kind.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first N of the set.")
@click.option("--head", default="L1H2", show_default=True, metavar="HEAD", help="Whose attention is compared.")
@click.option("--draws", type=click.IntRange(1), default=1, show_default=True, help="Replacements per position.")
@click.option("--format", "form", type=click.Choice(("terminal", "md", "html", "json")), help="[--out's ending]")
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Write it there, whole or not at all.")
@click.pass_context
def compare(
    context: click.Context,
    /,
    other: str | None,
    edit: tuple[str, ...],
    ids: tuple[str, ...],
    stratum: str | None,
    limit: int | None,
    head: str,
    draws: int,
    form: str | None,
    as_json: bool,
    out: Path | None,
    **given: Any,
) -> None:
    """Two models, or original against edited, side by side on the same paragraphs."""
    from memloc_tui.commands.console import Selection
    from memloc_tui.commands.report import compare as write

    settings = _settings(context, given)
    if bool(other) == bool(edit):
        raise UsageError("Compare with what? Give --with MODEL or --with-edit EDIT.")
    if as_json and form not in (None, "json"):
        raise UsageError(f"--json is the same as --format json; leave it out, or --format {form}.")
    selection = Selection(ids, stratum, limit, as_json, out)
    second = (
        replace(settings, model=other, revision="", edits=())
        if other
        else replace(settings, edits=settings.edits + edit)
    )
    write(settings, second, selection, "json" if as_json else form, head, draws)


@cli.command("compare-masks")
@partial(_with, _OPTIONS)
@click.option(
    "--masks",
    multiple=True,
    metavar="MASK",
    help="all, top, random, difference, ratio, head[:L1H2], layer[:L3] or component[:W_out]; repeatable. [each]",
)
@click.option("--objectives", multiple=True, type=click.Choice(OBJECTIVES[:2]), help="Repeatable. [both]")
@click.option("--protocol", "protocols", multiple=True, type=click.Choice(PROTOCOLS), help="Repeatable. [memloc]")
@click.option("--limit", type=click.IntRange(1), default=10, show_default=True, metavar="N", help="Paragraphs.")
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="How many.")
@click.option("--seed", type=click.IntRange(0), metavar="N", help="The first of them. [0]")
@click.option("--sparsity", type=float, metavar="SHARE", help="Of all masks but all. [0.001]")
@click.option("--goal", type=click.Choice(GOALS), help="Where each run stops. [break]")
@click.option("--steps", type=int, metavar="N", help="Adam steps, at most.")
@click.option("--lr", "learning_rate", type=float, metavar="RATE", help="Adam's learning rate.")
@click.option("--kl-weight", type=float, metavar="W", help="How firmly other text is held.")
@click.option("--keep", type=int, metavar="N", help="Paragraphs trained to stay as they are.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FOLDER", help="For table.json, table.md, picture.svg.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.pass_context
def compare_masks(
    context: click.Context,
    /,
    masks: tuple[str, ...],
    objectives: tuple[Any, ...],
    protocols: tuple[str, ...],
    limit: int,
    seeds: int,
    out: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Unlearn memorized paragraphs one at a time with each mask: the paper's Figure 5, and the masks beyond it.

    Every run is kept in the cache as it ends: a comparison that was stopped goes on where it was.
    """
    from memloc_tui.commands import compare_masks as asked
    from memloc_tui.unlearning import UnlearnOptions

    settings = _settings(context, given)
    options = UnlearnOptions(**{name: value for name, value in given.items() if value is not None})
    objectives, protocols = objectives or OBJECTIVES[:2], protocols or PROTOCOLS[:1]
    _check_protocols(context, protocols, given)
    _check_sparsity(context, set(masks))
    comparison = asked.Comparison(masks, objectives, protocols, limit, seeds, options)
    asked.compare(settings, comparison, out, as_json)


@cli.command()
@click.argument("corpus")
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="SET.parquet", help="The set to make.")
@click.option("--model", metavar="MODEL", help="As for every command. [demo]")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a model in the hub cache. [main]")
@click.option("--device", metavar="DEVICE", help="auto (every visible GPU), cpu, cuda:N or mps. [auto]")
@click.option("--dtype", metavar="DTYPE", help="auto (float32), float32, bfloat16 or float16. [auto]")
@click.option("--stream", is_flag=True, help="CORPUS is on the hub: read it from there, and keep nothing of it.")
@click.option("--text-column", "column", default="", metavar="NAME", help="Where the text, or the ids, stand. [text]")
@click.option("--window", type=click.IntRange(2), default=100, show_default=True, metavar="N", help="Tokens.")
@click.option("--stride", type=click.IntRange(1), default=50, show_default=True, metavar="N", help="Tokens.")
@click.option("--prefix-length", type=click.IntRange(1), metavar="N", help="Tokens to prompt with. [50]")
@click.option(
    "--begin-of-text/--no-begin-of-text",
    default=None,
    help="The model reads its begin-of-text token before every window; the set's rows are without it. [no]",
)
@click.option(
    "--min-unique",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    metavar="SHARE",
    help="Leave out windows with fewer distinct tokens.",
)
@click.option(
    "--keep",
    default="memorized,partly,non-memorized:1000",
    show_default=True,
    metavar="STRATA",
    help="Strata to keep, each whole or, with :N, a sample.",
)
@click.option("--count-duplicates", is_flag=True, help="Count each kept window's repetitions in the whole corpus.")
@click.option("--nll", is_flag=True, help="The NLL of every window, not only of those that are kept.")
@click.option("--limit", type=click.IntRange(0), default=0, metavar="N", help="Only the first N documents.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the samples.")
@click.option(
    "--workers", type=click.IntRange(0), default=0, metavar="N", help="Engines. [one, or on this machine one a GPU]"
)
@click.option("--engine", type=click.Choice(("local", "ray")), default="local", show_default=True)
@click.option("--address", default="", metavar="HOST:PORT", help="Of a Ray cluster. [one that runs here, or a new one]")
@click.option(
    "--gpus-per-worker", type=click.FloatRange(0), default=0, metavar="N", help="On a Ray cluster. [0: a core, no GPU]"
)
@click.option(
    "--block-tokens",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="About what a kill costs each engine. [some 20 s of work]",
)
@click.option("--restart", is_flag=True, help="Forget what an earlier scan into SET has done.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.pass_context
def scan(
    context: click.Context,
    /,
    corpus: str,
    out: Path,
    stream: bool,
    column: str,
    keep: str,
    workers: int,
    engine: str,
    address: str,
    gpus_per_worker: float,
    block_tokens: int,
    restart: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Find what the model recites of a whole CORPUS, and make a set of it that the explorer opens.

    CORPUS is a .jsonl, .csv or .txt file (also .gz), a .parquet, .arrow or .npy file, a folder of them, or
    ORG/NAME[@CONFIG][:SPLIT] in the local cache of datasets or, with --stream, on the hub, however large it is. Windows
    slide over each document's tokens. The set can be opened while the scan runs; after Ctrl-C or any kill the same
    command goes on.
    """
    from memloc_core.scan.job import ScanOptions, keep_of
    from memloc_tui.commands import scan as asked

    settings = _settings(context, given)
    if settings.edits:
        raise UsageError("A scan reads a checkpoint: write the edited one with memloc-tui edits export, and scan that.")
    if engine != "ray" and (flags := _given(context, "address", "gpus_per_worker")):
        raise UsageError(f"{flags} goes with --engine ray.")
    own = {name: getattr(settings, name) for name in ("prefix_length", "begin_of_text")}
    options = ScanOptions(column=column, keep=keep_of(keep), **own, **given)
    where = asked.Where(engine, workers, address, gpus_per_worker)
    corpus = asked.corpus_of(corpus, stream)
    asked.scan(settings, corpus, out, options, where, block_tokens, restart, as_json)


@cli.group()
def analyze() -> None:
    """Run one analysis from the command line, on one paragraph or on all."""


_SELECTION: tuple[Callable[[F], F], ...] = (
    click.option("--paragraph", "ids", multiple=True, metavar="ID", help="An id or its beginning; repeatable."),
    click.option("--set", "stratum", type=click.Choice(("memorized", "non-memorized", "all")), help="All of one kind."),
    click.option("--all", "every", is_flag=True, help="The same as --set all."),
    click.option(
        "--limit",
        type=click.IntRange(1),
        metavar="N",
        help="Only the first N of the set; where memorized are held against non-memorized, of each.",
    ),
    click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout."),
    click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Write JSON lines, one a paragraph."),
)
_REPLACEMENTS: tuple[Callable[[F], F], ...] = (
    click.option("--position", "positions", type=int, multiple=True, required=True, metavar="I", help="From 0."),
    click.option("--token", "texts", multiple=True, metavar="T", help="The new token's text, such as ' dog'."),
    click.option("--token-id", "token_ids", type=int, multiple=True, metavar="N", help="The new token's id instead."),
)
_seed = click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
_query = click.option(
    "--query", type=int, default=-1, metavar="I", help="Where it looks from. [the last prefix token; the paper: 50]"
)
_own_or_true = click.option(
    "--reference",
    type=click.Choice(("true", "own")),
    default="true",
    show_default=True,
    help="Score the true continuation, or the model's own.",
)


def _analysis(name: str, *options: Callable[[Any], Any]) -> Callable[[Callable[[], None]], click.Command]:
    """Make `analyze`'s function of the same name, (settings, selection, **own options), a command."""

    def command(function: Callable[[], None]) -> click.Command:
        @click.pass_context
        def run(context: click.Context, /, every: bool, stratum: str | None, **given: Any) -> None:
            from memloc_tui.commands import analyze as asked
            from memloc_tui.commands.console import Selection

            settings = _settings(context, given)
            if every and stratum not in (None, "all"):
                raise UsageError(f"--all is the same as --set all; leave it out, or --set {stratum}.")
            chosen = {field: given.pop(field) for field in ("ids", "limit", "as_json", "out")}
            selection = Selection(stratum="all" if every else stratum, **chosen)
            getattr(asked, function.__name__)(settings, selection, **given)

        run.__doc__ = function.__doc__
        return analyze.command(name)(_with((*options, *_SELECTION, *_OPTIONS), run))

    return command


@_analysis("exact-match")
def exact_match() -> None:
    """How far greedy decoding recites each continuation, with margin and NLL."""


@_analysis("perturb", *_REPLACEMENTS, _own_or_true)
def perturb() -> None:
    """Replace prefix tokens and score again. Repeat --position and --token for several at once."""


@_analysis(
    "sweep",
    click.option("--strategy", type=click.Choice(STRATEGY_NAMES), default="random", show_default=True),
    click.option("--draws", type=click.IntRange(1), default=1, show_default=True, help="Replacements per position."),
    click.option("--seed", type=click.IntRange(0), metavar="N", help="For --strategy random. [0]"),
    click.option("--token-id", "token_ids", type=int, multiple=True, metavar="N", help="For --strategy given."),
    click.option(
        "--reference",
        type=click.Choice(("auto", "true", "own")),
        default="auto",
        show_default=True,
        help="auto: the model's own continuation where the paragraph is non-memorized, as in the paper.",
    ),
    click.option(
        "--verified",
        is_flag=True,
        help="Compute in bfloat16, and again exactly where that could change an exact match: faster where the hardware "
        "has bfloat16.",
    ),
)
def sweep() -> None:
    """Replace every prefix token in turn and see how much exact match each one costs."""


@_analysis(
    "parameter-gradients",
    click.option("--score", type=click.Choice(("max", "mean", "l2")), default="max", show_default=True),
)
def parameter_gradients() -> None:
    """Gradient of the NLL per layer and component: W_Q, W_K, W_V, W_O per head, W_in, W_out."""


@_analysis("contrast-gradients")
def contrast_gradients() -> None:
    """The memorized against the non-memorized paragraphs: difference and ratio of their mean gradients."""


@_analysis("activation-gradients")
def activation_gradients() -> None:
    """Gradient of the NLL per layer, head and token, at q, k, v and z."""


@_analysis(
    "attention",
    click.option("--head", default="L1H2", show_default=True, metavar="HEAD"),
    _query,
    click.option("--pattern", is_flag=True, help="The head's whole pattern too, in JSON."),
)
def attention() -> None:
    """Where a head looks from the last prefix token; JSON holds every head's row."""


@_analysis(
    "rarity",
    _query,
    _seed,
    click.option("--shuffle", type=click.Choice(("positions", "paragraphs")), default="positions", show_default=True),
)
def rarity() -> None:
    """Which heads look at rare tokens: Kendall's tau-b with a permutation null, over the selected paragraphs."""


@_analysis("ablation", click.option("--kind", type=click.Choice(("zero", "mean")), default="zero", show_default=True))
def ablation() -> None:
    """Every head switched off in turn: what the selected memorized and non-memorized paragraphs become."""


@_analysis(
    "patching",
    *_REPLACEMENTS,
    click.option(
        "--exact",
        type=click.Choice(("none", "top", "all")),
        default="top",
        show_default=True,
        help="Really run none of the patches, the ten of each kind that the estimate ranks first, or all.",
    ),
)
def patching() -> None:
    """Which activations carry the difference between a paragraph and its perturbed twin."""


@_analysis(
    "rare-tokens",
    click.option("--pairs", type=click.IntRange(1), default=5, show_default=True, help="Token pairs per paragraph."),
    _seed,
    _own_or_true,
)
def rare_tokens() -> None:
    """Whether replacing rare prefix tokens costs more than replacing common ones nearby, with interval."""


@cli.group()
@click.option("--cache-dir", type=click.Path(path_type=Path), metavar="DIR", help="Another folder than the user's.")
@click.pass_context
def cache(context: click.Context, /, cache_dir: Path | None) -> None:
    """The results kept on disk."""
    if cache_dir is not None:
        context.obj = replace(context.obj, cache_dir=cache_dir)


@cache.command("path")
@click.pass_obj
def cache_path(settings: Settings) -> None:
    """Print the cache's folder."""
    from memloc_cache.store import default_folder

    click.echo(settings.cache_dir or default_folder())


@cache.command("stats")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_obj
def cache_stats(settings: Settings, as_json: bool) -> None:
    """How many results are kept, and how much room they take."""
    from memloc_tui.commands import cache as asked

    asked.stats(settings, as_json)


@cache.command("clear")
@click.pass_obj
def cache_clear(settings: Settings) -> None:
    """Remove every result. They can all be computed again."""
    from memloc_tui.commands import cache as asked

    asked.clear(settings)


@cache.command("limit")
@click.argument("megabytes", type=click.IntRange(1))
@click.pass_obj
def cache_limit(settings: Settings, megabytes: int) -> None:
    """Keep at most MEGABYTES; the results added first go first."""
    from memloc_tui.commands import cache as asked

    asked.limit(settings, megabytes)


@cli.group()
def edits() -> None:
    """The edits of the weights that are kept: what unlearning runs have made."""


@edits.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON array, the newest first.")
def edits_list(as_json: bool) -> None:
    """Every stored edit: name, model, changed weights, exact match before and after."""
    from memloc_tui.commands import edits as asked

    asked.list_edits(as_json)


@edits.command("show")
@click.argument("edit")
@click.option("--json", "as_json", is_flag=True, help="One JSON document: the run, its curves, and every weight.")
def edits_show(edit: str, as_json: bool) -> None:
    """What EDIT, a file or a stored edit's name, changes, and how the run went that made it."""
    from memloc_tui.commands import edits as asked

    asked.show_edit(edit, as_json)


@edits.command("export")
@click.argument("edit", nargs=-1, required=True)
@partial(_with, _OPTIONS)
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="FOLDER", help="A new or empty folder.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.pass_context
def edits_export(context: click.Context, /, edit: tuple[str, ...], out: Path, as_json: bool, **given: Any) -> None:
    """Write the model with EDIT (several: in their order) as a checkpoint that `transformers` loads."""
    from memloc_tui.commands import edits as asked

    asked.export(_settings(context, given), edit, out, as_json)


@edits.command("remove")
@click.argument("edit")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def edits_remove(edit: str, as_json: bool) -> None:
    """Delete EDIT from the store. Files elsewhere are the person's own to delete."""
    from memloc_tui.commands import edits as asked

    asked.remove_edit(edit, as_json)


@cli.command()
@click.argument("name")
@click.option("--data", is_flag=True, help="NAME is a data set: ORG/NAME[@CONFIG][:SPLIT]. Only its files, no code.")
@click.option("--revision", metavar="REV", help="Branch, tag or commit. [main]")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.pass_context
def download(context: click.Context, /, name: str, data: bool, as_json: bool, **given: Any) -> None:
    """Fetch model NAME, or with --data the files of a data set, into the local Hugging Face cache.

    Nothing else here but scan --stream goes to the network.
    """
    from memloc_tui.commands import download as asked

    asked.download(_settings(context, given), name, as_json, data)


@cli.command()
@partial(_with, _OPTIONS)
@click.pass_context
def doctor(context: click.Context, /, **given: Any) -> None:
    """Check this installation: packages, terminal, cache, engine, model."""
    from memloc_tui.commands import doctor as asked

    sys.exit(asked.doctor(_settings(context, given)))


@cli.command()
@partial(_with, _OPTIONS)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any that is free.")
@click.option("--host", metavar="ADDRESS", help="Listen elsewhere than on 127.0.0.1; there is no password.")
@click.pass_context
def serve(context: click.Context, /, port: int, host: str | None, **given: Any) -> None:
    """The explorer in a browser on this machine (the extra `web`); from another one by ssh -L."""
    from memloc_core import sources
    from memloc_tui.commands import serve as asked
    from memloc_tui.config import load

    settings = _settings(context, given)
    sources.model_folder(settings.model, settings.revision)
    sources.paragraph_files(settings.paragraphs)
    asked.serve(settings, load().settings, host, port)


@cli.group("config")
def config_group() -> None:
    """The configuration file: theme, mouse, keys, defaults of nine options."""


@config_group.command("path")
def config_path() -> None:
    """Print where the file is, or would be. MEMLOC_CONFIG names another."""
    from memloc_tui.config import config_file

    click.echo(config_file())


@config_group.command("show")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def config_show(as_json: bool) -> None:
    """Every setting, key and default, where it comes from, and what is wrong with the file."""
    from memloc_tui.commands import config as asked

    sys.exit(asked.show(as_json))


@cli.command()
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
def completion(shell: str) -> None:
    """Print the completion script: eval "$(memloc-tui completion bash)"."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "memloc-tui", COMPLETE).source())


def main() -> None:
    """The console command. Every MemlocError becomes its sentence and its exit code, never a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal without UTF-8 shows the code of what it cannot draw
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        cli(prog_name="memloc-tui", complete_var=COMPLETE)
    except MemlocError as error:
        from memloc_tui.glyphs import visible

        click.echo(f"memloc-tui: {visible(str(error))}", err=True)  # a file's name may hold escape codes
        sys.exit(error.exit_code)
    except OSError as error:  # such as a full disk behind stdout
        click.echo(f"memloc-tui: {error.strerror or error}.", err=True)
        sys.exit(1)
