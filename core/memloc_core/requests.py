"""The menu: every question the engine answers, and every answer.

Whoever reads this file knows everything the system can do. A question is a frozen dataclass of plain values, so it has
one canonical form and thereby a cache key. An answer is a frozen dataclass of numpy arrays and scalars. This module
imports neither numpy nor torch: the explorer reads it before its first frame.

Shapes use these letters: n paragraphs of `length` tokens, p prefix positions, c continuation positions, V vocabulary.
A paragraph is `length` token ids; its first `prefix_length` ids are the prefix, the rest is the continuation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Floats = NDArray[np.float32]

Tokens = tuple[int, ...]
Strategy = Literal["random", "next-best", "most-frequent", "rarest", "given"]
STRATEGIES: tuple[Strategy, ...] = ("random", "next-best", "most-frequent", "rarest", "given")
Reference = Literal["true", "own"]

# Strata by exact match, in shares of the continuation, so that they hold for any length (METRICS.md, paper section 3).
NON_MEMORIZED_UP_TO = 0.2

# How soon an answer is wanted. The engine serves a lower number between two steps of a higher one.
URGENT, NORMAL, BACKGROUND = 0, 1, 2


class Result:
    """Base of every answer: a frozen dataclass whose fields are arrays, scalars, strings, or tuples of them."""


class Request:
    """Base of every question.

    `answer` is the class of its result; `version` counts changes of that result's meaning and is part of the cache
    key; `urgency` orders the engine's work; `keeps` says whether the answer may be kept on disk under the model's
    identity (answers about files are kept by the files' state instead, see `sources`).
    """

    answer: ClassVar[type[Result]]
    version: ClassVar[int] = 1
    urgency: ClassVar[int] = NORMAL
    keeps: ClassVar[bool] = True


R = TypeVar("R", bound=Result)


@dataclass(frozen=True)
class Progress:
    """What an analysis yields between two steps: `done` of `total` `unit`s, and what is known so far, if that helps."""

    done: int
    total: int
    unit: str = "steps"
    notice: str = ""
    partial: Result | None = None


@dataclass(frozen=True)
class Provenance:
    """What makes a result reproducible, together with its request (which holds the seed)."""

    model: str
    fingerprint: str
    edit: str
    dtype: str
    device: str
    attention: str
    seconds: float
    versions: dict[str, str] = field(default_factory=dict)
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer(Generic[R]):
    """A result with the request that asked for it and the provenance that reproduces it."""

    request: Request
    result: R
    provenance: Provenance


# ---------------------------------------------------------------------------------------------- what is being studied


@dataclass(frozen=True)
class ModelInfo(Result):
    """The loaded model. `identity` stands in every cache key: weights, dtype, attention, kind of device."""

    name: str
    folder: str
    architecture: str
    fingerprint: str
    identity: str
    dtype: str
    device: str
    attention: str
    layers: int
    heads: int
    width: int
    parameters: int
    vocabulary: int
    positions: int
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class OpenModel(Request):
    """Load a model: `demo`, a Hugging Face checkpoint folder, or the name of one already in the local hub cache."""

    answer = ModelInfo
    urgency = BACKGROUND
    keeps = False
    model: str
    dtype: str = "auto"
    device: str = "auto"


@dataclass(frozen=True)
class Vocabulary(Result):
    """The bytes of every token: token `t` is `pieces[offsets[t]:offsets[t + 1]]`. `bos` is -1 where there is none."""

    pieces: NDArray[np.uint8]
    offsets: Ints
    fingerprint: str
    bos: int = -1

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def piece(self, token: int) -> bytes:
        """The bytes of one token, b"" for an id that the tokenizer does not know."""
        if not 0 <= token < len(self):
            return b""
        return self.pieces[self.offsets[token] : self.offsets[token + 1]].tobytes()

    def text(self, tokens: Any) -> str:
        """The tokens' bytes joined and decoded; bytes that are no UTF-8 show as U+FFFD."""
        return b"".join(self.piece(int(t)) for t in tokens).decode("utf-8", "replace")


@dataclass(frozen=True)
class ReadVocabulary(Request):
    """Every token's bytes, from the model folder's tokenizer alone (the weights need not be loaded)."""

    answer = Vocabulary
    urgency = URGENT
    keeps = False
    model: str


@dataclass(frozen=True)
class ParagraphSet(Result):
    """Paragraphs and what is known of them. Unknown: `repetitions` and `family` -1, `genre` and `split` ""."""

    source: str
    fingerprint: str
    prefix_length: int
    ids: tuple[str, ...]
    tokens: Ints  # [n, length]
    counts: Ints  # [V] unigram counts of the corpus, or of this set where the corpus' are not known
    counts_of: Literal["corpus", "set"]
    repetitions: Ints  # [n]
    family: Ints  # [n]
    genre: tuple[str, ...]
    split: tuple[str, ...]
    notices: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def row(self, index: int) -> Tokens:
        return tuple(self.tokens[index].tolist())

    def prefix_counts(self, index: int) -> Tokens:
        """The corpus count of each prefix token of one paragraph, [p]."""
        return tuple(self.counts[self.tokens[index, : self.prefix_length]].tolist())

    def ranked_tokens(self, strategy: Literal["most-frequent", "rarest"], k: int) -> Tokens:
        """The k tokens with the highest (or lowest, but not zero) corpus count; ties by id."""
        seen = self.counts.nonzero()[0]
        counts = self.counts[seen]
        order = (-counts if strategy == "most-frequent" else counts).argsort(kind="stable")
        return tuple(seen[order[:k]].tolist())


@dataclass(frozen=True)
class OpenParagraphs(Request):
    """Read paragraphs: `demo`, or a .jsonl, .npy, .pt, .csv or .parquet file; `model`'s tokenizer reads text rows."""

    answer = ParagraphSet
    urgency = URGENT
    keeps = False
    source: str
    model: str
    prefix_length: int = 50
    continuation_length: int = 50


# ---------------------------------------------------------------------------------------------------------- analyses


@dataclass(frozen=True)
class ExactMatches(Result):
    """Exact match and its neighbourhood for n paragraphs.

    `margin`: how close the exact match is to being another number: the smallest |logit of the true token - best other
    logit| over the matched run and the first mismatch. Below about 1e-3 it may differ between devices and precisions.
    """

    em: Ints  # [n] 0..c
    margin: Floats  # [n] logits
    nll: Floats  # [n] nats per token, conditioned on the true text
    token_nll: Floats  # [n, c] nats
    predicted: Ints  # [n, c] teacher-forced argmax


@dataclass(frozen=True)
class ExactMatch(Request):
    """Exact match of n paragraphs by one teacher-forced pass (paper section 3; METRICS.md)."""

    answer = ExactMatches
    urgency = BACKGROUND
    paragraphs: tuple[Tokens, ...]
    prefix_length: int = 50


@dataclass(frozen=True)
class Continuation(Result):
    """Greedy tokens and each one's probability."""

    tokens: Ints  # [length]
    probabilities: Floats  # [length]


@dataclass(frozen=True)
class Continue(Request):
    """`length` greedily decoded tokens after `prompt`, end-of-text treated as any other token."""

    answer = Continuation
    urgency = URGENT
    prompt: Tokens
    length: int = 50


@dataclass(frozen=True)
class Perturbation(Result):
    """Exact match before and after, against `reference`, which is the true or the model's own clean continuation."""

    reference: Ints  # [c]
    em_before: int
    em_after: int
    margin_before: float
    margin_after: float
    nll_before: float
    nll_after: float
    predicted: Ints  # [c] argmax after the perturbation, teacher-forced on `reference`
    token_nll: Floats  # [c] nats, after

    @property
    def drop(self) -> int:
        return self.em_before - self.em_after


@dataclass(frozen=True)
class Perturb(Request):
    """Replace prefix tokens, `replacements` = ((position, token), ...), and score the same continuation again.

    `reference` "own" scores against the model's own greedy continuation of the clean prefix, whose EM is c by
    construction: the paper's choice for non-memorized paragraphs.
    """

    answer = Perturbation
    urgency = URGENT
    paragraph: Tokens
    replacements: tuple[tuple[int, int], ...]
    prefix_length: int = 50
    reference: Reference = "true"


@dataclass(frozen=True)
class SweepScores(Result):
    """One replacement at a time at every prefix position. Entries still to be computed are -1 (and nan)."""

    reference: Ints  # [c]
    em_before: int
    replacements: Ints  # [p, draws]
    em: Ints  # [p, draws]
    margin: Floats  # [p, draws]
    nll: Floats  # [p, draws]

    def drops(self) -> Floats:
        """Mean drop of exact match per position, [p]; nan where not computed."""
        import numpy as np

        known = self.em >= 0
        total = np.where(known, self.em_before - self.em, 0).sum(1)
        return np.where(known.all(1), total / self.em.shape[1], np.nan).astype(np.float32)


@dataclass(frozen=True)
class Sweep(Request):
    """Replace each prefix token in turn, `draws` times (paper section 4, Figure 3).

    strategy "random": uniform over the vocabulary without the original, seeded by (seed, position, draw);
    "next-best": the model's draw-th likeliest other token there; "most-frequent", "rarest" and "given": the draw-th of
    `tokens` that is not the original (the first two name where `tokens` came from: `ParagraphSet.ranked_tokens`).
    """

    answer = SweepScores
    paragraph: Tokens
    strategy: Strategy = "random"
    draws: int = 1
    seed: int = 0
    tokens: Tokens = ()
    prefix_length: int = 50
    reference: Reference = "true"


def random_tokens(seed: int, position: int, draws: int, vocabulary: int, original: int) -> Tokens:
    """The first `draws` random replacements at a position: uniform over the vocabulary without the original.

    One generator per (seed, position): a draw depends neither on other positions nor on how many are asked for.
    """
    import numpy as np

    drawn = np.random.default_rng((seed, position)).integers(0, vocabulary - 1, draws)
    return tuple((drawn + (drawn >= original)).tolist())


@dataclass(frozen=True)
class TokenAlternatives(Result):
    """The model's likeliest tokens at a position, without the one that stands there, likeliest first."""

    tokens: Ints  # [k]
    probabilities: Floats  # [k]


@dataclass(frozen=True)
class Alternatives(Request):
    """What else the model expected at `position` of `prefix` (at position 0: after the begin-of-text token, if any)."""

    answer = TokenAlternatives
    urgency = URGENT
    prefix: Tokens
    position: int
    k: int = 16


# ------------------------------------------------------------------------------------------------- where it is stored
#
# Letters: h query heads (L1H2 is head 2 of layer 1, both from 0), k components of a layer, NLL the mean over the
# continuation in nats. `peak_bytes`: the most memory held beyond the model, measured on a GPU, estimated by the batch
# rule elsewhere.


@dataclass(frozen=True)
class Ablated(Request):
    """Any analysis with the outputs of `heads`, ((layer, head), ...), set to zero in every forward pass it makes.

    Its answer is the inner request's, and so are its urgency and the version in its cache key.
    """

    answer = Result
    request: Request
    heads: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        for name in ("answer", "version", "urgency", "keeps"):
            object.__setattr__(self, name, getattr(self.request, name))


Score = Literal["max", "mean", "l2"]


@dataclass(frozen=True)
class ComponentGradients(Result):
    """|dNLL/dw| of each paragraph over the weights w of every component of every layer (METRICS.md)."""

    components: tuple[str, ...]  # k names: "W_Q H0" .. "W_K H0" (or "W_K KV0", grouped) .. "W_in", "W_out"
    max: Floats  # [n, layers, k]
    mean: Floats  # [n, layers, k]
    l2: Floats  # [n, layers, k]
    nll: Floats  # [n]
    peak_bytes: int

    def layer_sums(self, score: Score = "max") -> Floats:
        """Each paragraph's score summed over the components of a layer, [n, layers] (paper section 5)."""
        values: Floats = getattr(self, score)
        sums: Floats = values.sum(-1)
        return sums

    def layer_shares(self, score: Score = "max") -> Floats:
        """Each layer's share of the sum over all layers, [n, layers]; nan where every gradient is zero."""
        import numpy as np

        sums = self.layer_sums(score)
        total = sums.sum(-1, keepdims=True)
        shares: Floats = np.divide(sums, total, out=np.full_like(sums, np.nan), where=total > 0)
        return shares


@dataclass(frozen=True)
class ParameterGradients(Request):
    """Which weights would change the recitation most: one backward pass per paragraph (paper section 5).

    `components` narrows it to some of W_Q, W_K, W_V, W_O, W_in, W_out. A model without an adapter has one component
    per layer, "block": all its weight matrices.
    """

    answer = ComponentGradients
    paragraphs: tuple[Tokens, ...]
    prefix_length: int = 50
    components: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.paragraphs) > 1:  # a sample can wait for the paragraph that somebody looks at
            object.__setattr__(self, "urgency", BACKGROUND)


