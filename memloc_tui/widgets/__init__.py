"""Widgets: one file each. A widget draws what it is given and posts what the person did; it computes nothing."""
