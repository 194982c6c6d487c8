"""Every command. `memloc-tui` alone opens the explorer, or prints a report where there is no terminal.

Exit codes: 0 done, 1 the work failed, 2 wrong use. `--json` prints one JSON document on stdout and nothing else;
progress goes to stderr. What a command does is in `commands`, imported when the command runs: the explorer's first
frame does not wait for it.
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

from memloc_core.errors import MemlocError
from memloc_tui.settings import Settings
from memloc_tui.start import COMPLETE, explore, has_terminal

F = TypeVar("F", bound=Callable[..., Any])
STRATEGY_NAMES = ("random", "next-best", "most-frequent", "rarest", "given")

# Each stands on the group and on every command that opens a model, so both orders of writing work.
_OPTIONS: tuple[Callable[[F], F], ...] = (
    click.option(
        "--model", metavar="MODEL", help="demo, a checkpoint folder, or a name in the local hub cache. [demo]"
    ),
    click.option("--paragraphs", metavar="FILE", help="demo, or a .jsonl, .npy, .pt, .csv or .parquet file. [demo]"),
    click.option("--device", metavar="DEVICE", help="auto, cpu or cuda:N. [auto]"),
    click.option("--dtype", metavar="DTYPE", help="auto (float32), float32, bfloat16 or float16. [auto]"),
    click.option("--prefix-length", type=click.IntRange(1), metavar="N", help="Tokens to prompt with. [50]"),
    click.option("--continuation-length", type=click.IntRange(1), metavar="N", help="Tokens that should follow. [50]"),
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
    return replace(context.obj or Settings(), **{name: value for name, value in chosen.items() if value is not None})


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
def cli(context: click.Context, theme: str | None, no_mouse: bool, **given: Any) -> None:
    """See which paragraphs a language model recites verbatim, and what holds them, token by token.

    Without a command: the explorer, on the embedded demo model unless --model names another.
    """
    context.obj = settings = _settings(context, given)
    if context.invoked_subcommand is not None:
        return
    from memloc_core import sources

    sources.model_folder(settings.model)  # said now, and not after the screen has been taken over
    sources.paragraph_file(settings.paragraphs)
    if has_terminal():
        explore(settings, theme, not no_mouse)
    from memloc_tui import commands

    commands.report(settings)


@cli.command("list")
@partial(_with, _OPTIONS)
@click.option("--json", "as_json", is_flag=True, help="One JSON array, in the file's order.")
@click.pass_context
def list_(context: click.Context, as_json: bool, **given: Any) -> None:
    """Every paragraph: id, exact match, NLL, margin, repetitions, genre, text."""
    from memloc_tui import commands

    commands.list_paragraphs(_settings(context, given), as_json)


@cli.group()
def analyze() -> None:
    """Run one analysis from the command line, on one paragraph or on all."""


_SELECTION: tuple[Callable[[F], F], ...] = (
    click.option("--paragraph", "ids", multiple=True, metavar="ID", help="An id or its beginning; repeatable."),
    click.option("--set", "stratum", type=click.Choice(("memorized", "non-memorized", "all")), help="All of one kind."),
    click.option("--all", "every", is_flag=True, help="The same as --set all."),
    click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first N of the set (of each kind)."),
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
        def run(context: click.Context, every: bool, stratum: str | None, **given: Any) -> None:
            from memloc_tui import analyze as asked
            from memloc_tui.console import Selection

            settings = _settings(context, given)
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
    _seed,
    click.option("--token-id", "token_ids", type=int, multiple=True, metavar="N", help="For --strategy given."),
    click.option(
        "--reference",
        type=click.Choice(("auto", "true", "own")),
        default="auto",
        show_default=True,
        help="auto: the model's own continuation where the paragraph is not memorized, as in the paper.",
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
def cache(context: click.Context, cache_dir: Path | None) -> None:
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
    from memloc_tui import commands

    commands.cache_stats(settings, as_json)


@cache.command("clear")
@click.pass_obj
def cache_clear(settings: Settings) -> None:
    """Remove every result. They can all be computed again."""
    from memloc_tui import commands

    commands.cache_clear(settings)


@cache.command("limit")
@click.argument("megabytes", type=click.IntRange(1))
@click.pass_obj
def cache_limit(settings: Settings, megabytes: int) -> None:
    """Keep at most MEGABYTES; the results used longest ago go first."""
    from memloc_tui import commands

    commands.cache_limit(settings, megabytes)


@cli.command()
@partial(_with, _OPTIONS)
@click.pass_context
def doctor(context: click.Context, **given: Any) -> None:
    """Check this installation: packages, terminal, cache, engine, model."""
    from memloc_tui import commands

    sys.exit(commands.doctor(_settings(context, given)))


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
