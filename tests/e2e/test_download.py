"""`memloc-tui download`, against a hub on this machine: what arrives, what is refused, and that nothing ever hangs."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gzip
import hashlib
import http.client
import io
import json
import os
import random
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from memloc_core import hub as asking, sources
from memloc_core.corpora import streams
from memloc_core.engine import Engine
from memloc_core.errors import MemlocError, UsageError
from memloc_core.loading import load
from memloc_core.requests import CorpusFiles, FindCorpus, OpenModel, PlanScan
from memloc_core.scan.folder import ScanFolder
from memloc_core.scan.job import Scan, ScanOptions
from memloc_core.scan.plan import block_of
from memloc_core.scan.windows import Reading, read_block, vocabulary_of
from memloc_tui.commands import download as fetching
from memloc_tui.commands.scan import corpus_of
from memloc_tui.settings import Settings
from tests.e2e.conftest import wait_for
from tests.fake_hub import COMMIT, FakeHub, is_large

NAME = "somebody/tiny-neo"
OTHER = "f" * 40


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub, an empty cache, and a program that waits for a second where it would for many."""
    hub = FakeHub()
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HF_HUB_CACHE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setattr(asking, "PROBE_SECONDS", 1.0)
    monkeypatch.setattr(asking, "SILENCE_SECONDS", 0.4)
    for kept in (asking._piece, asking._hub, asking._sizes):  # by commit, and every test's data have the same one
        kept.cache_clear()
    handler = signal.getsignal(signal.SIGTERM)
    yield hub
    signal.signal(signal.SIGTERM, handler)
    hub.close()


@pytest.fixture(scope="module")
def files(tiny_checkpoint) -> dict[str, bytes]:
    """A real checkpoint as a hub has it: with much beside it that is not needed."""
    own = {path.name: path.read_bytes() for path in tiny_checkpoint.iterdir()}
    return own | {
        "README.md": b"# tiny",
        "modeling_tiny.py": b"raise SystemExit('run')",
        "pytorch_model.bin": b"a pickle" * 1000,
        "model.onnx": b"x" * 100,
        "original/model.safetensors": b"y" * 100,
        "vocab.json": b"{}",
    }


def fetch(name=NAME, revision="", as_json=False):
    fetching.download(Settings(revision=revision), name, as_json)


def refused(**options) -> str:
    started = time.monotonic()
    with pytest.raises(MemlocError) as caught:
        fetch(**options)
    assert time.monotonic() - started < 8
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 500
    return said


def no_model_here(name=NAME, revision=""):
    with pytest.raises(UsageError):
        sources.model_folder(name, revision)
    return True


def same(files, names=("config.json", "model.safetensors")):
    """Whether a model of this name is here, with these very bytes."""
    folder = sources.model_folder(NAME)
    return all((folder / name).read_bytes() == files[name] for name in names)


def logits(model, revision=""):
    lm = load(OpenModel(str(model), device="cpu", revision=revision))
    with torch.inference_mode():
        return lm.logits(lm.hidden(torch.arange(40)[None]))


def command(*arguments):
    return [sys.executable, "-m", "memloc_tui", *arguments]


# ------------------------------------------------------------------------------------------------------- what arrives


