"""The real `memloc-tui` in processes of its own: what it prints, writes, and exits with."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from memloc_cache.store import ResultCache
from memloc_core.errors import UsageError
from memloc_core.loading import load
from memloc_core.requests import ExactMatch, OpenModel, Perturb, Sweep
from memloc_tui.commands.console import print_json
from memloc_tui.files import check_can_be_written, write_whole
from memloc_tui.start import has_terminal
from tests.conftest import give_words, result
from tests.e2e.conftest import succeeded, wait_for

ROWS = np.random.default_rng(0).integers(0, 120, (70, 100)).tolist()
IDS = [hashlib.sha256(struct.pack("<100q", *row)).hexdigest()[:10] for row in ROWS]


@pytest.fixture(scope="module")
def place(tiny_checkpoint, tmp_path_factory):
    """A folder with a checkpoint of 120 words, rows of their ids, and a cache that one command leaves to the next."""
    folder = tmp_path_factory.mktemp("commands")
    shutil.copytree(tiny_checkpoint, folder / "tiny")
    give_words(folder / "tiny")
    np.save(folder / "rows.npy", np.array(ROWS))
    return folder


OPTIONS = ("--model", "tiny", "--paragraphs", "rows.npy", "--device", "cpu")


@pytest.fixture(scope="module")
def listed(memloc):
    return memloc(*OPTIONS, "list", "--json")


def rows_of(*indices):
    return tuple(tuple(ROWS[i]) for i in indices)


# ------------------------------------------------------------------------------------------------------------ answers


def test_list_prints_one_json_array_in_the_files_order_and_nothing_else(listed, tiny):
    records = json.loads(succeeded(listed))
    assert [r["id"] for r in records] == IDS
    assert {"id", "em", "nll", "margin", "count", "genre", "text"} <= records[0].keys()
    expected = result(tiny, ExactMatch(rows_of(*range(70))))
    assert [r["em"] for r in records] == expected.em.tolist()
    np.testing.assert_allclose([r["nll"] for r in records], expected.nll, rtol=1e-4)
    np.testing.assert_allclose([r["margin"] for r in records], expected.margin, rtol=1e-3, atol=1e-5)
    assert [r["text"] for r in records] == ["".join(f" w{i}" for i in row) for row in ROWS]
    assert {r["count"] for r in records} == {None}


def test_options_stand_before_or_after_the_command_and_the_later_wins(listed, memloc):
    assert succeeded(memloc("list", *OPTIONS, "--json")) == listed.stdout
    assert succeeded(memloc("--model", "nonsense", *OPTIONS[2:], "list", "--model", "tiny", "--json")) == listed.stdout


def test_a_table_has_every_paragraph(listed, memloc):
    said = succeeded(memloc(*OPTIONS, "list"))
    assert all(id_ in said for id_ in IDS)


def test_one_paragraph_is_an_object_and_several_are_an_array(listed, memloc, tiny):
    one = json.loads(succeeded(memloc(*OPTIONS, "analyze", "exact-match", "--paragraph", IDS[3][:7], "--json")))
    expected = result(tiny, ExactMatch(rows_of(3)))
    assert one["id"] == IDS[3]
    assert one["em"] == expected.em[0]
    assert one["predicted"] == expected.predicted[0].tolist()
    np.testing.assert_allclose(one["token_nll"], expected.token_nll[0], rtol=1e-4)
    assert one["provenance"]["fingerprint"] == tiny.info.fingerprint

    few = json.loads(succeeded(memloc(*OPTIONS, "analyze", "exact-match", "--all", "--limit", "3", "--json")))
    assert [r["id"] for r in few] == IDS[:3]
    two = ("--paragraph", IDS[9], "--paragraph", IDS[2])
    assert [r["id"] for r in json.loads(succeeded(memloc(*OPTIONS, "analyze", "exact-match", *two, "--json")))] == [
        IDS[9],
        IDS[2],
    ]


def test_perturb_is_that_of_the_analysis(memloc, tiny, place):
    out = place / "perturbed.jsonl"
    arguments = ("--position", "40", "--token", " w7", "--position", "3", "--token", " w90", "--reference", "own")
    done = memloc(
        *OPTIONS, "analyze", "perturb", "--all", "--limit", "2", *arguments, "--out", "perturbed.jsonl", "--json"
    )
    assert done.returncode == 0
    assert done.stderr.endswith("written to perturbed.jsonl\n")
    records = json.loads(done.stdout)
    assert [json.loads(line) for line in out.read_text().splitlines()] == records
    assert out.stat().st_mode & 0o777 == 0o666 & ~current_umask()
    for row, record in enumerate(records):
        expected = result(tiny, Perturb(*rows_of(row), ((3, 90), (40, 7)), reference="own"))
        assert record["em_before"] == expected.em_before == 50
        assert record["em_after"] == expected.em_after
        assert record["drop"] == 50 - expected.em_after
        assert record["replacements"] == [[3, 90], [40, 7]]
        assert record["reference"] == expected.reference.tolist()


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_sweep_is_that_of_the_analysis(memloc, tiny, place):
    arguments = ("--strategy", "given", "--token-id", "5", "--token-id", "6", "--reference", "true")
    said = succeeded(memloc(*OPTIONS, "analyze", "sweep", "--paragraph", IDS[1], *arguments, "--json"))
    record, expected = json.loads(said), result(tiny, Sweep(*rows_of(1), "given", 1, 0, (5, 6)))
    assert record["em"] == expected.em.tolist()
    assert record["replacements"] == expected.replacements.tolist()
    np.testing.assert_allclose(record["nll"], expected.nll, rtol=1e-4)
    drops = [expected.em_before - row[0] for row in expected.em.tolist()]
    assert record["drops"] == drops
    assert record["mean_drop"] == pytest.approx(sum(drops) / 50)


def test_other_lengths_are_other_paragraphs(memloc, tiny):
    lengths = ("--prefix-length", "30", "--continuation-length", "20")
    records = json.loads(succeeded(memloc(*OPTIONS, "list", *lengths, "--json")))
    cut = tuple(row[:50] for row in rows_of(*range(70)))
    assert [r["id"] for r in records] == [hashlib.sha256(struct.pack("<50q", *row)).hexdigest()[:10] for row in cut]
    np.testing.assert_allclose([r["nll"] for r in records], result(tiny, ExactMatch(cut, 30)).nll, rtol=1e-4)


def test_a_revision_is_another_model_of_the_same_name(memloc, place, tiny, make_checkpoint):
    """Two commits in the hub's cache; `list` and `scan` ask the one that is named."""
    other = make_checkpoint("other", hidden_size=16)
    give_words(other)
    in_hub_cache(place / "hub", {"main": place / "tiny", "then": other})
    (place / "few.jsonl").write_text("".join(json.dumps({"tokens": row}) + "\n" for row in ROWS[:2]))
    small = load(OpenModel(str(other), device="cpu"))
    common = ("--model", "somebody/tiny", "--device", "cpu")
    for revision, lm in ((), tiny), (("--revision", "then"), small):
        records = json.loads(succeeded(memloc("list", *common, "--paragraphs", "rows.npy", *revision, "--json")))
        np.testing.assert_allclose(
            [r["nll"] for r in records], result(lm, ExactMatch(rows_of(*range(70)))).nll, rtol=1e-4
        )
    options = ("--out", "then.parquet", "--min-unique", "0")
    done = memloc("scan", "few.jsonl", *common, "--revision", "then", *options)
    assert done.returncode == 0, done.stderr
    nll = {tuple(row["tokens"]): row["nll"] for row in pq.read_table(place / "then.parquet").to_pylist()}
    np.testing.assert_allclose(
        [nll[row] for row in rows_of(0, 1)], result(small, ExactMatch(rows_of(0, 1))).nll, rtol=1e-4
    )