@dataclass(frozen=True)
class GradientContrast(Result):
    """The mean gradient g of the changed paragraphs against that of the kept ones, over each component's weights."""

    components: tuple[str, ...]  # k names
    changed: Floats  # [layers, k] max |g_changed|
    kept: Floats  # [layers, k] max |g_kept|
    difference: Floats  # [layers, k] max (|g_changed| - |g_kept|)
    ratio: Floats  # [layers, k] max |g_changed| / (|g_kept| + floor)
    floor: float  # the mean |g_kept| over all weights that were looked at
    peak_bytes: int


@dataclass(frozen=True)
class ContrastGradients(Request):
    """Which weights matter to `changed` and not to `kept`, by both sets' own NLL gradients (METRICS.md)."""

    answer = GradientContrast
    urgency = BACKGROUND
    changed: tuple[Tokens, ...]
    kept: tuple[Tokens, ...]
    prefix_length: int = 50
    components: tuple[str, ...] = ()


@dataclass(frozen=True)
class HeadGradients(Result):
    """Max |dNLL/da| over the head dimension of each head's activation a at each token.

    q, k and v as the projections put them out. Where heads share keys and values (`kv_heads` < h), a shared one stands
    under each of its heads.
    """

    scores: Floats  # [4, layers, h, length - 1] for q, k, v, z; the last token is never an input
    kv_heads: int
    nll: float
    peak_bytes: int


