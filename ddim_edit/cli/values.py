"""Option values that click has no type for: from text to Python. Free of torch, like all of the command line.

A run.json holds these values as lists and numbers, so each function takes those too, and checks them alike.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import click


def seeds(value: object) -> list[int]:
    """A list of different seeds like `0,1,4-6`."""
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
    if twice := sorted(seed for seed, count in Counter(found).items() if count > 1):
        # Not dropped in silence: whoever wrote it counts on as many pictures.
        raise click.BadParameter(f"seed {twice[0]} is given twice and always draws the same picture; give each once")
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
        found = [float(part) for part in _text(value, ",").split(",")]
    except ValueError:
        raise click.BadParameter(f"{value!r} is no list of timesteps; write for example 0,40,80") from None
    if twice := sorted(t for t, count in Counter(found).items() if count > 1):
        raise click.BadParameter(f"timestep {twice[0]:g} is given twice, and a step from it to itself is none")
    return found


def weights(value: object) -> list[float]:
    """A list of finite numbers like `2,1,-1`."""
    try:
        found = [float(part) for part in _text(value, ",").split(",")]
    except ValueError:
        found = [math.inf]
    if not all(map(math.isfinite, found)):
        raise click.BadParameter(f"{value!r} is no list of numbers; write for example 2,1,1")
    return found


def channels(value: object) -> tuple[int, ...] | str:
    """Widths like `32,64,96`, or a name to look up."""
    text = _text(value, ",")
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        return text


def eta(value: object) -> float | str:
    """A number in [0, 1], or `sigma-hat`; the range is checked by the solver."""
    text = _text(value, ",")
    if text == "sigma-hat":
        return text
    try:
        return float(text)
    except ValueError:
        raise click.BadParameter(f"{value!r} is neither a number in [0, 1] nor sigma-hat") from None


def counts(value: object) -> list[int]:
    """A list of numbers of steps like `10,20,100`, put in order; a repeat counts once."""
    try:
        found = sorted(set(seeds(value)))
    except click.BadParameter:
        found = [0]
    if found[0] < 1:
        raise click.BadParameter(f"{value!r} is no list of whole numbers above 0; write for example 10,20,100")
    return found


def etas(value: object) -> list[str]:
    """A list of values of eta like `0,0.5,sigma-hat`, by their names; `hat` is short for the last."""
    parts = ["sigma-hat" if part == "hat" else part for part in _text(value, ",").split(",")]
    found = [number if isinstance(number, str) else f"{number:g}" for number in map(eta, parts)]
    if wrong := [name for name in found if name != "sigma-hat" and not 0 <= float(name) <= 1]:
        raise click.BadParameter(f"eta is {wrong[0]}; choose it in [0, 1], or sigma-hat")
    return list(dict.fromkeys(found))


def choices(known: Sequence[str], also: Mapping[str, str] = MappingProxyType({})) -> Callable[[object], list[str]]:
    """A list of names out of `known`; `also` holds other words for some of them."""

    def parse(value: object) -> list[str]:
        found = [also.get(name, name) for name in _text(value, ",").split(",")]
        if wrong := [name for name in found if name not in known]:
            raise click.BadParameter(f"{wrong[0]!r} is unknown; choose from {', '.join([*known, *also])}")
        return list(dict.fromkeys(found))

    return parse


def text(value: object) -> str:
    """What would have been typed for a value; runs of numbers as `4-6`."""
    if isinstance(value, list) and len(value) > 2 and all(isinstance(item, int) for item in value):
        first, last = value[0], value[-1]
        return f"{first}-{last}" if value == list(range(first, last + 1)) else _text(value, ",")
    return "x".join(map(str, value)) if isinstance(value, tuple) else _text(value, ",")


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
