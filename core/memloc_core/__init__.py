"""The analysis engine of memloc-tui.

Importing this package costs nothing: torch and transformers are imported by the modules that need them, and only the
engine process needs those. `requests`, `codec`, `frames`, `sources` and `errors` are the light half that other
processes may import.
"""

__version__ = "0.1.0"