@dataclass(frozen=True)
class ActivationGradients(Request):
    """Which heads would change the recitation at which tokens: one forward and backward pass (paper section 6)."""

    answer = HeadGradients
    paragraph: Tokens
    prefix_length: int = 50


@dataclass(frozen=True)
class AttentionRows(Result):
    """Where every head looks from one position."""

    query: int
    weights: Floats  # [layers, h, query + 1]; each row sums to 1
    entropy: Floats  # [layers, h] nats, at most log(query + 1)
    peak_bytes: int


@dataclass(frozen=True)
class Attention(Request):
    """Every head's attention row at `query`, in one pass (paper section 6).

    -1 asks for prefix_length - 1, the position that predicts the first continuation token. The paper reads
    prefix_length, where that token is already the input.
    """

    answer = AttentionRows
    urgency = URGENT
    paragraph: Tokens
    prefix_length: int = 50
    query: int = -1


@dataclass(frozen=True)
class HeadPattern(Result):
    """One head's attention from every token (row) to every token (column)."""

    weights: Floats  # [length, length], rows sum to 1, zero above the diagonal
    peak_bytes: int


@dataclass(frozen=True)
class AttentionPattern(Request):
    """The whole attention pattern of one head."""

    answer = HeadPattern
    urgency = URGENT
    paragraph: Tokens
    layer: int
    head: int


