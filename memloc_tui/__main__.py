"""`python -m memloc_tui`."""

from memloc_tui.start import main

main()
