"""The explorer over a fake session, with its resume state in a folder of the test's own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # `fake`, for these tests alone

from fake import FakeSession

from memloc_tui.app import MemlocApp
from memloc_tui.settings import Settings


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MEMLOC_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    return


@pytest.fixture(autouse=True)
def heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Notices stay known to `helpers.notices` after they have left the screen."""
    notify = MemlocApp.notify

    def kept(self: MemlocApp, message: str, **more: Any) -> None:
        vars(self).setdefault("heard", []).append(message)
        notify(self, message, **more)

    monkeypatch.setattr(MemlocApp, "notify", kept)


@pytest.fixture
def session() -> FakeSession:
    return FakeSession()


@pytest.fixture
def app(session: FakeSession) -> MemlocApp:
    given: Any = session
    return MemlocApp(Settings(model="fake", paragraphs="fake"), given)