def in_hub_cache(folder, revisions):
    """somebody/tiny as the hub's own tools lay it down: a commit for each branch."""
    repository = folder / "models--somebody--tiny"
    (repository / "refs").mkdir(parents=True)
    for number, (branch, checkpoint) in enumerate(revisions.items()):
        (repository / "refs" / branch).write_text(str(number) * 40)
        shutil.copytree(checkpoint, repository / "snapshots" / (str(number) * 40))


def test_text_that_the_output_cannot_hold_is_escaped_and_hostile_text_made_visible(memloc, place):
    genre = "é \ud800 \x1b[2J"
    with (place / "hostile.jsonl").open("w") as file:
        file.writelines(json.dumps({"tokens": row, "genre": genre}) + "\n" for row in ROWS[:3])
    options = ("--model", "tiny", "--paragraphs", "hostile.jsonl", "--device", "cpu")
    said = succeeded(memloc(*options, "list", "--json", env={"PYTHONIOENCODING": "ascii"}))
    assert said.isascii()
    assert [r["genre"] for r in json.loads(said)] == [genre] * 3
    for encoding in ("ascii", "utf-8"):
        table = succeeded(memloc(*options, "list", env={"PYTHONIOENCODING": encoding}))
        assert "\x1b" not in table
        assert IDS[0] in table