@dataclass(frozen=True)
class RarityScores(Result):
    """Per head, how its attention goes with the frequency of the token it looks at: -1 only to rare ones, +1 to common.

    A prefix token's rank is the dense rank of its corpus count in its prefix, 0 the rarest. `tau` is Kendall's tau-b
    between the ranks that enough tokens have and the mean attention of each. low..high: 95 % bootstrap interval over
    clusters of paragraphs. null_*: tau where ranks are shuffled; `p` is two-sided against it, `p_all` against the most
    extreme head of every shuffle, so it holds for all heads at once.
    """

    query: int
    ranks: Ints  # [r] the ranks that were compared
    tokens_per_rank: Ints  # [r]
    attention: Floats  # [layers, h, r] mean attention of each rank; uniform is 1 / prefix_length everywhere
    tau: Floats  # [layers, h]
    low: Floats  # [layers, h]
    high: Floats  # [layers, h]
    null_mean: Floats  # [layers, h]
    null_low: Floats  # [layers, h] 2.5 % of the null lies below
    null_high: Floats  # [layers, h] 2.5 % of the null lies above
    p: Floats  # [layers, h]
    p_all: Floats  # [layers, h]
    entropy: Floats  # [layers, h] nats, mean over paragraphs
    strongest: tuple[int, int] | None  # the head most drawn to rare tokens, None where no p_all is below 0.05
    stands_out: bool  # whether its whole interval lies below every other head's tau
    peak_bytes: int