def test_a_model_arrives_and_opens_by_its_name(hub, files, tiny_checkpoint):
    hub.give(NAME, files)
    assert no_model_here()
    done = subprocess.run(command("download", NAME, "--json"), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    folder = sources.model_folder(NAME)
    wanted = {"config.json", "generation_config.json", "model.safetensors", "vocab.json"}
    assert (said["folder"], said["commit"], set(said["files"])) == (str(folder), COMMIT, wanted)
    assert {path.name for path in folder.iterdir()} == wanted == set(hub.fetched())
    assert all((folder / name).read_bytes() == files[name] for name in wanted)
    assert said["bytes"] == sum(len(files[name]) for name in wanted)
    assert torch.equal(logits(NAME), logits(tiny_checkpoint))


def test_hugging_faces_own_tools_find_what_was_fetched(hub, files):
    hub.give(NAME, files)
    fetch()
    program = f"""
from huggingface_hub import hf_hub_download, scan_cache_dir
print(hf_hub_download({NAME!r}, "config.json", local_files_only=True))
(repo,) = scan_cache_dir().repos
print(repo.repo_id, *[(r.commit_hash, *r.refs) for r in repo.revisions])
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert said.stdout.splitlines() == [
        str(sources.model_folder(NAME) / "config.json"),
        f"{NAME} ('{COMMIT}', 'main')",
    ]


def test_what_is_there_already_is_not_fetched_again(hub, files):
    hub.give(NAME, files)
    fetch()
    before = hub.fetched()
    fetch()
    assert hub.fetched() == before


def test_shards_arrive_with_their_index(hub, tiny_checkpoint, tmp_path):
    load(OpenModel(str(tiny_checkpoint), device="cpu")).model.save_pretrained(tmp_path / "s", max_shard_size="20KB")
    files = {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir()}
    assert sum(map(is_large, files)) > 2
    hub.give(NAME, files | {"model-00099-of-00099.safetensors": b"of another upload"})
    fetch()
    assert {path.name for path in sources.model_folder(NAME).iterdir()} == set(files)
    assert same(files, files)


def test_a_pickle_comes_only_where_there_is_nothing_else(hub, files, tiny_checkpoint, tmp_path):
    torch.save(load(OpenModel(str(tiny_checkpoint), device="cpu")).model.state_dict(), tmp_path / "pytorch_model.bin")
    pickled = {"config.json": files["config.json"], "pytorch_model.bin": (tmp_path / "pytorch_model.bin").read_bytes()}
    hub.give(NAME, pickled | {"modeling_tiny.py": b""})
    fetch()
    assert same(pickled, pickled)
    assert {path.name for path in sources.model_folder(NAME).iterdir()} == set(pickled)


def test_revisions_lie_beside_each_other(hub, files, make_checkpoint):
    other = make_checkpoint("other", vocab_size=90)
    hub.give(NAME, files)
    hub.give(NAME, {path.name: path.read_bytes() for path in other.iterdir()}, "step/1000", OTHER)
    fetch(revision="step/1000")
    with pytest.raises(UsageError, match=r"holds somebody/tiny-neo at step/1000, but not at main"):
        sources.model_folder(NAME)
    fetch()
    assert sources.model_folder(NAME).name == COMMIT
    for revision in ("step/1000", OTHER, OTHER[:7]):
        assert sources.model_folder(NAME, revision).name == OTHER
    assert torch.equal(logits(NAME, "step/1000"), logits(other))
    assert load(OpenModel(NAME, device="cpu", revision="step/1000")).info.name == "tiny-neo@step/1000"
    for revision in ("abc", "../../..", "", "/etc", "step/..", "a b", "ffffff"):
        assert revision == "" or no_model_here(revision=revision)


def test_the_token_goes_to_the_hub_and_nowhere_else(hub, files, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.give(NAME, files)
    fetch()
    tokens = {(path.startswith("/cdn/"), headers.get("Authorization")) for path, headers in hub.requests}
    assert tokens == {(False, "Bearer hf_secret"), (True, None)}


# ---------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("part", "code", "kind", "says"),
    [
        ("api", 401, "GatedRepo", r"is gated: accept .*`hf auth login`"),
        ("api", 403, "", r"is gated: accept .* HF_TOKEN"),
        ("config.json", 401, "GatedRepo", "is gated"),
        ("config.json", 403, "GatedRepo", "is gated"),
        ("api", 401, "RepoNotFound", "has no somebody/tiny-neo, or it is private"),
        ("api", 401, "", "has no somebody/tiny-neo, or it is private"),
        ("api", 404, "RepoNotFound", "has no somebody/tiny-neo"),
        ("api", 404, "RevisionNotFound", "no branch, tag or commit 'main'"),
        ("api", 500, "", "HTTP 500"),
        ("api", 503, "", "HTTP 503"),
        ("api", 429, "", "asks to wait"),
        ("model.safetensors", 404, "EntryNotFound", r"has no somebody/tiny-neo: model\.safetensors"),
    ],
)
def test_what_the_hub_refuses_is_said(hub, files, part, code, kind, says):
    hub.give(NAME, files)
    hub.refuse = (part, code, kind)
    said = refused()
    assert re.search(says, said), said
    assert no_model_here()


def test_names_and_revisions_that_are_not_there(hub, files):
    hub.give(NAME, files)
    assert "has no somebody/else" in refused(name="somebody/else")
    assert "no branch, tag or commit 'v9'" in refused(revision="v9")


@pytest.mark.parametrize("name", ["", "demo", "a/b/c", "../x", "/etc", "a b", "a\nb", "--help", "a--b/c", ".", "x/.."])
def test_what_cannot_be_a_name_is_not_asked_for(hub, name):
    with pytest.raises(UsageError):
        fetch(name)
    assert hub.requests == []


def test_a_folder_an_offline_setting_and_a_strange_endpoint(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    with pytest.raises(UsageError, match="is a folder here"):
        fetch("mine")
    monkeypatch.setenv("HF_ENDPOINT", "file:///etc")
    with pytest.raises(UsageError, match="HF_ENDPOINT"):
        fetch()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UsageError, match="HF_HUB_OFFLINE is set"):
        fetch()
    assert hub.requests == []


@pytest.mark.parametrize(
    ("gone", "says"),
    [("config.json", r"no config\.json"), ("model.safetensors pytorch_model.bin", "no weights")],
)
def test_what_is_no_model(hub, files, gone, says):
    hub.give(NAME, {name: content for name, content in files.items() if name not in gone.split()})
    with pytest.raises(MemlocError, match=says):
        fetch()


def test_an_index_that_names_what_is_not_there(hub, files):
    left = {name: content for name, content in files.items() if not is_large(name)}
    for index in (b'{"weight_map": {"a": "../../../secret.safetensors"}}', b"[]", b'{"weight_map": 5}'):
        hub.give(NAME, left | {"model.safetensors.index.json": index})
        assert "does not say in which files" in refused()


def test_something_that_is_no_hub(hub):
    hub.portal = True
    assert "no hub's answer" in refused()


def test_nobody_listens(hub, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
        assert "refused" in refused()
    monkeypatch.setenv("HF_ENDPOINT", "http://no-such-host.invalid")
    assert "no-such-host.invalid" in refused()


def test_a_hub_that_accepts_and_never_answers(hub, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert "no answer" in refused()


def test_a_name_server_that_never_answers(hub, monkeypatch):
    """Looking up a name takes no timeout and cannot be interrupted."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(20))
    monkeypatch.setattr(asking, "SILENCE_SECONDS", 9)
    assert "does not answer within 1 s" in refused()


def test_an_earlier_copy_is_named_where_the_hub_cannot_be_reached(hub, files, monkeypatch):
    hub.give(NAME, files)
    fetch()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert f"A copy that was fetched earlier is here: {sources.model_folder(NAME)}" in refused()


# -------------------------------------------------------------------------------------------------- what goes wrong


def parts():
    """Sizes of what has arrived in part."""
    return [path.stat().st_size for path in sources.repository(NAME).glob("blobs/*.incomplete")]


def asked_from(hub):
    return [int(h["Range"][6:-1]) for path, h in hub.requests if path.startswith("/cdn/") and "Range" in h]


def test_a_broken_connection_is_taken_up_where_it_broke(hub, files):
    hub.give(NAME, files)
    hub.cut = [8192, 8192]
    fetch()
    assert asked_from(hub) == [8192, 16384]
    assert same(files)


@pytest.mark.parametrize("error", [OSError(errno.EHOSTUNREACH, "No route to host"), ssl.SSLError(1, "bad record")])
def test_a_network_that_goes_away_is_no_disk_error_and_is_tried_again(hub, files, monkeypatch, error):
    """An unreachable host and a broken encryption are plain OSErrors, as a full disk is."""
    hub.give(NAME, files)
    read, failed = http.client.HTTPResponse.read1, []

    def broken(answer, n=-1):
        if not failed and n == fetching._CHUNK:
            failed.append(True)
            raise error
        return read(answer, n)

    monkeypatch.setattr(http.client.HTTPResponse, "read1", broken)
    fetch()
    assert failed
    assert same(files)


def test_a_stream_whose_network_goes_away_says_so(hub, files, monkeypatch):
    hub.give(NAME, files)
    monkeypatch.setattr(asking.Hub, "open", lambda *_: contextlib.nullcontext(NoRoute()))
    monkeypatch.setattr(asking, "ATTEMPTS", 2)
    with pytest.raises(MemlocError, match=r"stopped coming at byte 10: .*No route"):
        asking.Hub(NAME, "main").part("model.safetensors", COMMIT, 10, 20)


class NoRoute:
    status = 206

    def read(self):
        raise OSError(errno.EHOSTUNREACH, "No route to host")


@pytest.mark.parametrize("ranges", [True, False])
def test_a_hub_that_falls_silent_is_left_and_the_next_call_goes_on(hub, files, ranges):
    hub.give(NAME, files)
    hub.stall = 20480
    said = refused()
    assert "are kept; the same command goes on" in said
    (kept,) = parts()
    assert kept >= 20480
    assert no_model_here()
    hub.stall, hub.ranges = None, ranges
    hub.requests.clear()
    before = hub.sent
    fetch()
    assert asked_from(hub)[0] == kept
    assert (hub.sent - before < len(files["model.safetensors"])) == ranges
    assert same(files)
    assert parts() == []


def test_bytes_that_are_not_those_of_the_hash_are_never_a_model(hub, files):
    hub.give(NAME, files)
    content = bytearray(files["model.safetensors"])
    content[1000] ^= 1
    hub.wrong = {"model.safetensors": bytes(content)}
    assert "arrived damaged twice" in refused()
    assert no_model_here()
    assert parts() == [0]


def test_a_remainder_of_something_else_is_thrown_away(hub, files):
    hub.give(NAME, files)
    blobs = sources.repository(NAME) / "blobs"
    blobs.mkdir(parents=True)
    name = hashlib.sha256(files["model.safetensors"]).hexdigest()
    (blobs / f"{name}.incomplete").write_bytes(b"z" * 5000)
    fetch()
    assert same(files)


def test_a_disk_without_room_is_noticed_before_anything_is_fetched(hub, files, monkeypatch):
    hub.give(NAME, files)
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000))
    assert "0.01 MB free" in refused()
    assert hub.fetched() == []