def test_the_embedded_model_without_a_terminal_is_a_report(memloc, demo, demo_paragraphs):
    said = succeeded(memloc("--device", "cpu"))
    assert f"{len(demo_paragraphs):,} paragraphs of 50 + 50" in said
    # All of it is in the cache now: the list of the same paragraphs needs no engine.
    records = json.loads(succeeded(memloc("list", "--json", "--device", "cpu")))
    memorized = next(line for line in said.splitlines() if "memorized, EM 50" in line)
    assert f" {sum(r['em'] == 50 for r in records):,} " in memorized
    some = tuple(map(tuple, demo_paragraphs.tokens[:40].tolist()))
    assert [r["em"] for r in records[:40]] == result(demo, ExactMatch(some)).em.tolist()
    assert [r["count"] for r in records] == demo_paragraphs.repetitions.tolist()


# ----------------------------------------------------------------------------------------------------------- wrong use


def bad(code, says, *arguments):
    return pytest.param(code, says, arguments, id=" ".join(arguments)[-60:])


ROW = ("--paragraph", IDS[0])


@pytest.mark.parametrize(
    ("code", "says", "arguments"),
    [
        bad(2, "no-such-folder", "--model", "no-such-folder", "list"),
        bad(2, "no-such-folder", "--model", "no-such-folder"),
        bad(2, "no model", "--model", "somebody/model", "list"),
        bad(2, "config.json", "--model", ".", "list"),
        bad(2, "is a file", "--model", "rows.npy", "list"),
        bad(2, "no paragraph file", "--model", "tiny", "--paragraphs", "missing.npy", "list"),
        bad(2, "no paragraph file", "--model", "tiny", "--paragraphs", "missing.npy"),
        bad(2, "holds neither", "--model", "tiny", "--paragraphs", ".", "list"),
        bad(2, "no paragraph file", "--model", "tiny", "--paragraphs", "\x1b[2J.npy", "list"),
        bad(2, "shorter than 100", "--model", "tiny", "--paragraphs", "\x1b[2J.txt", "list"),
        bad(2, "is empty", "--model", "tiny", "--paragraphs", "empty.npy", "list"),
        bad(2, "shorter than 100", "--model", "tiny", "--paragraphs", "rows.txt", "list"),
        bad(2, "damaged", "--model", "tiny", "--paragraphs", "code.pt", "list"),
        bad(2, "token id 120", "--model", "tiny", "--paragraphs", "beyond.npy", "list"),
        bad(2, "shorter than 120", *OPTIONS, "--prefix-length", "70", "list"),
        bad(1, "no weights", "--model", "hollow", "--paragraphs", "rows.npy", "list"),
        bad(2, "--device", *OPTIONS, "--device", "cuda:99", "list"),
        bad(2, "--dtype", *OPTIONS, "--dtype", "float8", "list"),
        bad(2, "--prefix-length", *OPTIONS, "--prefix-length", "0", "list"),
        bad(2, "--prefix-length", *OPTIONS, "--prefix-length", "x", "list"),
        bad(2, "Which paragraphs", *OPTIONS, "analyze", "exact-match"),
        bad(2, "not both", *OPTIONS, "analyze", "exact-match", *ROW, "--all"),
        bad(2, "--set memorized", *OPTIONS, "analyze", "exact-match", "--all", "--set", "memorized"),
        bad(2, "--limit", *OPTIONS, "analyze", "exact-match", *ROW, "--limit", "3"),
        bad(2, "No paragraph", *OPTIONS, "analyze", "exact-match", "--paragraph", "zzz"),
        bad(2, "70 paragraphs have", *OPTIONS, "analyze", "exact-match", "--paragraph", ""),
        bad(2, "--position", *OPTIONS, "analyze", "perturb", *ROW),
        bad(2, "one --token", *OPTIONS, "analyze", "perturb", *ROW, "--position", "3"),
        bad(2, "not both", *OPTIONS, "analyze", "perturb", *ROW, "--position", "3", "--token", "a", "--token-id", "1"),
        bad(2, "only one", *OPTIONS, "analyze", "perturb", *ROW, *("--position", "3", "--token-id", "1") * 2),
        bad(2, "' w7'", *OPTIONS, "analyze", "perturb", *ROW, "--position", "3", "--token", "w7"),
        bad(2, "no single token", *OPTIONS, "analyze", "perturb", *ROW, "--position", "3", "--token", "\x1b[2J"),
        bad(2, "119", *OPTIONS, "analyze", "sweep", *ROW, "--draws", "120"),
        bad(2, "--token-id", *OPTIONS, "analyze", "sweep", *ROW, "--strategy", "given"),
        bad(2, "--token-id", *OPTIONS, "analyze", "sweep", *ROW, "--token-id", "3"),
        bad(2, "strategy", *OPTIONS, "analyze", "sweep", *ROW, "--strategy", "clever"),
        bad(2, "--strategy random", *OPTIONS, "analyze", "sweep", *ROW, "--strategy", "rarest", "--seed", "1"),
        bad(2, "--engine ray", "scan", "rows.npy", "--out", "set.parquet", "--address", "here:1"),
        bad(2, "leave out --sparsity", *OPTIONS, "unlearn", *ROW, "--mask", "dense", "--sparsity", "0.1"),
        bad(2, "leave out --sparsity", *OPTIONS, "compare-masks", "--masks", "all", "--sparsity", "0.1"),
        bad(2, "without a command", "--theme", "nord", "--no-mouse", "list"),
        bad(2, "leave out --model", "--model", "tiny", "tour"),
        bad(2, "folder is not there", *OPTIONS, "analyze", "exact-match", "--all", "--out", "missing/out.jsonl"),
        bad(2, "is a folder", *OPTIONS, "analyze", "exact-match", "--all", "--out", "tiny"),
        bad(2, "No such command", "sing"),
        bad(2, "MEGABYTES", "cache", "limit", "0"),
    ],
)
def test_wrong_use_is_one_sentence_and_an_exit_code(memloc, place, listed, code, says, arguments):
    spoil(place)
    before = sorted(place.rglob("*.jsonl*"))
    done = memloc(*arguments)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stderr
    assert done.stderr.rstrip().endswith((".", "?", "3fa"))
    assert sorted(place.rglob("*.jsonl*")) == before


