"""Pacing: where on a path the frames go so that every step looks equally large.

Equal steps in the latent are not equal steps in the picture. One pass over a few pilot frames measures how far the
picture travels along the path (its arc length under some distance), and the frames are spread evenly over that; more
passes, over the frames themselves, even out what the pilot could not see. Numbers in, numbers out: whoever calls says
how to look at a position (`Look`) and how far apart two pictures are (`Distance`).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddim_edit.errors import ConfigError
from ddim_edit.metrics import mse, ssim

Distance = Callable[[Tensor, Tensor], float]  # of two pictures (3, H, W)
Look = Callable[[Tensor], Iterator[Tensor]]  # positions (K,) to K pictures (3, H, W), in order
Over = Literal["global", "segment"]
Curve = tuple[float, float, float, float]

# Cubic Bezier curves from (0, 0) to (1, 1), as in CSS; with these controls smoothstep is exactly 3 t^2 - 2 t^3.
EASES: dict[str, Curve] = {
    "linear": (0.0, 0.0, 1.0, 1.0),
    "ease-in": (0.42, 0.0, 1.0, 1.0),
    "ease-out": (0.0, 0.0, 0.58, 1.0),
    "ease-in-out": (0.42, 0.0, 0.58, 1.0),
    "smoothstep": (1 / 3, 0.0, 2 / 3, 1.0),
}

_MAX_HALVINGS = 12  # of a segment; a step that is too large after 4096 parts is a jump


@dataclass(frozen=True)
class Pace:
    """How far the picture travels along one segment: `travelled[k]`, from 0, at the position `at[k]` in [0, 1]."""

    at: NDArray[np.float64]
    travelled: NDArray[np.float64]

    @property
    def length(self) -> float:
        """The distance travelled over the whole segment."""
        return float(self.travelled[-1])

    def position(self, share: NDArray[np.float64]) -> NDArray[np.float64]:
        """Where these shares of the distance are travelled: from shares in [0, 1] to positions in [0, 1]."""
        from scipy.interpolate import PchipInterpolator

        moving = np.concatenate([[True], np.diff(self.travelled) > 0])
        if moving.sum() < 2:  # nothing moves, so any pace is even
            return share
        at = self.at[moving]
        at[-1] = 1.0  # a last piece without motion belongs to the end
        return np.clip(PchipInterpolator(self.travelled[moving] / self.length, at)(share), 0.0, 1.0)


@dataclass(frozen=True)
class Steps:
    """How far the picture moves from each frame of a clip to the next.

    Args:
        lengths: one distance per step; on a loop the last is the seam, from the last frame to the first.
        loop: whether there is a seam.
    """

    lengths: tuple[float, ...]
    loop: bool = False

    @classmethod
    def of(cls, pictures: Iterable[Tensor], distance: Distance | None = None, *, loop: bool = False) -> "Steps":
        """Measure the pictures of a clip, in order, holding two at a time; L2 unless another distance is given."""
        walk = iter(pictures)
        first = next(walk)
        lengths = [(distance or l2)(a, b) for a, b in pairwise(chain([first], walk, [first] if loop else []))]
        return cls(tuple(lengths), loop)

    @property
    def smoothness(self) -> float:
        """1 - the Gini coefficient of the steps: 1 where all are equal."""
        return 1 - gini(self.lengths)

    @property
    def largest_over_median(self) -> float:
        """The largest step, as a multiple of the median one."""
        return self._over_median(max(self.lengths))

    @property
    def seam_over_median(self) -> float | None:
        """The step from the last frame to the first, as a multiple of the median one; None without a loop."""
        return self._over_median(self.lengths[-1]) if self.loop else None

    @property
    def repeated(self) -> int:
        """How many frames are no other than the one before."""
        return sum(length == 0 for length in self.lengths)

    def to_json(self) -> dict[str, object]:
        """The figures for a manifest or a table."""
        return {
            "smoothness": self.smoothness,
            "largest_over_median": self.largest_over_median,
            "seam_over_median": self.seam_over_median,
            "largest": max(self.lengths),
            "path_length": sum(self.lengths),
            "repeated": self.repeated,
        }

    def _over_median(self, length: float) -> float:
        median = float(np.median(self.lengths))
        return length / median if median else float(length > 0)


def l2(a: Tensor, b: Tensor) -> float:
    """Root mean squared difference of two pictures (3, H, W), on the scale [0, 1]."""
    return float(mse(a[None], b[None]).sqrt())


def dissimilarity(a: Tensor, b: Tensor) -> float:
    """1 - SSIM of two pictures (3, H, W): 0 for equal ones."""
    return float(1 - ssim(a[None], b[None]))


def even_pace(segments: int) -> list[Pace]:
    """The pace of a path on which nothing was measured: equal steps of position are taken for equal steps."""
    return [Pace(np.array([0.0, 1.0]), np.array([0.0, 1.0]))] * segments


def measure_pace(look: Look, distance: Distance, segments: int, pilot: int) -> list[Pace]:
    """Travel the path once with few frames, and measure how far the picture moves.

    Args:
        look: how the path looks at positions in [0, segments].
        distance: how far apart two pictures are.
        segments: the number of pieces between keys.
        pilot: frames per segment, both ends included; 2 or more.

    Returns:
        One pace per segment. `look` is asked for segments * (pilot - 1) + 1 pictures, once.

    Raises:
        ConfigError: fewer than two pilot frames.
    """
    if pilot < 2:
        raise ConfigError(f"pilot={pilot} but a distance needs two pictures; choose 2 or more")
    return _measured(look, distance, [np.linspace(0, 1, pilot)] * segments)


def measure_pace_at(look: Look, distance: Distance, segments: int, positions: Tensor) -> list[Pace]:
    """Travel the path once more at the frames that an earlier pace led to, and measure how far apart they really are.

    A pilot says nothing of what lies between its pictures. Frames placed by what is measured at frames are far more
    even than by any pilot of as many pictures.

    Args:
        look: how the path looks at positions in [0, segments].
        distance: how far apart two pictures are.
        segments: the number of pieces between keys.
        positions: (F,) float64, of the frames, as `paced_positions` gives them.

    Returns:
        One pace per segment. `look` is asked for the frames once, and for the end of a closed path.
    """
    u = positions.numpy()
    within = [u[(k < u) & (u < k + 1)] - k for k in range(segments)]
    return _measured(look, distance, [np.concatenate([[0.0], inner, [1.0]]) for inner in within])


def _measured(look: Look, distance: Distance, at: Sequence[NDArray[np.float64]]) -> list[Pace]:
    """The pace of every segment, seen at these positions within it: from 0 to 1, both included."""
    where = np.concatenate([*(k + inner[:-1] for k, inner in enumerate(at)), [float(len(at))]])
    steps = [distance(a, b) for a, b in pairwise(look(torch.from_numpy(where)))]
    ends = np.cumsum([len(inner) - 1 for inner in at])
    return [
        Pace(inner, np.concatenate([[0.0], np.cumsum(part)]))
        for inner, part in zip(at, np.split(np.asarray(steps), ends[:-1]), strict=True)
    ]


def paced_positions(
    paces: Sequence[Pace], frames: int, *, closed: bool = False, over: Over = "global", ease: Curve = EASES["linear"]
) -> Tensor:
    """Spread frames over a path by what is seen, with every key on a frame of its own.

    Args:
        paces: one per segment.
        frames: of the whole clip; on a closed path the first key is not repeated at the end.
        closed: whether the last segment leads back to the first key.
        over: `global` gives longer segments more frames, so that the largest step of the clip is as small as it can
            be; `segment` gives every segment as many.
        ease: what happens between two keys after pacing, as a cubic Bezier curve; see EASES.

    Returns:
        (F,) float64 positions, what `interpolation.along` takes.

    Raises:
        ConfigError: fewer frames than keys, or an impossible curve.
    """
    keys = len(paces) + (not closed)
    if frames < keys:
        raise ConfigError(f"frames={frames} but there are {keys} keys; choose frames >= {keys} so that each appears")
    counts = _shared([pace.length for pace in paces], frames - (not closed), over)
    parts = [
        k + pace.position(eased(np.arange(n) / n, ease)) for k, (pace, n) in enumerate(zip(paces, counts, strict=True))
    ]
    return torch.from_numpy(np.concatenate([*parts, [] if closed else [float(len(paces))]]))


def bisected(look: Look, distance: Distance, segments: int, bound: float, *, closed: bool = False) -> Tensor:
    """Halve the steps that are larger than a bound until none is: as many frames as the clip needs.

    Args:
        look: how the path looks at positions in [0, segments].
        distance: how far apart two pictures are.
        segments: the number of pieces between keys.
        bound: the largest step allowed, in the unit of `distance`.
        closed: whether the last segment leads back to the first key.

    Returns:
        (F,) float64 positions, every key among them.

    Raises:
        ConfigError: the bound is not positive, or the picture jumps.
    """
    if not bound > 0:
        raise ConfigError(f"max_step={bound:g}; choose a distance above 0")

    def seen(at: list[float]) -> list[tuple[float, Tensor]]:
        return list(zip(at, look(torch.tensor(at, dtype=torch.float64)), strict=True))

    found = [float(key) for key in range(segments + 1)]
    pairs = list(pairwise(seen(found)))
    for _ in range(_MAX_HALVINGS):
        wide = [(a, b) for a, b in pairs if distance(a[1], b[1]) > bound]
        if not wide:
            return torch.tensor(sorted(found)[: len(found) - closed], dtype=torch.float64)
        middles = seen([(a[0] + b[0]) / 2 for a, b in wide])
        found += [u for u, _ in middles]
        pairs = [half for (a, b), m in zip(wide, middles, strict=True) for half in ((a, m), (m, b))]
    left, ((u, _), _) = max(((distance(a[1], b[1]), (a, b)) for a, b in pairs), key=lambda found: found[0])
    key = int(u)
    raise ConfigError(
        f"after {_MAX_HALVINGS} halvings between keys {key} and {key + 1} a step is still {left:.2g}, above "
        f"max_step={bound:g}; choose a larger one, or other keys if the picture jumps there"
    )


def eased(t: NDArray[np.float64], curve: Curve) -> NDArray[np.float64]:
    """Map times in [0, 1] through a cubic Bezier curve with the controls (x1, y1) and (x2, y2), as CSS does.

    Raises:
        ConfigError: a control leaves [0, 1]; time would run backwards, or the clip beyond its keys.
    """
    if len(curve) != 4 or not all(0 <= value <= 1 for value in curve):
        raise ConfigError(
            f"ease={curve} is no curve between two keys; give x1, y1, x2, y2 in [0, 1], or one of {EASES}"
        )
    if curve == EASES["linear"]:
        return t
    x1, y1, x2, y2 = curve
    low, high = np.zeros_like(t), np.ones_like(t)
    for _ in range(60):  # x rises with s: halve the interval that holds the s of each t
        s = (low + high) / 2
        before = _bezier(s, x1, x2) < t
        low, high = np.where(before, s, low), np.where(before, high, s)
    return np.where((t == 0) | (t == 1), t, _bezier((low + high) / 2, y1, y2))


def gini(steps: Sequence[float]) -> float:
    """The Gini coefficient of some steps: 0 where all are equal, near 1 where one holds everything.

    1 - gini is the smoothness of "Attention interpolation" (arXiv:2403.17924).

    Example:
        >>> gini([1.0, 1.0, 2.0])
        0.16666666666666666
    """
    x = np.sort(np.asarray(steps, dtype=np.float64))
    total = float(x.sum())
    if len(x) == 0 or total == 0:
        return 0.0
    return float(((2 * np.arange(1, len(x) + 1) - len(x) - 1) * x).sum() / (len(x) * total))


def _bezier(s: NDArray[np.float64], first: float, second: float) -> NDArray[np.float64]:
    return 3 * s * (1 - s) ** 2 * first + 3 * s**2 * (1 - s) * second + s**3


def _shared(lengths: Sequence[float], steps: int, over: Over) -> list[int]:
    """How many of the steps each segment gets, every one at least one."""
    if over == "segment" or not any(lengths):
        edges = np.linspace(0, steps, len(lengths) + 1).round()
        return np.diff(edges).astype(int).tolist()
    counts = np.ones(len(lengths), dtype=int)
    for _ in range(steps - len(lengths)):  # always to the one with the largest steps: no other choice ends lower
        counts[np.argmax(np.asarray(lengths) / counts)] += 1
    return counts.tolist()