def test_a_disk_that_fills_up_is_named(hub, files, monkeypatch):
    hub.give(NAME, files)

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        assert "is full; what has arrived is kept" in refused()
    assert no_model_here()
    fetch()
    assert sources.model_folder(NAME)


def test_a_cache_that_cannot_be_written(hub, files, tmp_path, monkeypatch):
    hub.give(NAME, files)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    assert "cannot be written" in refused()


def test_two_at_once_do_not_write_one_file(hub, files):
    hub.give(NAME, files)
    hub.pace = 0.05
    first = subprocess.Popen(command("download", NAME), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for(lambda: hub.sent > 20_000)
    assert "by another process" in refused()
    hub.pace = 0.0
    assert first.wait(30) == 0
    assert sources.model_folder(NAME)


@pytest.mark.parametrize(("signal_", "ignored"), [(signal.SIGINT, ()), (signal.SIGTERM, ()), (signal.SIGTERM, (2,))])
def test_ctrl_c_ends_it_at_once_and_nothing_half_counts_as_a_model(hub, files, signal_, ignored):
    """SIGTERM also in the background of a script, where SIGINT is ignored."""
    hub.give(NAME, files)
    hub.pace = 0.2
    process = subprocess.Popen(
        command("download", NAME),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: [signal.signal(number, signal.SIG_IGN) for number in ignored],
    )
    wait_for(lambda: any(parts()) and hub.sent > 20_000)
    started = time.monotonic()
    process.send_signal(signal_)
    assert process.wait(20) == 128 + signal_
    assert time.monotonic() - started < 3
    assert "stopped; what has arrived is kept" in process.stderr.read()
    assert no_model_here()
    assert not (Path(os.environ["HF_HUB_CACHE"]) / "models--somebody--tiny-neo" / "snapshots").exists()
    hub.pace = 0.0
    hub.requests.clear()
    fetch()
    assert asked_from(hub)[0] > 0
    assert same(files)


def test_exit_codes_and_sentences_of_the_command(hub, files):
    hub.give(NAME, files)
    for arguments, code in ((("download", "somebody/else"), 1), (("download", "a/b/c"), 2), (("download",), 2)):
        done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (code, "")
        assert "Traceback" not in done.stderr


# ---------------------------------------------------------------------------------------------------------- data sets

DATA = "somebody/rows"


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> dict[str, bytes]:
    """A data set as a hub has it: two configurations, two splits, in two formats, with code and notes beside them."""
    folder = tmp_path_factory.mktemp("rows")
    made = {"README.md": b"# rows", "rows.py": b"raise SystemExit('run')", ".gitattributes": b"*.parquet lfs"}
    generator = torch.Generator().manual_seed(0)
    for name in ("en/train-0", "en/train-1", "en/test-0", "de/train-0"):
        tokens = torch.randint(0, 120, (6, 40), generator=generator).tolist()
        pq.write_table(pa.table({"tokens": tokens}), folder / "part.parquet")
        made[f"{name}.parquet"] = (folder / "part.parquet").read_bytes()
        made[f"{name}.jsonl"] = b"".join(json.dumps({"tokens": row}).encode() + b"\n" for row in tokens)
    return made


def scan_of(model, out, *arguments):
    options = ("--model", str(model), "--device", "cpu", "--window", "40", "--prefix-length", "20", "--stride", "40")
    return command("scan", *arguments, "--out", str(out), *options, "--min-unique", "0")


def scanned(model, out, *arguments):
    """The rows of a scan's set."""
    done = subprocess.run(scan_of(model, out, *arguments), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return pq.read_table(out).to_pylist()


@pytest.fixture(scope="module")
def scanned_here(rows, tiny_checkpoint, tmp_path_factory):
    """What a scan finds in two of the files, lying here."""
    folder = tmp_path_factory.mktemp("here")
    for name in ("train-0", "train-1"):
        (folder / f"{name}.parquet").write_bytes(rows[f"en/{name}.parquet"])
    found = scanned(tiny_checkpoint, tmp_path_factory.mktemp("set") / "own.parquet", str(folder))
    assert len(found) > 0
    return found


def test_a_data_set_arrives_and_is_scanned_by_its_name(hub, rows, tiny_checkpoint, tmp_path, scanned_here):
    hub.give(f"datasets/{DATA}", rows)
    source = f"{DATA}@en:train"
    done = subprocess.run(command("download", "--data", source, "--json"), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    wanted = ["en/train-0.parquet", "en/train-1.parquet"]
    assert json.loads(done.stdout)["files"] == wanted
    assert sorted(path.split(COMMIT + "/")[1] for path in hub.paths() if "/resolve/" in path) == wanted
    files = sources.downloaded(source)
    assert [file.read_bytes() for file in files] == [rows[name] for name in wanted]

    found = scanned(tiny_checkpoint, tmp_path / "hub.parquet", source)
    assert [row["tokens"] for row in found] == [row["tokens"] for row in scanned_here]


def test_the_command_that_is_named_reads_the_revision_that_was_fetched(hub, rows, capsys):
    hub.give(f"datasets/{DATA}", rows)
    hub.give(f"datasets/{DATA}", rows, revision="then", commit=OTHER)
    for revision, own in (("then", True), ("main", True), ("then", False), (OTHER, False)):
        fetching.download(Settings(revision=revision), DATA, False, data=True)
        corpus = capsys.readouterr().out.split("memloc-tui scan ")[1].split(" --out")[0]
        assert (corpus == DATA) == own
        found = sources.downloaded(corpus) if own else [Path(corpus, "en/train-0.parquet")]
        assert own or sources.paragraph_files(str(found[0])) == (found[0].resolve(),)
        assert {file.relative_to(sources.repository(DATA, "datasets")).parts[1] for file in found} == {
            COMMIT if revision == "main" else OTHER
        }


def test_hugging_faces_own_tools_find_the_data_set(hub, rows):
    hub.give(f"datasets/{DATA}", rows)
    fetching.download(Settings(), f"{DATA}@de", False, data=True)
    program = f"""
from huggingface_hub import hf_hub_download
print(hf_hub_download({DATA!r}, "de/train-0.parquet", repo_type="dataset", local_files_only=True))
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert Path(said.stdout.strip()).read_bytes() == rows["de/train-0.parquet"]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (f"{DATA}@fr", "names none of the files of somebody/rows: de/train-0.jsonl"),
        (f"{DATA}:validation", "names none of the files"),
        ("somebody/nothing", "has no somebody/nothing"),
        ("a b/c", "is no name of a data set on the hub"),
    ],
)
def test_a_data_set_that_is_not_there(hub, rows, source, says):
    hub.give(f"datasets/{DATA}", rows)
    with pytest.raises(MemlocError, match=re.escape(says)):
        fetching.download(Settings(), source, False, data=True)
    assert not sources.downloaded(DATA)


def test_a_data_set_without_data_and_one_that_leads_out_of_its_folder(hub):
    hub.give(f"datasets/{DATA}", {"README.md": b"# none"})
    with pytest.raises(MemlocError, match="holds no file of a kind that can be read"):
        fetching.download(Settings(), DATA, False, data=True)
    hub.give(f"datasets/{DATA}", {"../../../out.csv": b"text\nx\n", "data/.hidden.csv": b"", "/etc/x.csv": b""})
    with pytest.raises(MemlocError, match="holds no file of a kind that can be read"):
        fetching.download(Settings(), DATA, False, data=True)
    assert not hub.fetched()


def test_a_data_set_from_a_hub_that_never_answers(hub, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(MemlocError, match="no answer"):
            fetching.download(Settings(), DATA, False, data=True)


def test_a_data_set_from_a_hub_that_is_out_of_order(hub, rows):
    hub.give(f"datasets/{DATA}", rows)
    hub.refuse = ("api", 503, "")
    with pytest.raises(MemlocError, match="HTTP 503"):
        fetching.download(Settings(), DATA, False, data=True)


def test_paragraphs_of_several_files_are_told_to_scan(hub, rows):
    hub.give(f"datasets/{DATA}", rows)
    fetching.download(Settings(), f"{DATA}@en", False, data=True)
    with pytest.raises(UsageError, match="`memloc-tui scan` takes all"):
        sources.paragraph_files(f"{DATA}@en")
    assert [file.name for file in sources.paragraph_files(f"{DATA}@en:test")] == ["test-0.parquet"]


# ------------------------------------------------------------------------------------- scanned without being fetched


def test_any_part_of_a_file_on_the_hub_is_that_of_the_file(hub, monkeypatch):
    content = random.Random(0).randbytes(50_000)
    hub.give(f"datasets/{DATA}", {"a b/rows.parquet": content})
    monkeypatch.setattr(asking, "PIECE", 1000)
    file, local = asking.HubFile(f"hub://{DATA}@{COMMIT}/a b/rows.parquet").open(), io.BytesIO(content)
    draw = random.Random(1)
    for _ in range(200):
        place, whence = draw.choice([(draw.randrange(52_000), 0), (-draw.randrange(50_000), 2), (0, 1)])
        assert file.seek(place, whence) == local.seek(place, whence)
        size = draw.choice([1, 7, 999, 1001, 5000])
        assert file.read(size) == local.read(size)
        assert file.tell() == local.tell()
    asked = [headers["Range"] for _, headers in hub.requests if "Range" in headers]
    spans = [tuple(map(int, span.removeprefix("bytes=").split("-"))) for span in asked]
    assert all(last - first < 1000 for first, last in spans)


def test_a_hub_that_falls_silent_in_the_middle_of_a_stream_is_left(hub):
    hub.give(f"datasets/{DATA}", {"rows.parquet": bytes(50_000)})
    file = asking.HubFile(f"hub://{DATA}@{COMMIT}/rows.parquet").open()
    hub.stall = 8192
    began = time.monotonic()
    with pytest.raises(asking.Unreachable, match=r"rows.parquet stopped coming at byte 0: .*no answer for|timed out"):
        file.read()
    assert time.monotonic() - began < 10
    hub.stall = None
    assert file.read() == bytes(50_000)


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "jsonl.gz", "csv", "txt", "arrow"])
def test_a_corpus_on_the_hub_is_planned_and_read_as_the_same_files_here(hub, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "PIECE", 3000)
    draw = random.Random(0)
    texts = [" ".join(draw.choice(["alpha", "beta", "gamma"]) for _ in range(60)) for _ in range(40)]
    made = {}
    for part in range(2):
        table = pa.table({"tokens": [[ord(c) % 120 for c in text] for text in texts], "text": texts})
        file = tmp_path / f"part-{part}.{kind}"
        if kind == "parquet":
            pq.write_table(table, file, row_group_size=9)
        elif kind == "arrow":
            with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table, max_chunksize=7)
        else:
            lines = {
                "jsonl": [json.dumps({"text": text}) for text in texts],
                "csv": ["text", *texts],
                "txt": texts,
            }[kind.removesuffix(".gz")]
            data = "".join(line + "\n" for line in lines).encode()
            file.write_bytes(gzip.compress(data) if kind.endswith("gz") else data)
        made[f"data/part-{part}.{kind}"] = file.read_bytes()
    hub.give(f"datasets/{DATA}", made | {"README.md": b"# texts", "other.py": b"raise SystemExit('run')"})
    plans, documents = [], []
    for corpus in (f"hub://{DATA}", str(tmp_path)):
        engine = Engine()
        found = engine.answer(FindCorpus(corpus, "demo")).result
        column = "tokens" if kind in ("parquet", "arrow") else "" if kind == "txt" else "text"
        plan = engine.answer(PlanScan(found.files, "demo", column, block_bytes=1500)).result
        plans.append((len(found.files), *(getattr(plan, name).tolist() for name in ("start", "documents", "size"))))
        blocks = [block_of(plan, i, found.files, "demo") for i in range(len(plan))]
        # As two engines would that take turns, then one anew.
        order = [*range(0, len(blocks), 2), *range(1, len(blocks), 2), *range(len(blocks))]
        read = [(i, Reading(vocabulary_of("demo"))) for i in order]
        for i, reading in read:
            for _ in read_block(blocks[i], reading):
                pass
        documents.append([(i, reading.digest(), reading.documents) for i, reading in read])
    assert plans[0] == plans[1]
    assert documents[0] == documents[1]
    assert len(plans[0][1]) > 4
    assert sum(n for _, _, n in documents[0]) == 2 * sum(plans[0][2])
    assert not (tmp_path / "hf").exists()


def test_a_streamed_scan_goes_on_with_what_it_began_with_and_leaves_nothing_here(
    hub, rows, tiny_checkpoint, tmp_path, scanned_here
):
    hub.give(f"datasets/{DATA}", rows)
    hub.cut = [6000]  # breaks off once, which is no more than a delay
    stream, blocks = ("--stream", f"{DATA}@en:train"), ("--block-tokens", "1")
    began = subprocess.Popen(
        scan_of(tiny_checkpoint, tmp_path / "hub.parquet", *stream, *blocks), stderr=subprocess.PIPE, text=True
    )
    finished = tmp_path / "hub.parquet.scan" / "blocks"
    while began.poll() is None and not (finished.is_dir() and any(finished.iterdir())):
        time.sleep(0.01)
    began.kill()
    began.communicate()
    assert (tmp_path / "hub.parquet.scan" / "manifest.json").is_file()
    # The data set has moved on meanwhile; the scan has not.
    hub.give(f"datasets/{DATA}", rows, revision="then")
    hub.give(f"datasets/{DATA}", {"en/train-0.jsonl": b'{"tokens": [1]}\n'}, commit=OTHER)
    found = scanned(tiny_checkpoint, tmp_path / "hub.parquet", *stream, *blocks)
    assert {row["source"] for row in found} == {f"hub://{DATA}@{COMMIT}/en/train-{i}.parquet" for i in (0, 1)}
    assert [row | {"source": ""} for row in found] == [row | {"source": ""} for row in scanned_here]
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize(("anew", "commit"), [(False, COMMIT), (True, OTHER)])
def test_a_stream_stays_at_its_commit_until_it_begins_anew(hub, rows, tmp_path, anew, commit):
    hub.give(f"datasets/{DATA}", rows, revision="then")
    hub.give(f"datasets/{DATA}", rows, commit=OTHER)
    folder = ScanFolder(tmp_path / "set.parquet")
    plan = CorpusFiles((), (), "")  # the real one is not looked at: any answer that can be written
    folder.begin({"corpus": f"hub://{DATA}", "files": [f"hub://{DATA}@{COMMIT}/en/train-0.parquet"]}, plan)
    engine = Engine()

    async def ask(request, on_progress):
        return engine.answer(request)

    scan = Scan(folder, f"hub://{DATA}", "demo", ScanOptions(), ask)
    asyncio.run(scan.find(anew=anew))
    assert {asking.HubFile(file).commit for file in scan._files.files} == {commit}


def test_what_stands_in_the_way_of_a_stream_is_said(hub, rows, tiny_checkpoint, tmp_path):
    def refused(source, column=""):
        asking._sizes.cache_clear()
        engine = Engine()

        def planned():
            found = engine.answer(FindCorpus(f"hub://{source}", str(tiny_checkpoint))).result
            engine.answer(PlanScan(found.files, str(tiny_checkpoint), column))

        with pytest.raises(MemlocError) as raised:
            planned()
        return str(raised.value)

    assert "no name of a data set" in refused(str(tmp_path / "rows.jsonl"))
    assert "has no somebody/rows" in refused(DATA)
    hub.give(f"datasets/{DATA}", {"README.md": b"# none"})
    assert "holds no file of a kind that can be read" in refused(DATA)
    hub.give(f"datasets/{DATA}", rows)
    assert "names none of the files" in refused(f"{DATA}@fr")
    assert "has no column 'words'" in refused(DATA, "words")
    hub.ranges = False
    asking._piece.cache_clear()
    assert "does not send parts of files" in refused(DATA)
    hub.ranges = True
    hub.refuse = ("train-1", 503, "")
    assert "en/train-1.parquet stopped coming at byte 0: 127.0.0.1" in refused(f"{DATA}@en:train")

    def command_says(*arguments, **environment):
        done = subprocess.run(
            scan_of(tiny_checkpoint, tmp_path / "hub.parquet", "--stream", *arguments),
            capture_output=True,
            text=True,
            timeout=120,
            env=os.environ | environment,
        )
        assert "Traceback" not in done.stderr
        return done.returncode, " ".join(done.stderr.split())

    with pytest.raises(UsageError, match="--stream ORG/NAME"):
        corpus_of(f"hub://{DATA}", stream=False)
    with pytest.raises(UsageError, match="is no name of a data set"):
        corpus_of("rows.jsonl", stream=True)
    assert corpus_of("rows.jsonl", stream=False) == "rows.jsonl"
    code, said = command_says(DATA, HF_HUB_OFFLINE="1")
    assert (code, "HF_HUB_OFFLINE is set" in said) == (2, True), said
    code, said = command_says(f"{DATA}@en:train")
    assert (code, "en/train-1.parquet stopped coming" in said) == (1, True), said
    assert not (tmp_path / "hub.parquet").exists()
