"""Scanning a corpus: windows over every document's tokens, block by block.

A corpus is divided once, by `PlanScan`, into blocks of whole documents. Each block is scanned by itself, wherever there
is an engine with the model; what comes out does not depend on which engine that was, nor on what else was scanned.

Shapes: b blocks, k kept windows of w tokens (`window`), c = w - prefix_length continuation positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from memloc_core.requests.base import BACKGROUND, NON_MEMORIZED_UP_TO, URGENT, Request, Result

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from memloc_core.requests.base import Floats, Ints


SCAN_STRATA = ("memorized", "partly", "non-memorized")


def scan_stratum(em: Ints, continuation: int) -> Ints:
    """The index in `SCAN_STRATA` of each exact match (README), [n]."""
    import numpy as np

    return np.where(em == continuation, 0, np.where(em <= NON_MEMORIZED_UP_TO * continuation, 2, 1)).astype(np.int64)


@dataclass(frozen=True)
class CorpusFiles(Result):
    """The files of a corpus in the order in which they are read. `states`: size and time of each; equal states mean,
    in all likelihood, equal contents. `tokenizer`: sha256 of the tokenizer that reads text, "" where there is none.
    `begin`: the model's begin-of-text token, -1 where it is not to stand before the windows."""

    files: tuple[str, ...]
    states: tuple[str, ...]
    tokenizer: str
    begin: int = -1


@dataclass(frozen=True)
class FindCorpus(Request):
    """Which files `corpus` stands for: a file, a folder, or a data set's name in the local `datasets` cache.

    hub://ORG/NAME[@CONFIG][:SPLIT] is one on the hub, at `commit` or, without one, as its main branch is now.
    `begin_of_text`: the model shall read its begin-of-text token before every window.
    """

    answer = CorpusFiles
    urgency = URGENT
    keeps = False
    corpus: str
    model: str
    commit: str = ""
    begin_of_text: bool = False


@dataclass(frozen=True)
class ScanPlan(Result):
    """A corpus divided into blocks of whole documents. Documents are numbered from 0 through all files."""

    column: str  # "" where the files have no columns
    file: Ints  # [b] index into the files
    start: Ints  # [b] where the block's first document begins: a byte, or a row
    documents: Ints  # [b]
    first: Ints  # [b] the number of the block's first document
    size: Ints  # [b] about how many bytes: what progress is measured by

    def __len__(self) -> int:
        return len(self.file)


@dataclass(frozen=True)
class PlanScan(Request):
    """Read through a corpus once, check every document, and divide it into blocks of about `block_bytes`.

    `column`: where the text stands, or "" for the usual names. `limit`: only the first documents; 0 for all.
    """

    answer = ScanPlan
    urgency = URGENT
    keeps = False
    files: tuple[str, ...]
    model: str
    column: str = ""
    limit: int = 0
    block_bytes: int = 1 << 20


@dataclass(frozen=True)
class Block:
    """One block of a plan."""

    file: str
    column: str
    start: int
    documents: int
    first: int
    model: str  # whose tokenizer reads text


@dataclass(frozen=True)
class ScannedBlock(Result):
    """What one block held: its kept windows, in the order of document and offset, and sums over all its windows."""

    tokens: NDArray[np.int32]  # [k, w]
    em: Ints  # [k]
    document: Ints  # [k]
    offset: Ints  # [k] tokens from the document's beginning
    order: Ints  # [k] where a stratum is sampled, the windows of the lowest order are taken
    ems: Ints  # [c + 1] windows by exact match
    nlls: NDArray[np.float64]  # [c + 1] sums of the windows' mean NLL, by exact match; 0 where not asked for
    seen: Ints  # token ids that occur, and
    counts: Ints  # how often
    windows: int  # scored
    repetitive: int  # left out, because too few of their tokens were distinct
    short: int  # documents too short for a window
    empty: int  # documents without a token
    tokens_read: int
    digest: str  # sha256 of all token ids and document lengths
    reading: float  # seconds spent on reading and tokenizing, beside the model
    scoring: float  # seconds in the model


@dataclass(frozen=True)
class ScanBlock(Request):
    """Slide windows over the documents of a block and find each one's exact match.

    `keep`: per stratum of `SCAN_STRATA` how many windows of the whole corpus are wanted, -1 for all; `below`: only
    windows of a lower order can still be among them, -1 where that is not known. `nll`: the NLL of every window too.
    `begin`: a token that the model reads before each window, which none begins with and none counts; -1 for none.
    """

    answer = ScannedBlock
    urgency = BACKGROUND
    keeps = False
    block: Block
    window: int = 100
    stride: int = 50
    prefix_length: int = 50
    min_unique: float = 0.5
    keep: tuple[int, ...] = (-1, -1, 1000)
    below: tuple[int, ...] = (-1, -1, -1)
    seed: int = 0
    nll: bool = False
    threads: int = 0  # of the processor, 0 for torch's own choice
    begin: int = -1


@dataclass(frozen=True)
class ScoredWindows(Result):
    """Windows scored one by one, so that a row's figures do not depend on its neighbours."""

    em: Ints  # [k]
    margin: Floats  # [k] logits
    nll: Floats  # [k] nats per token


@dataclass(frozen=True)
class ScoreWindows(Request):
    """Score the rows start..stop of `windows`, a .npy file of token ids [k, w], each by a whole pass of its own.

    `begin` as in `ScanBlock`.
    """

    answer = ScoredWindows
    urgency = BACKGROUND
    keeps = False
    windows: str
    start: int
    stop: int
    prefix_length: int = 50
    threads: int = 0
    begin: int = -1


@dataclass(frozen=True)
class CountedBlock(Result):
    """How often kept windows stand in a block, at any offset: `counts` of the rows `seen` of the file of windows."""

    seen: Ints
    counts: Ints
    digest: str  # as in `ScannedBlock`


@dataclass(frozen=True)
class CountBlock(Request):
    """Count the exact repetitions of the windows of a .npy file in one block."""

    answer = CountedBlock
    urgency = BACKGROUND
    keeps = False
    block: Block
    windows: str


@dataclass(frozen=True)
class ScanReport(Result):
    """The sums of a scan, finished or not, and what its set holds."""

    complete: bool
    blocks: int
    blocks_done: int
    documents: int
    windows: int
    repetitive: int
    short: int
    empty: int
    tokens: int
    ems: Ints  # [c + 1] windows by exact match
    nlls: Floats  # [c + 1] mean NLL in nats per token of the windows of each exact match; nan where not asked for
    kept: Ints  # per stratum of `SCAN_STRATA`
    changed: int  # rows whose exact match came out otherwise when they were scored one by one
    reading: float  # seconds
    scoring: float


@dataclass(frozen=True)
class AssembleScan(Request):
    """Put the finished blocks of a scan's folder together as a set of paragraphs, `out`, whole or not at all.

    `windows` writes the kept windows' tokens into the folder as well, for `ScoreWindows` and `CountBlock`.
    """

    answer = ScanReport
    urgency = URGENT
    keeps = False
    folder: str
    out: str
    windows: bool = False
    complete: bool = False


@dataclass(frozen=True)
class DeviceNames(Result):
    """The devices that one engine each can use."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class ListDevices(Request):
    """Every visible GPU, as cuda:0, cuda:1, ..; else the processor."""

    answer = DeviceNames
    urgency = URGENT
    keeps = False