def spoil(place):
    """Files that are wrong in one way each."""
    if (place / "hollow").exists():
        return
    (place / "empty.npy").touch()
    for name in ("rows.txt", "\x1b[2J.txt"):
        (place / name).write_text("1 2 3")
    torch.save([Path("x")], place / "code.pt")
    np.save(place / "beyond.npy", np.array(ROWS) + 1)
    shutil.copytree(place / "tiny", place / "hollow", ignore=shutil.ignore_patterns("*.safetensors"))


# ----------------------------------------------------------------------------------------- interrupted and unreadable


def children(pid):
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_ends_at_once_with_its_engine(place, memloc, listed, how):
    def kept():
        with closing(ResultCache(place / "cache")) as cache:
            return cache.stats().entries

    before = kept()
    arguments = (*OPTIONS, "analyze", "sweep", "--all", "--draws", "119", "--out", "sweep.jsonl")
    process = memloc.start(*arguments, start_new_session=True)
    try:
        wait_for(lambda: children(process.pid), process)
        (engine,) = children(process.pid)
        if how is signal.SIGINT:
            wait_for(lambda: kept() > before, process)  # one of the 70 sweeps is done, and another under way
            os.killpg(process.pid, how)  # as a terminal does: the engine gets it, too
        else:
            process.send_signal(how)
        stdout, stderr = process.communicate(timeout=5)
    finally:
        process.kill()
    assert process.returncode == 128 + how
    assert stdout == ""
    assert stderr == "memloc-tui: stopped; what was finished is kept in the cache.\n"
    assert not Path(f"/proc/{engine}").exists()
    assert not list(place.glob("*sweep.jsonl*"))


@pytest.mark.parametrize("arguments", [("list",), ("list", "--json"), ("completion", "bash")])
def test_a_reader_who_leaves_early_is_no_failure(memloc, listed, arguments):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = memloc(*OPTIONS, *arguments, stdout=writing)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device here")
@pytest.mark.parametrize("arguments", [("list",), ("list", "--json")])
def test_a_full_disk_behind_stdout_is_one_sentence(memloc, listed, arguments):
    with open("/dev/full", "w") as full:
        done = memloc(*OPTIONS, *arguments, stdout=full)
    assert (done.returncode, done.stderr) == (1, "memloc-tui: No space left on device.\n")


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    target = tmp_path / "out.jsonl"
    target.write_text("earlier")

    def fails(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fails)
        with pytest.raises(OSError, match="No space left"):
            write_whole(target, "later")
    assert target.read_text() == "earlier"
    assert os.listdir(tmp_path) == ["out.jsonl"]

    link = tmp_path / "link.jsonl"
    link.symlink_to(target)
    write_whole(link, "later")
    assert link.is_symlink()
    assert target.read_text() == "later"

    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_whole(pipe, "through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert pipe.is_fifo()


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="no such devices here")
def test_a_pipe_without_a_path_can_be_written_as_a_shell_names_it():
    reading, writing = os.pipe()
    for number in range(2):
        check_can_be_written(Path(f"/dev/fd/{writing}"))
        write_whole(Path(f"/dev/fd/{writing}"), str(number))
    os.close(writing)
    with open(reading) as file:
        assert file.read() == "01"


