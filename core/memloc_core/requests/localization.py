"""Where it is stored: gradients, attention, ablation, patching.

Letters: h query heads (L1H2 is head 2 of layer 1, both from 0), k components of a layer, NLL the mean over the
continuation in nats. `peak_bytes`: the most memory held beyond the model, measured on a GPU, estimated by the batch
rule elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from memloc_core.requests.base import BACKGROUND, URGENT, Reference, Request, Result, Tokens

if TYPE_CHECKING:
    from memloc_core.requests.base import Floats, Ints


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
    """|dNLL/dw| of each paragraph over the weights w of every component of every layer (README)."""

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
    version = 2
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
    """Which weights matter to `changed` and not to `kept`, by both sets' own NLL gradients (README)."""

    answer = GradientContrast
    version = 2
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

    weights: Floats  # [length, length], rows sum to 1 (as far as the dtype rounds), zero above the diagonal
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
    attention: Floats  # [layers, h, r] mean attention of each rank; uniform is 1 / (tokens that have one) everywhere
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
    """Which heads attend to rare tokens (paper section 6; README).

    `counts`: corpus counts of each paragraph's prefix tokens (`ParagraphSet.prefix_counts`), -1 for a
    begin-of-text token, which has no rank. `clusters`: group of related paragraphs that each is in
    (`ParagraphSet.related`), resampled together, -1 a group of one; () takes near-duplicates, by token-set Jaccard >
    0.8. `query` as in `Attention`; attention to what has no rank and to what follows the prefix is left out and the
    rest scaled to sum to 1. `shuffle`, for the null: the ranks among the "positions" of each prefix, or whole prefixes'
    ranks among the "paragraphs", which a head that only looks at certain positions, where rare tokens happen to stand,
    does not beat.
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
    own_em: Ints  # [layers, h, non_memorized] against the model's own clean continuation
    general_nll: Floats  # [layers, h, general] nats per token, over the whole row
    own_em_before: Ints  # [non_memorized] c, but where half precision rounds one whole pass otherwise than decoding
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
    version = 2
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
