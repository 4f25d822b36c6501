"""Option values that click has no type for: from text to Python. Free of torch, like all of the command line.

A run.json holds these values as lists and numbers, so each function takes those too, and checks them alike.
"""

import click


def seeds(value: object) -> list[int]:
    """A list of seeds like `0,1,4-6`."""
    found: list[int] = []
    try:
        for part in _text(value, ",").split(","):
            first, _, last = part.partition("-")
            numbers = range(int(first), int(last or first) + 1)
            if not numbers:
                raise ValueError
            found += numbers
    except ValueError:
        raise click.BadParameter(f"{value!r} is no list of seeds; write for example 0,1,4-6") from None
    return found


def size(value: object) -> tuple[int, int]:
    """A size like `64` or `96x64` (height x width)."""
    height, _, width = _text(value, "x").partition("x")
    try:
        return int(height), int(width or height)
    except ValueError:
        raise click.BadParameter(f"{value!r} is no size; write 64 or 96x64 (height x width)") from None


def timesteps(value: object) -> list[float]:
    """A list of timesteps like `0,40,80`."""
    try:
        return [float(part) for part in _text(value, ",").split(",")]
    except ValueError:
        raise click.BadParameter(f"{value!r} is no list of timesteps; write for example 0,40,80") from None


def eta(value: object) -> float | str:
    """A number in [0, 1], or `sigma-hat`; the range is checked by the solver."""
    text = _text(value, ",")
    if text == "sigma-hat":
        return text
    try:
        return float(text)
    except ValueError:
        raise click.BadParameter(f"{value!r} is neither a number in [0, 1] nor sigma-hat") from None


def ease(value: object) -> str | list[float]:
    """The name of an easing curve, or its controls like `0.42,0,0.58,1`; which names there are, `pacing` says."""
    text = _text(value, ",")
    if "," not in text:
        return text
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"{value!r} is no curve; write a name, or x1,y1,x2,y2") from None


def _text(value: object, separator: str) -> str:
    """What would have been typed."""
    return separator.join(map(str, value)) if isinstance(value, list | tuple) else str(value)
