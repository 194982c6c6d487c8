"""Sparse edits of a loaded model's weights: applied and taken back exactly, bit for bit.

Nothing is copied but the k values themselves. Weights are written through `data`, so that a graph which autograd keeps
from one step to the next stays valid: whenever its analysis runs, the weights are those it was made with.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from memloc_core.edit_files import another_model, check_edit
from memloc_core.errors import MemlocError
from memloc_core.requests import SparseEdit

if TYPE_CHECKING:
    from memloc_core.language_model import LanguageModel

Originals = list[tuple[Tensor, Tensor, Tensor]]  # weights, flat indices [k], values before [k] in the weights' type
Places = list[tuple[str, Tensor, Tensor, Tensor, Tensor]]  # name, weights, indices, old and new values as float32


class PlacedEdits:
    """Edits on a model's device, checked against it once, to be applied and taken back many times."""

    def __init__(self, lm: LanguageModel, edits: Sequence[SparseEdit]) -> None:
        """Raises MemlocError for an edit of another model, or one that does not fit this one's weights."""
        self.lm, self.edits = lm, tuple(edits)
        self._fingerprints = tuple(edit.fingerprint for edit in self.edits)
        self._places = [_places(lm, edit, name) for edit, name in zip(self.edits, self._fingerprints, strict=True)]

    def apply(self) -> Originals:
        """Change the weights, edit after edit; returns what `revert` needs.

        Raises MemlocError, and leaves everything as it was, where an edit that one stands on is not active before it,
        or where a weight has another value than the one that it changes.
        """
        before, originals = self.lm.edits, Originals()
        try:
            for edit, name, places in zip(self.edits, self._fingerprints, self._places, strict=True):
                _check_ground(edit, name, self.lm.edits)
                found = [weights.take(indices) for _, weights, indices, _, _ in places]
                same = [_same_bits(values.float(), place[3]) for values, place in zip(found, places, strict=True)]
                told: list[bool] = torch.stack(same).tolist() if same else []  # one question: a GPU waits for each
                if False in told:
                    raise _not_there(edit, name, places[told.index(False)][0], self.lm)
                for values, (_, weights, indices, _, new) in zip(found, places, strict=True):
                    originals.append((weights, indices, values))
                    weights.put_(indices, new.to(weights.dtype))
                self.lm.edits = (*self.lm.edits, name)
        except BaseException:
            self.lm.edits = before
            _put_back(originals)
            raise
        return originals

    def revert(self, originals: Originals) -> None:
        """Put every value back that `apply` changed."""
        _put_back(originals)
        self.lm.edits = self.lm.edits[: len(self.lm.edits) - len(self.edits)]

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the weights are the edited ones, in every forward and backward pass."""
        originals = self.apply()
        try:
            yield
        finally:
            self.revert(originals)


@contextlib.contextmanager
def edited(lm: LanguageModel, edits: Sequence[SparseEdit]) -> Iterator[None]:
    """Within, the edits are in the weights, in their order. Raises MemlocError as `PlacedEdits` does."""
    with PlacedEdits(lm, edits).applied():
        yield


def _places(lm: LanguageModel, edit: SparseEdit, name: str) -> Places:
    try:
        check_edit(edit)
    except MemlocError as error:
        raise MemlocError(f"Edit {name[:8]} is not valid: {error}") from None
    if edit.base != lm.info.fingerprint:
        raise another_model(name, edit.model, edit.base, lm.info.name, lm.info.fingerprint)
    known = dict(lm.model.named_parameters(remove_duplicate=False))
    taken: set[int] = set()
    places = Places()
    for number, parameter in enumerate(edit.parameters):
        if parameter not in known:
            raise MemlocError(f"Edit {name[:8]} changes {parameter!r}, and {lm.info.name} has no such weights.")
        weights = known[parameter].data
        if weights.data_ptr() in taken:
            raise MemlocError(f"Edit {name[:8]} changes {parameter!r} twice: it is tied to another one of its weights.")
        taken.add(weights.data_ptr())
        at = slice(int(edit.starts[number]), int(edit.starts[number + 1]))
        if at.start == at.stop:
            continue
        if edit.indices[at.stop - 1] >= weights.numel():
            raise MemlocError(
                f"Edit {name[:8]} changes weight {edit.indices[at.stop - 1]:,} of {parameter!r}, "
                f"which has {weights.numel():,}."
            )
        indices, old, new = (torch.tensor(array[at]).to(weights.device) for array in (edit.indices, edit.old, edit.new))
        if not _same_bits(new.to(weights.dtype).float(), new):
            raise MemlocError(
                f"Edit {name[:8]} holds values that {lm.info.dtype} cannot hold: it was made in a higher precision. "
                "Open the model with the --dtype that it was made with."
            )
        places.append((parameter, weights, indices, old, new))
    return places


def _check_ground(edit: SparseEdit, name: str, active: tuple[str, ...]) -> None:
    """Every edit that this one was made on top of must be active, in their order; others may be too."""
    rest = iter(active)
    for ground in edit.on_top_of:
        if ground not in rest:
            raise MemlocError(
                f"Edit {name[:8]} was made on top of edit {ground[:8]}, which has to be active before it"
                + (f"; active is {', '.join(f[:8] for f in active)}." if active else "; none is.")
            )


def _not_there(edit: SparseEdit, name: str, parameter: str, lm: LanguageModel) -> MemlocError:
    others = [fingerprint[:8] for fingerprint in lm.edits if fingerprint not in edit.on_top_of]
    why = (
        f"edit {' or '.join(others)} changes it too; leave one of them away"
        if others
        else f"it was made in another precision than {lm.info.dtype}, or its file was changed"
    )
    return MemlocError(f"Edit {name[:8]} does not find the value in {parameter!r} that it is to change: {why}.")


def _same_bits(a: Tensor, b: Tensor) -> Tensor:
    """Whether all float32 values are equal, also in the sign of zero: bool []."""
    return (a.contiguous().view(torch.int32) == b.contiguous().view(torch.int32)).all()


def _put_back(originals: Originals) -> None:
    while originals:
        weights, indices, values = originals.pop()  # the last first: one place may have been changed twice
        weights.put_(indices, values)
