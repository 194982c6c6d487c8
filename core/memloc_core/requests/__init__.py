"""The menu: every question the engine answers, and every answer.

Whoever reads this folder knows everything the system can do. Nothing here imports numpy or torch.
"""

from typing import TYPE_CHECKING

from memloc_core.requests.base import (
    BACKGROUND as BACKGROUND,
    NON_MEMORIZED_UP_TO as NON_MEMORIZED_UP_TO,
    NORMAL as NORMAL,
    STRATEGIES as STRATEGIES,
    URGENT as URGENT,
    Answer as Answer,
    Progress as Progress,
    Provenance as Provenance,
    R as R,
    Reference as Reference,
    Request as Request,
    Result as Result,
    Strategy as Strategy,
    Tokens as Tokens,
)
from memloc_core.requests.localization import (
    PATCH_SITES as PATCH_SITES,
    Ablated as Ablated,
    ActivationGradients as ActivationGradients,
    ActivationPatching as ActivationPatching,
    Attention as Attention,
    AttentionPattern as AttentionPattern,
    AttentionRows as AttentionRows,
    AttributionPatching as AttributionPatching,
    ComponentGradients as ComponentGradients,
    ContrastGradients as ContrastGradients,
    GradientContrast as GradientContrast,
    HeadAblation as HeadAblation,
    HeadAblations as HeadAblations,
    HeadGradients as HeadGradients,
    HeadPattern as HeadPattern,
    ParameterGradients as ParameterGradients,
    PatchScores as PatchScores,
    PatchSite as PatchSite,
    RareTokenEffect as RareTokenEffect,
    RareTokens as RareTokens,
    Rarity as Rarity,
    RarityScores as RarityScores,
    Score as Score,
)
from memloc_core.requests.recitation import (
    Alternatives as Alternatives,
    Continuation as Continuation,
    Continue as Continue,
    ExactMatch as ExactMatch,
    ExactMatches as ExactMatches,
    Perturb as Perturb,
    Perturbation as Perturbation,
    Sweep as Sweep,
    SweepScores as SweepScores,
    TokenAlternatives as TokenAlternatives,
    random_tokens as random_tokens,
)
from memloc_core.requests.studied import (
    ModelInfo as ModelInfo,
    OpenModel as OpenModel,
    OpenParagraphs as OpenParagraphs,
    ParagraphSet as ParagraphSet,
    ReadVocabulary as ReadVocabulary,
    Vocabulary as Vocabulary,
)
from memloc_core.requests.unlearning import (
    GOALS as GOALS,
    GROUPS as GROUPS,
    MASKS as MASKS,
    OBJECTIVES as OBJECTIVES,
    Edited as Edited,
    EstimateRun as EstimateRun,
    ExportCheckpoint as ExportCheckpoint,
    Exported as Exported,
    Goal as Goal,
    Group as Group,
    Mask as Mask,
    MeasureRemains as MeasureRemains,
    Objective as Objective,
    Remains as Remains,
    RunCost as RunCost,
    SparseEdit as SparseEdit,
    Unlearn as Unlearn,
    Unlearning as Unlearning,
)

if TYPE_CHECKING:
    from memloc_core.requests.base import Floats as Floats, Ints as Ints

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
    Edited,
    Unlearn,
    EstimateRun,
    MeasureRemains,
    ExportCheckpoint,
)