@dataclass(frozen=True)
class Rarity(Request):
    """Which heads attend to rare tokens (paper section 6; METRICS.md).

    `counts`: corpus counts of each paragraph's prefix tokens (`ParagraphSet.prefix_counts`). `clusters`: near-duplicate
    group of each paragraph, resampled together, -1 a group of one; () finds them by token-set Jaccard > 0.8. `query`
    as in `Attention`; attention to what follows the prefix is left out and the rest scaled to sum to 1. `shuffle`, for
    the null: the ranks among the "positions" of each prefix, or whole prefixes' ranks among the "paragraphs", which a
    head that only looks at certain positions, where rare tokens happen to stand, does not beat.
    """

    answer = RarityScores
    urgency = BACKGROUND
    paragraphs: tuple[Tokens, ...]
    counts: tuple[tuple[int, ...], ...]
    prefix_length: int = 50
    query: int = -1
    shuffle: Literal["positions", "paragraphs"] = "positions"
    resamples: int = 500
    seed: int = 0
    clusters: tuple[int, ...] = ()


@dataclass(frozen=True)
class HeadAblations(Result):
    """What each row becomes without one head. Entries still to be computed are -1 (and nan)."""

    memorized_em: Ints  # [layers, h, memorized]
    memorized_nll: Floats  # [layers, h, memorized]
    own_em: Ints  # [layers, h, non_memorized] against the model's own clean continuation, which has EM c unablated
    general_nll: Floats  # [layers, h, general] nats per token, over the whole row
    memorized_em_before: Ints  # [memorized]
    memorized_nll_before: Floats  # [memorized]
    general_nll_before: Floats  # [general]
    peak_bytes: int


@dataclass(frozen=True)
class HeadAblation(Request):
    """Every head in turn, its output z set to zero, or to its mean over all tokens of all rows given here.

    Each of the three sets may be empty; rows within a set have one length.
    """

    answer = HeadAblations
    urgency = BACKGROUND
    memorized: tuple[Tokens, ...] = ()
    non_memorized: tuple[Tokens, ...] = ()
    general: tuple[Tokens, ...] = ()
    prefix_length: int = 50
    kind: Literal["zero", "mean"] = "zero"


PatchSite = Literal["residual", "heads", "mlp"]
PATCH_SITES: tuple[PatchSite, ...] = ("residual", "heads", "mlp")


