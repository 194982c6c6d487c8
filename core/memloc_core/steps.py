"""Generators that yield as they work and end with a result: taken to their end, told otherwise, or within a context."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from typing import Any, TypeVar

Step = TypeVar("Step")
Told = TypeVar("Told")
Found = TypeVar("Found")


def drained(steps: Generator[Any, None, Found]) -> Found:
    """All steps at once; the result."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            found: Found = stop.value
            return found


def retold(steps: Generator[Step, None, Found], tell: Callable[[Step], Told]) -> Generator[Told, None, Found]:
    """The same result, with `tell` of each step in the step's place. Closing it closes `steps`."""
    try:
        while True:
            try:
                step = next(steps)
            except StopIteration as stop:
                found: Found = stop.value
                return found
            yield tell(step)
    finally:
        steps.close()


def within(
    context: Callable[[], AbstractContextManager[Any]], steps: Generator[Step, None, Found]
) -> Generator[Step, None, Found]:
    """The same steps and result, each step within a context of its own. Closing it closes `steps`, outside of any."""
    try:
        while True:
            with context():
                try:
                    step = next(steps)
                except StopIteration as stop:
                    found: Found = stop.value
                    return found
            yield step
    finally:
        steps.close()
