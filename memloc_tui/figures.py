"""Numbers as the panels print them: short, with a true minus, and never a false zero."""

from __future__ import annotations


def figure(value: float, digits: int = 3) -> str:
    """About two or three significant digits in at most six cells, seven with the sign: 0.57, 12.4, 8.7e-4."""
    if value != value:
        return "·"
    size = abs(value)
    if size == 0:
        text = "0"
    elif size >= 9999.5 or size < 0.00095:
        mantissa, exponent = f"{size:.1e}".split("e")
        text = f"{mantissa}e{int(exponent)}"
    elif size >= 99.95:
        text = f"{size:.0f}"
    elif size >= 9.995:
        text = f"{size:.1f}"
    elif size >= 0.0995:
        text = f"{size:.2f}"
    else:
        text = f"{size:.{digits if size >= 0.00995 else 4}f}"
    return f"−{text}" if value < 0 else text


def short(value: float) -> str:
    """At most four cells, for numbers of about 0.1 to 999: −.57, 4.2, 46; ≈0 for what rounds to nothing."""
    if value != value:
        return "·"
    size = abs(value)
    text = f"{size:.2f}"[1:] if size < 0.995 else f"{size:.1f}" if size < 9.95 else f"{size:.0f}"
    if text == ".00":
        return "≈0" if size else "0"
    return f"−{text}" if value < 0 else text


def interval(low: float, high: float) -> str:
    """`[−0.66, −0.41]`, the 95 % interval."""
    return f"[{figure(low)}, {figure(high)}]"


def probability(p: float, resamples: int) -> str:
    """A p value from a permutation test, which can never be 0."""
    return f"p ≤ {figure(1 / (1 + resamples))}" if p <= 1 / (1 + resamples) else f"p {figure(p)}"


def percent(share: float) -> str:
    return "·" if share != share else f"{100 * share:.0f} %"


def head_name(head: tuple[int, int]) -> str:
    return f"L{head[0]}H{head[1]}"


def head_names(heads: tuple[tuple[int, int], ...]) -> str:
    return ", ".join(map(head_name, heads))


def signed(change: int) -> str:
    """`+3`, `−43`."""
    return f"{change:+d}".replace("-", "−")
