"""The real `memloc-tui scan`: killed, resumed, watched, on several engines, on a full disk, and on Ray where it is."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import resource
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from memloc_core.loading import load
from memloc_core.requests import ExactMatch, OpenModel
from tests.conftest import result
from tests.e2e.conftest import wait_for

KILLS = int(os.environ.get("MEMLOC_SCAN_KILLS", "2"))
OPTIONS = ("--model", "tiny", "--device", "cpu", "--keep", "memorized,partly,non-memorized:40", "--min-unique", "0")
BLOCKS = ("--block-tokens", "2000")


@pytest.fixture(scope="module")
def place(tiny_checkpoint, tmp_path_factory):
    """A checkpoint, a corpus of ids in which few windows recur, and what an undisturbed scan makes of it."""
    folder = tmp_path_factory.mktemp("scans")
    shutil.copytree(tiny_checkpoint, folder / "tiny")
    generator = np.random.default_rng(0)
    passage = generator.integers(0, 120, 150).tolist()
    with (folder / "corpus.jsonl").open("w") as file:
        for number in range(200):
            ids = generator.integers(0, 120, 200).tolist()
            ids = ids[:50] + passage + ids if number % 25 == 0 else ids
            file.write(json.dumps({"tokens": ids}) + "\n")
    return folder


@pytest.fixture(scope="module")
def whole(memloc, place):
    done = memloc("scan", "corpus.jsonl", "--out", "whole.parquet", *OPTIONS, *BLOCKS, "--count-duplicates", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), pq.read_table(place / "whole.parquet")


def blocks_of(folder):
    return sum(path.name.isdecimal() for path in (folder / "blocks").glob("*"))


def test_a_scan_prints_its_sums_and_leaves_a_set_and_nothing_else(whole, place):
    report, table = whole
    assert report["complete"]
    assert report["blocks_done"] == report["blocks"] > 5
    assert report["documents"] == 200
    assert report["windows"] == sum(report["ems"]) == 200 * 3 + 8 * 4
    assert report["tokens"] == 200 * 200 + 8 * 200
    assert report["kept"] == [0, 0, 40] == [0, 0, len(table)]
    assert not (place / "whole.parquet.scan").exists()
    counts = {tuple(row["tokens"]): row["count"] for row in table.to_pylist()}
    assert set(counts.values()) <= {1, 8}
    about = json.loads(pq.read_metadata(place / "whole.parquet").metadata[b"memloc.scan"])
    assert about["report"]["complete"]


def test_kills_at_random_moments_lose_and_repeat_nothing(whole, memloc, place):
    folder, out = place / "killed.parquet.scan", place / "killed.parquet"
    draw = random.Random(1)
    command = ("scan", "corpus.jsonl", "--out", "killed.parquet", *OPTIONS, *BLOCKS, "--count-duplicates", "--json")
    written = {}

    def further():
        return blocks_of(folder) > len(written) or (folder / "windows.npy").exists()

    def blocks():
        return {path.name: path.stat().st_mtime_ns for path in (folder / "blocks").glob("[0-9]*")}

    for _ in range(KILLS):
        process = memloc.start(*command, start_new_session=True)
        wait_for(further, process)
        time.sleep(draw.random() * 0.2)
        process.kill()
        process.communicate()
        now = blocks()
        assert written.items() <= now.items(), "a finished block was written again"
        assert now
        written = now
    process = memloc.start(*command, "--workers", "2")  # how many engines there are makes no difference either
    wait_for(further, process)
    assert written.items() <= blocks().items()
    stdout, stderr = process.communicate(timeout=400)
    assert process.returncode == 0, stderr
    report, table = whole
    assert pq.read_table(out).equals(table)
    again = json.loads(stdout)
    assert {k: v for k, v in again.items() if k not in ("seconds", "reading", "scoring", "out", "counts")} == {
        k: v for k, v in report.items() if k not in ("seconds", "reading", "scoring", "out", "counts")
    }
    assert (place / "killed.counts.npy").read_bytes() == (place / "whole.counts.npy").read_bytes()
    assert sorted(p.name for p in place.glob(".*")) == []


def test_while_a_scan_runs_its_set_opens_a_second_scan_is_refused_and_ctrl_c_ends_it(memloc, place):
    command = ("scan", "corpus.jsonl", "--out", "open.parquet", *OPTIONS, *BLOCKS, "--stride", "5")
    process = memloc.start(*command)
    wait_for((place / "open.parquet").exists, process)
    process.send_signal(signal.SIGSTOP)  # a scan that takes hours looks like this to who opens its set
    try:
        refused = memloc(*command)
        assert refused.returncode == 2
        assert "Another scan is writing" in refused.stderr
        shown = memloc("list", "--model", "tiny", "--device", "cpu", "--paragraphs", "open.parquet", "--json")
        assert shown.returncode == 0, shown.stderr
        rows = pq.read_table(place / "open.parquet").to_pylist()
        assert [row["em"] for row in json.loads(shown.stdout)] == [row["em"] for row in rows]
    finally:
        process.send_signal(signal.SIGINT)  # it waits until the scan goes on
        process.send_signal(signal.SIGCONT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"{blocks_of(place / 'open.parquet.scan')} finished blocks are kept" in err
    assert "Traceback" not in err


def test_a_full_disk_is_said_and_what_is_finished_is_kept(memloc, place):
    """A limit on the size of files stands in for the disk: both end a write in the middle."""

    def little_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, resource.RLIM_INFINITY))  # less than a block's file

    done = memloc("scan", "corpus.jsonl", "--out", "full.parquet", *OPTIONS, *BLOCKS, preexec_fn=little_room)
    assert done.returncode == 1
    assert "cannot be written: File too large. What is finished is kept; make room" in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
    assert not (place / "full.parquet").exists()
    assert (place / "full.parquet.scan" / "manifest.json").exists()
    assert not [p for p in (place / "full.parquet.scan").rglob(".*") if p.is_file()]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nothing.jsonl", "--out", "x.parquet"), "There is no corpus"),
        (("corpus.jsonl", "--out", "nowhere/x.parquet"), "cannot be written"),
        (("corpus.jsonl", "--out", "x.parquet", "--window", "40"), "something has to follow it"),
    ],
)
def test_wrong_use_is_one_sentence_and_leaves_no_file(arguments, said, memloc, place):
    done = memloc("scan", *arguments, "--model", "tiny", "--device", "cpu")
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(place.glob("x.*"))


def test_the_nll_of_every_window_is_told_where_it_is_asked_for(memloc, place):
    options = ("--model", "tiny", "--device", "cpu", "--min-unique", "0", "--limit", "8", "--json")
    lm = load(OpenModel(str(place / "tiny"), device="cpu"))
    rows = [json.loads(line)["tokens"] for line in (place / "corpus.jsonl").read_text().splitlines()[:8]]
    scores = result(lm, ExactMatch(tuple(tuple(row[i : i + 100]) for row in rows for i in range(0, len(row) - 99, 50))))
    for flag in ((), ("--nll",)):
        done = memloc("scan", "corpus.jsonl", "--out", f"nll{len(flag)}.parquet", *options, *flag)
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert report["ems"] == [int((scores.em == em).sum()) for em in range(51)]
        for em in set(scores.em.tolist()):
            mean = scores.nll[scores.em == em].mean()
            assert report["nlls"][em] == (pytest.approx(mean, rel=1e-4) if flag else None)


def test_a_set_that_is_there_is_replaced_with_restart_alone(memloc, place):
    def scan(*more):
        return memloc("scan", "corpus.jsonl", "--out", "again.parquet", *OPTIONS, "--limit", "4", "--json", *more)

    assert json.loads(scan().stdout)["windows"] == 4 * 3 + 4  # the first document is longer
    before = (place / "again.parquet").read_bytes()
    refused = scan("--stride", "25")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "--restart to replace it" in refused.stderr
    assert (place / "again.parquet").read_bytes() == before
    assert json.loads(scan("--stride", "25", "--restart").stdout)["windows"] == 4 * 5 + 8


RAY = """
import json

