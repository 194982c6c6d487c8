"""What the fault tests share: they say what they counted, and the counts stand below the results."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

_COUNTED = "faults counted"
Seen = Callable[[str], None]


@pytest.fixture
def seen(record_property: Callable[[str, object], None]) -> Seen:
    """`seen("100 kills, 0 wrong answers")`: what a test went through, for the list at the end of `make faults`."""
    return lambda counts: record_property(_COUNTED, counts)


@pytest.fixture(scope="session")
def questions(demo: Any, demo_paragraphs: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One question of every kind: see `questions`."""
    from tests.faults.questions import Questions

    return Questions(tmp_path_factory.mktemp("questions") / "files", demo, demo_paragraphs)


_armed: list[str] | None = None
_RUNS_CODE = ("pickle.find_class", "os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen")


def _watch(event: str, arguments: Any) -> None:
    if _armed is not None and event in _RUNS_CODE:
        _armed.append(f"{event} {arguments}")


@pytest.fixture
def no_code() -> Iterator[None]:
    """No pickle looks up a class and no process is started while the test runs."""
    global _armed
    if not _hooked:
        sys.addaudithook(_watch)
        _hooked.append(True)
    _armed = ran = []
    yield
    _armed = None
    assert ran == []


_hooked: list[bool] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The half hour comes first: meanwhile another process does all the rest."""
    items.sort(key=lambda item: "test_soak" not in item.nodeid)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    from tests.faults.rounds import FULL

    lines = [
        f"{report.nodeid.rpartition('::')[2]}: {counts}"
        for kind in ("passed", "failed")
        for report in terminalreporter.stats.get(kind, ())
        for name, counts in getattr(report, "user_properties", ())
        if name == _COUNTED
    ]
    if FULL and lines:
        terminalreporter.section("what was tried")
        for line in lines:
            terminalreporter.write_line(line)