def test_links_in_a_circle_are_said(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(UsageError, match="a cannot be written: Too many levels"):
        check_can_be_written(tmp_path / "a")
    with pytest.raises(OSError, match="Too many levels"):
        write_whole(tmp_path / "a", "text")


def test_without_a_stdout_there_is_nothing_to_print_and_no_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    print_json({"a": 1})
    assert not has_terminal()


# ------------------------------------------------------------------------------------------------------ other commands


def test_cache_commands(memloc, place, tmp_path):
    mine = ("cache", "--cache-dir", str(tmp_path / "mine"))
    assert succeeded(memloc("cache", "path")) == f"{place / 'cache'}\n"
    assert succeeded(memloc(*mine, "path")) == f"{tmp_path / 'mine'}\n"

    stats = json.loads(succeeded(memloc(*mine, "stats", "--json")))
    assert (stats["entries"], stats["folder"], stats["problem"]) == (0, str(tmp_path / "mine"), "")
    assert "12 MB" in succeeded(memloc(*mine, "limit", "12"))
    assert json.loads(succeeded(memloc(*mine, "stats", "--json")))["size_limit"] == 12 * 2**20
    assert succeeded(memloc(*mine, "clear")).startswith("0 results removed")

    (tmp_path / "file").write_text("")
    for command in (("clear",), ("stats",), ("stats", "--json")):
        done = memloc("cache", "--cache-dir", str(tmp_path / "file"), *command)
        assert done.returncode == 1
        assert "not a folder" in done.stderr
    assert json.loads(done.stdout)["problem"] in done.stderr


def test_results_are_kept_counted_and_cleared_and_no_cache_keeps_none(memloc, place, listed):
    entries = json.loads(succeeded(memloc("cache", "stats", "--json")))["entries"]
    assert entries >= 2 + 3  # two chunks of exact matches; vocabulary, paragraphs, model
    copy = shutil.copytree(place / "cache", place / "copy")
    copy.chmod(0o700)
    assert f"{entries:,} results removed" in succeeded(memloc("cache", "--cache-dir", "copy", "clear"))
    assert json.loads(succeeded(memloc("cache", "--cache-dir", "copy", "stats", "--json")))["entries"] == 0
    said = succeeded(memloc(*OPTIONS, "--cache-dir", "none", "--no-cache", "list", "--json"))
    assert json.loads(said) == json.loads(listed.stdout)
    assert not (place / "none").exists()


def test_a_cache_that_cannot_be_used_is_said_and_the_work_done(memloc, place, listed):
    (place / "broken").mkdir(mode=0o700)
    (place / "broken" / "cache.db").write_bytes(b"garbage" * 1000)
    done = memloc(*OPTIONS, "--cache-dir", "broken", "list", "--json")
    assert done.returncode == 0
    assert "damaged" in done.stderr
    assert json.loads(done.stdout) == json.loads(listed.stdout)


def test_doctor_says_what_works_and_what_does_not(memloc, listed, place):
    said = succeeded(memloc("doctor", *OPTIONS))
    assert all(line.startswith("ok   ") for line in said.splitlines())
    assert "GPTNeoForCausalLM" in said
    spoil(place)
    done = memloc("doctor", "--model", "hollow", "--paragraphs", "rows.npy")
    assert done.returncode == 1
    assert "FAIL engine" in done.stdout
    assert "no weights" in done.stdout
    assert "Traceback" not in done.stderr


def test_version_and_help(memloc):
    from importlib.metadata import version

    assert succeeded(memloc("--version")).split()[-1] == version("memloc-tui")
    for command in ((), ("list",), ("analyze",), ("analyze", "sweep"), ("cache",), ("doctor",), ("completion",)):
        assert succeeded(memloc(*command, "--help")).startswith("Usage: memloc-tui")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(memloc, shell):
    script = succeeded(memloc("completion", shell))
    assert "memloc-tui" in script
    if shutil.which(shell):
        assert subprocess.run([shell, "-n"], input=script, text=True).returncode == 0
    at = "" if shell == "fish" else "2"  # fish gives the word itself, the others its number
    said = memloc(
        env={"COMP_WORDS": "memloc-tui analyze ", "COMP_CWORD": at, "_MEMLOC_TUI_COMPLETE": f"{shell}_complete"}
    ).stdout
    assert "sweep" in said
    assert "exact-match" in said