@dataclass(frozen=True)
class PatchScores(Result):
    """What a run becomes when one of its activations is taken from its twin: [direction, metric, layer, place].

    direction 0 "restore": a clean activation in the perturbed run; 1 "break": a perturbed one in the clean run.
    metric 0: NLL; 1: logit of the first changed token. Places: positions first, first + 1 .. length - 2 (before `first`
    both runs are equal), or heads, whose z is patched at all of them. "residual" is what enters the layer, "mlp" what
    its MLP writes. Not computed: nan.
    """

    reference: Ints  # [c] the continuation that is scored
    first: int  # the first perturbed position
    changed: int  # index of the continuation token that the logit is of
    changes: bool  # whether the argmax really changes there; if not, it is where the NLL rises most
    clean: Floats  # [2] NLL and logit of the clean run
    perturbed: Floats  # [2] NLL and logit of the perturbed run
    residual: Floats  # [2, 2, layers, length - 1 - first]
    heads: Floats  # [2, 2, layers, h]
    mlp: Floats  # [2, 2, layers, length - 1 - first]
    exact: bool  # False: a linear estimate from gradients
    cells: int  # patches scored, both directions counted
    forwards: int  # forward passes this took
    peak_bytes: int

    def effects(self, site: PatchSite) -> Floats:
        """The values of a site, normalised: 0 where the patch changes nothing, 1 where it turns the run into its twin.

        nan where the two runs hardly differ (by less than 1e-4).
        """
        import numpy as np

        values: Floats = getattr(self, site)
        bases = np.stack([self.perturbed, self.clean])[:, :, None, None]
        gap = bases[::-1] - bases
        return ((values - bases) / np.where(np.abs(gap) < 1e-4, np.nan, gap)).astype(np.float32)

    def top(self, k: int) -> tuple[tuple[PatchSite, int, int], ...]:
        """The k cells (site, layer, position or head) of each site with the largest |effect| on the NLL, restoring.

        Where many patches restore everything, as later layers of one position do, the earliest layer comes first.
        """
        import numpy as np

        cells: list[tuple[PatchSite, int, int]] = []
        for site in PATCH_SITES:
            size = np.abs(np.nan_to_num(self.effects(site)[0, 0])).clip(max=1.0).round(2)
            for flat in (-size).argsort(axis=None, kind="stable")[:k]:
                layer, place = divmod(int(flat), size.shape[1])
                cells.append((site, layer, place if site == "heads" else place + self.first))
        return tuple(cells)


@dataclass(frozen=True)
class AttributionPatching(Request):
    """A linear estimate of every patch between a paragraph and its perturbed twin: one forward, two backward passes.

    `replacements` and `reference` as in `Perturb`. The estimate is (twin's activation - own) . dmetric/dactivation.
    """

    answer = PatchScores
    paragraph: Tokens
    replacements: tuple[tuple[int, int], ...]
    prefix_length: int = 50
    reference: Reference = "true"


@dataclass(frozen=True)
class ActivationPatching(Request):
    """Patches between a paragraph and its perturbed twin, each one really run.

    `cells`, ((site, layer, position or head), ...), limits it to some: `AttributionPatching`'s `PatchScores.top`.
    """

    answer = PatchScores
    paragraph: Tokens
    replacements: tuple[tuple[int, int], ...]
    prefix_length: int = 50
    reference: Reference = "true"
    cells: tuple[tuple[PatchSite, int, int], ...] = ()


@dataclass(frozen=True)
class RareTokenEffect(Result):
    """Mean drop of exact match when a rare prefix token is replaced, and when a common one nearby is."""

    rare: Ints  # [n, pairs] positions; -1 where the prefix has no further pair of different counts
    common: Ints  # [n, pairs] the position matched to each
    rare_drop: Ints  # [n, pairs] EM before - EM after; 0 where there is no pair
    common_drop: Ints  # [n, pairs]
    em_before: Ints  # [n]
    rare_mean: float
    common_mean: float
    difference: float  # mean over paragraphs of the mean difference within their pairs
    low: float  # 95 % bootstrap interval of the difference, over clusters of paragraphs
    high: float
    peak_bytes: int


@dataclass(frozen=True)
class RareTokens(Request):
    """Do rare tokens carry the recitation? Replace the `pairs` rarest prefix tokens, one at a time, and as many common
    ones matched for position, by the same common token drawn from `tokens` (`ParagraphSet.ranked_tokens`).

    Common: in the more frequent half of the prefix. `counts`, `clusters` as in `Rarity`, `reference` as in `Perturb`.
    """

    answer = RareTokenEffect
    urgency = BACKGROUND
    paragraphs: tuple[Tokens, ...]
    counts: tuple[tuple[int, ...], ...]
    tokens: Tokens
    pairs: int = 5
    prefix_length: int = 50
    reference: Reference = "true"
    resamples: int = 2000
    seed: int = 0
    clusters: tuple[int, ...] = ()


REQUESTS: tuple[type[Request], ...] = (
    OpenModel,
    ReadVocabulary,
    OpenParagraphs,
    ExactMatch,
    Continue,
    Perturb,
    Sweep,
    Alternatives,
    Ablated,
    ParameterGradients,
    ContrastGradients,
    ActivationGradients,
    Attention,
    AttentionPattern,
    Rarity,
    HeadAblation,
    AttributionPatching,
    ActivationPatching,
    RareTokens,
)
