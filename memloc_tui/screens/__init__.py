"""Screens: one file each. All but the explorer are imported when they are first opened."""
