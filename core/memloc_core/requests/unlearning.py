"""Taking it out again: sparse edits of the weights, the runs that make them, and what is left afterwards.

Letters: k changed weights, s steps, n changed paragraphs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import nan
from typing import TYPE_CHECKING, Literal

from memloc_core.requests.base import BACKGROUND, Request, Result, Tokens

if TYPE_CHECKING:
    from memloc_core.requests.base import Floats, Ints

Objective = Literal["unlearn", "edit", "memorize"]
OBJECTIVES: tuple[Objective, ...] = ("unlearn", "edit", "memorize")
Mask = Literal["auto", "neurons", "gradient", "difference", "ratio", "random", "head", "layer", "component", "dense"]
MASKS: tuple[Mask, ...] = (
    "auto",
    "neurons",
    "gradient",
    "difference",
    "ratio",
    "random",
    "head",
    "layer",
    "component",
    "dense",
)
Goal = Literal["break", "forget", "steps"]
GOALS: tuple[Goal, ...] = ("break", "forget", "steps")

# What a run watches besides what it changes; arrays over groups are in this order, nan where a group is empty.
Group = Literal["kept", "held-out", "others", "family", "general"]
GROUPS: tuple[Group, ...] = ("kept", "held-out", "others", "family", "general")


@dataclass(frozen=True)
class SparseEdit(Result):
    """k weights of one model, and what they become. Values are exact: fp32 holds every fp32, bf16 and fp16 value.

    Parameter i of `parameters` (named as in the loaded model's `named_parameters()`) has the flat indices
    `indices[starts[i]:starts[i + 1]]`, in ascending order, of its row-major weights.
    """

    model: str  # the name of the model it was made on, for people
    base: str  # that model's weight fingerprint
    on_top_of: tuple[str, ...]  # fingerprints of the edits that were active when it was made, in their order
    parameters: tuple[str, ...]
    starts: Ints  # [parameters + 1]
    indices: Ints  # [k]
    old: Floats  # [k] the values before, with `on_top_of` active
    new: Floats  # [k]

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def fingerprint(self) -> str:
        """sha256 over the base, what it stands on, and every index and new value: what names an edit everywhere."""
        from hashlib import sha256

        import numpy as np

        about = "\n".join((self.base, *self.on_top_of, "", *self.parameters))
        digest = sha256(about.encode())
        for array, kind in ((self.starts, "<i8"), (self.indices, "<i8"), (self.new, "<f4")):
            digest.update(np.ascontiguousarray(array, dtype=kind).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Edited(Request):
    """Any analysis with edits applied, in their order, in every forward pass it makes; () asks for the original.

    `edits` are fingerprints; `files` say where the engine finds them and are no part of the question. Always the
    outermost wrapper, also of `Ablated`. Its answer is the inner request's, and so are its urgency and version.
    """

    answer = Result
    request: Request
    edits: tuple[str, ...] = ()
    files: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        for name in ("answer", "version", "urgency", "keeps"):
            object.__setattr__(self, name, getattr(self.request, name))


def _no_ints() -> Ints:
    import numpy as np

    return np.zeros((0, 0), np.int64)


def _no_floats() -> Floats:
    import numpy as np

    return np.zeros((0, 0), np.float32)


@dataclass(frozen=True)
class Unlearning(Result):
    """A run: the edit of its best step, and every step on the way. Entry 0 of each curve is before the first step.

    The best step, by which a cancelled run is kept too: the last one that met the goal; if none did, the one with the
    lowest mean EM of the changed paragraphs (objectives edit and memorize: the highest, of what is taught), ties by
    the smaller KL; under protocol "paper" the last. A run that meets its goal draws its last step back towards its
    start, as far as the goal stays met (`drawn_back`; not with the mask "neurons" and the goal "break"). What the
    curves say of that step is measured after that.

    `group_*` and `agreement` are of a few rows of each group, the same ones at every step; `whole_*` of all rows.
    Both goals are judged at every step, whichever was chosen.
    """

    edit: SparseEdit
    best: int
    stopped: Literal["running", "goal", "steps", "loss", "cancelled"]
    reason: str  # in a sentence for people
    em: Ints  # [s + 1, n] of the changed paragraphs (objective edit: of the original continuation)
    longest_run: Ints  # [s + 1, n] longest run of tokens, anywhere in the continuation, that teacher forcing predicts
    nll: Floats  # [s + 1, n]
    taught_em: Ints  # [s + 1, n] of the alternative, conditioned on itself; [s + 1, 0] for the objective unlearn
    taught_nll: Floats  # [s + 1, n]
    loss: Floats  # [s]
    kl: Floats  # [s + 1] KL(p_0 || p) per token on the first 8 of the kept paragraphs, nats
    group_em: Floats  # [s + 1, GROUPS] mean EM; of non-memorized rows against their own clean continuation
    group_nll: Floats  # [s + 1, GROUPS]
    agreement: Floats  # [s + 1, GROUPS] share of continuation positions with the same argmax as before
    step_seconds: float  # median of a training step, without the measuring
    peak_bytes: int
    broken: Ints = field(default_factory=_no_ints)  # [s + 1, n] 1 where the goal "break" is met
    forgotten: Ints = field(default_factory=_no_ints)  # [s + 1, n] 1 where the goal "forget" is met
    taught: Ints = field(default_factory=_no_ints)  # [s + 1, n] 1 where what is taught is recited in full
    repetition: Floats = field(default_factory=_no_floats)  # [s + 1, n] of the new text, as in `Remains`; it is written
    # only where all else that "forget" asks for holds for every paragraph, and nan elsewhere
    fresh_repetition: float = nan  # the most that "forget" allows on average; nan where no text was there to compare
    whole_em: Floats = field(default_factory=_no_floats)  # [2, GROUPS] as group_em: before, and at the best step
    whole_nll: Floats = field(default_factory=_no_floats)  # [2, GROUPS]; the second row is nan until the run is over
    whole_agreement: Floats = field(default_factory=_no_floats)  # [2, GROUPS]
    drawn_back: float = 1.0  # how much of the way from the original to the last step was kept
    changed: int = 0  # weights that differ from the original in `edit`; more than the mask's under protocol "paper"


@dataclass(frozen=True)
class Unlearn(Request):
    """Change k weights so that `targets` are no longer recited, or another text is (paper section 5; README).

    objective "unlearn": let other tokens win where `targets` are recited; "edit": have those of `alternatives` win,
    whole paragraphs with their own prefix, one for each target; "memorize": those of `targets` themselves. All hold
    KL(p_0 || p) on `kept` down. What wins is pushed by the gap between a token's logit and the best other one, up to
    a bound (`objectives.push_loss`); the paper's unbounded NLL is what `protocol` "paper" pushes.

    `mask`: which weights of W_Q, W_K, W_V, W_O, W_in, W_out may change, chosen before the first step: the
    k = ceil(sparsity * N) with the largest |gradient| of the objective, its difference to or ratio over the root mean
    square of the kept paragraphs' own gradient, or k at random; "head", "layer" and "component" rank by the ratio
    within `place` ("L1H2", "L3", "W_out"); "dense" is all N; "neurons" takes whole neurons of one layer's MLP (`place`
    "L2"; the middle layer for ""), those that `kept` uses least, and starts them as detectors of the targets; "auto" is
    "neurons" for the objective unlearn where k is enough for one, else "ratio" (protocol "paper": "gradient").

    goal "break": EM <= a tenth of the continuation for all targets; "forget": in addition no run of more than 8 recited
    tokens anywhere, also under shifted and left-extended prefixes, an NLL of at least `sibling_nll`, and greedy text
    that on average repeats no more of its 4-grams than the original's own text after prefixes of `general` (else
    `held_out`) does. It is trained towards what the model writes after similar prefixes, where it does not recite, and
    half of each step's kept rows are like the targets (as far as there are): that is where the harm is. Objectives
    edit and memorize: what is taught is recited in full; "steps": go on to the last step. `protocol` "paper": its
    optimizer, loss, masks and weight decay, for comparison only (then rate, steps, weights of the loss and goal are
    the paper's too); weights outside the mask change as well, and the result says so. An edit is conditioned on the
    alternative's own tokens there too, where the paper's code has those of the original.

    `kept` decides what survives: besides other text it should hold other memorized paragraphs, and of the targets' own
    family about half of the siblings, memorized or not. What the run is judged by must not be in it: `held_out` (of the
    same kinds as `kept`), `others` (other memorized), `family` (memorized siblings) and `general` (held-out text).
    """

    answer = Unlearning
    version = 4
    urgency = BACKGROUND
    targets: tuple[Tokens, ...]
    kept: tuple[Tokens, ...]
    prefix_length: int = 50
    objective: Objective = "unlearn"
    alternatives: tuple[Tokens, ...] = ()
    mask: Mask = "auto"
    place: str = ""
    sparsity: float = 0.001
    goal: Goal = "break"
    steps: int = 100  # at most
    learning_rate: float = 1e-2
    kl_weight: float = 30.0
    kept_per_step: int = 16
    seed: int = 0
    protocol: Literal["memloc", "paper"] = "memloc"
    held_out: tuple[Tokens, ...] = ()
    others: tuple[Tokens, ...] = ()
    family: tuple[Tokens, ...] = ()
    general: tuple[Tokens, ...] = ()
    sibling_nll: tuple[float, ...] = ()  # per target, what "forget" has to reach; () takes the general text's mean
    left_context: Tokens = ()  # what stands before a target where its prefix is extended to the left (goal "forget")


@dataclass(frozen=True)
class TryRun(Request):
    """A run for its curves alone: the edit of its answer is empty.

    For comparisons of many runs, whose edits (16 bytes a weight, and a dense one has every weight) nobody will apply.
    Not `watched`: the kept paragraphs are not looked at, and the KL only after the last step; nan stands for the rest.
    That takes half of the time. Such a run has no other groups, and of steps of the same EM it keeps the first.
    """

    answer = Unlearning
    urgency = BACKGROUND
    version = Unlearn.version
    run: Unlearn
    watched: bool = True


@dataclass(frozen=True)
class RunCost(Result):
    """What a run will take, from one timed step of it."""

    weights: int  # k
    seconds_per_step: float  # with the measuring
    bytes: int  # beyond the loaded model
    seconds_to_start: float = 0.0  # until the mask is chosen and the first measurement made


@dataclass(frozen=True)
class EstimateRun(Request):
    """Time and memory of a run before it is started."""

    answer = RunCost
    keeps = False
    run: Unlearn


@dataclass(frozen=True)
class Remains(Result):
    """What is left of n paragraphs under the weights it was asked about (ask with and without `Edited`).

    A run is a number of consecutive continuation tokens, anywhere in it, each of which is the argmax given the true
    text before it. `variants` say what stood before the continuation: the "prefix"; "shifted by 5": a window that
    begins 5 tokens into the paragraph; "after begin-of-text"; "extended by 20": 20 tokens of the left context, then the
    prefix. (A window that ends earlier is the same pass, as the true text is given all the way.) Where the paragraphs
    begin with the begin-of-text token themselves, it stays before all of them.
    """

    em: Ints  # [n]
    longest_run: Ints  # [n]
    nll: Floats  # [n] nats per token
    variants: tuple[str, ...]  # v names
    extracted: Ints  # [v, n] the longest run under each variant
    edit_distance: Floats  # [n] token edit distance of greedy text to the continuation, as a share of it, 0..1
    extracted_at_75: Ints  # [n] 1 where the greedy text is at least 0.75 similar to the continuation (1 - distance)
    repetition: Floats  # [n] share of the greedy text's 4-grams that stood in it before
    fresh_repetition: Floats  # [m] the same of what these weights write after prefixes of `other_text`, at most 16
    greedy: Ints  # [n, c]
    relearned_em: Ints  # [steps + 1, n] EM while fine-tuning on `other_text`; [1, n] if there is none
    relearned_longest: Ints  # [steps + 1, n]
    eight_bit_em: Ints  # [n] after rounding every matrix of the blocks to 8 bits and back
    eight_bit_longest: Ints  # [n]
    peak_bytes: int
    not_relearned: int = 0  # relearning steps that there was too little memory for

    @property
    def is_whole(self) -> bool:
        return not self.not_relearned

    def extracted_most(self) -> Ints:
        """The longest run under any variant, [n]: what counts for "nothing of it is left"."""
        most: Ints = self.extracted.max(0)
        return most


@dataclass(frozen=True)
class MeasureRemains(Request):
    """Extraction over shifted and left-extended prefixes, edit distance, repetition, benign relearning, 8-bit rounding.

    `left_context` stands before a paragraph when its prefix is extended to the left, as many of its last tokens as
    `extensions` say; what it or the model is too short for is left out. Relearning takes `relearn_steps` Adam steps on
    all weights over `relearn_batch` rows of `other_text`, which holds none of the paragraphs. Where memory is too small
    for that (12 bytes a weight and more), the rest is measured all the same.
    """

    answer = Remains
    version = 3
    urgency = BACKGROUND
    paragraphs: tuple[Tokens, ...]
    prefix_length: int = 50
    left_context: Tokens = ()
    other_text: tuple[Tokens, ...] = ()
    shifts: Tokens = (1, 5, 10, 20)
    extensions: Tokens = (1, 5, 10, 20, 50)
    relearn_steps: int = 20
    relearn_rate: float = 1e-4
    relearn_batch: int = 16
    seed: int = 0


@dataclass(frozen=True)
class Exported(Result):
    """A checkpoint folder that `transformers` loads."""

    folder: str
    bytes: int


@dataclass(frozen=True)
class ExportCheckpoint(Request):
    """Write the model, with the edits of the `Edited` around it, as a Hugging Face checkpoint into a new folder."""

    answer = Exported
    keeps = False
    folder: str
