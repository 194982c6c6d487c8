"""What every question and answer is made of.

A question is a frozen dataclass of plain values, so it has
one canonical form and thereby a cache key. An answer is a frozen dataclass of numpy arrays and scalars. These modules
import neither numpy nor torch.

Shapes use these letters: n paragraphs of `length` tokens, p prefix positions, c continuation positions, V vocabulary.
A paragraph is `length` token ids; its first `prefix_length` ids are the prefix, the rest is the continuation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Generic, Literal, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Floats = NDArray[np.float32]

Tokens = tuple[int, ...]
Strategy = Literal["random", "next-best", "most-frequent", "rarest", "given"]
STRATEGIES: tuple[Strategy, ...] = ("random", "next-best", "most-frequent", "rarest", "given")
Reference = Literal["true", "own"]

# Strata by exact match, in shares of the continuation, so that they hold for any length (README, paper section 3).
NON_MEMORIZED_UP_TO = 0.2

# How soon an answer is wanted. The engine serves a lower number between two steps of a higher one.
URGENT, NORMAL, BACKGROUND = 0, 1, 2


class Result:
    """Base of every answer: a frozen dataclass whose fields are arrays, scalars, strings, or tuples of them."""

    @property
    def is_whole(self) -> bool:
        """Whether nothing lacks that the same question may bring at another time; only then it is kept on disk."""
        return True


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
