"""The analysis engine of memloc-tui.

Importing this package costs nothing: torch and transformers are imported by the modules that need them, and only the
engine process needs those. The light half, which other processes may import, is all that the import contracts in
pyproject.toml do not forbid them.
"""

__version__ = "0.1.0"
