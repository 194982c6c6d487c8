"""What each command of `cli.py` asks, prints and writes; each module is imported when its command runs."""