class DataContext:
    get_current = classmethod(lambda cls: cls())

def is_initialized():
    return False

def init(**given):
    if given.get("address") != "here:1":
        raise ConnectionError(json.dumps(given))

def cluster_resources():
    return {"CPU": 99, "GPU": 1}
"""


def test_a_ray_cluster_is_asked_for_what_the_options_say(memloc, place):
    """A stand-in for ray: a cluster at one address, with one GPU."""
    (place / "stand-in" / "ray").mkdir(parents=True)
    for module in ("__init__", "data"):
        (place / "stand-in" / "ray" / f"{module}.py").write_text(RAY)
    path = {"PYTHONPATH": os.pathsep.join((str(place / "stand-in"), os.environ.get("PYTHONPATH", "")))}
    command = ("scan", "corpus.jsonl", "--out", "ray.parquet", *OPTIONS, "--engine", "ray", "--workers", "3")
    for more, says in (
        (("--address", "there:2"), "No Ray cluster answers at there:2"),
        ((), "No Ray cluster answers at this machine"),
        (("--address", "here:1", "--gpus-per-worker", "0.5"), "3 workers with 0.5 GPU each want 1.5"),
    ):
        done = memloc(*command, *more, env=path)
        assert done.returncode in (1, 2)
        assert says in done.stderr.replace("\n", " ")
    assert not (place / "ray.parquet.scan").exists()


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
def test_ray_finds_what_one_process_finds_also_when_a_worker_is_killed(whole, memloc, place):
    process = memloc.start(
        "scan",
        "corpus.jsonl",
        "--out",
        "ray.parquet",
        *OPTIONS,
        *BLOCKS,
        "--count-duplicates",
        "--engine",
        "ray",
    )
    folder = place / "ray.parquet.scan"
    try:
        wait_for(lambda: blocks_of(folder) >= 2, process, 400)
        killed = [
            int(entry.name)
            for entry in Path("/proc").iterdir()
            if entry.name.isdecimal() and b"ray::MapWorker" in _command_line(entry)
        ]
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        _, err = process.communicate(timeout=400)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert killed
    assert pq.read_table(place / "ray.parquet").equals(whole[1])


def _command_line(entry):
    try:
        return (entry / "cmdline").read_bytes()
    except OSError:
        return b""
