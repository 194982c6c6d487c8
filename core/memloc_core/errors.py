"""Errors written for the person at the keyboard: what is wrong, with which file or value, and what to do."""

from __future__ import annotations


class MemlocError(Exception):
    """The work failed (exit code 1). Its text is one or two whole sentences, shown as it is."""

    exit_code = 1


class UsageError(MemlocError):
    """The question itself is wrong: no such paragraph, position, token, file or option value (exit code 2)."""

    exit_code = 2


class EngineDied(MemlocError):
    """The engine process ended while it worked. The text says how, and where its log is."""


class Cancelled(MemlocError):
    """The request was cancelled before its result was there."""
