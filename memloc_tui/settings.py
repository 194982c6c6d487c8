"""What a person chose for a sitting; the command line's options under the same names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """See the module. Light enough for the first frame."""

    model: str = "demo"
    paragraphs: str = "demo"
    device: str = "auto"
    dtype: str = "auto"
    prefix_length: int = 50
    continuation_length: int = 50
    begin_of_text: bool = False  # the model's begin-of-text token before every paragraph
    cache_dir: Path | None = None  # None: the user's cache folder
    use_cache: bool = True
    edits: tuple[str, ...] = ()  # edit files, or the beginnings of stored edits' fingerprints
    revision: str = ""  # of a model in the hub cache; "" is main
