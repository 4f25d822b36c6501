"""Fixed points, photo by photo: Anderson acceleration with safeguards.

Solves r(x) = 0 for every photo of a batch by x <- x + r(x), sped up by the photo's own history (Walker and Ni,
SIAM J. Numer. Anal. 49, 2011: type II). The network runs on the photos that are not finished yet; everything else is
done for each photo alone and in float64, so that a photo's result does not depend on its batch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ddim_edit.solvers.base import Solved

WINDOW = 5  # residuals remembered; more bring nothing
PATIENCE = 5  # evaluations without progress after which the noise floor is reached
PROGRESS = 0.9  # a residual below this share of the best one is progress
GROWTH = 2.0  # a residual above this multiple of the best one says that the history misleads
REGULARISATION = 1e-12  # relative to the largest entry: histories are nearly collinear at the floor


def solve(
    residual: Callable[[Tensor, Tensor], Tensor],
    guess: Tensor,
    *,
    tolerance: Tensor,
    limit: Tensor,
    relax: float = 1.0,
) -> tuple[Tensor, Solved]:
    """Find x with residual(x) = 0 for every photo.

    Args:
        residual: (rows (b,) int64, x (b, C, h, w)) -> r (b, C, h, w) of these photos: where x + r is a better x.
        guess: (B, C, h, w), where to start.
        tolerance: (B,) RMS of r at which a photo is finished.
        limit: (B,) int64, evaluations allowed; at least one is made.
        relax: the step where there is no history yet is x + relax * r.

    Returns:
        x, and what was reached: `residual` is the RMS of the last r seen; x is one step beyond it. Of a photo that
        stalled, they are the best x and its residual.
    """
    searches = [_Search(x.double(), guess.dtype, relax) for x in guess]
    x = guess.clone()
    rows = torch.arange(len(guess))
    while len(rows):
        updates = residual(rows, x[rows])
        for row, r in zip(rows.tolist(), updates, strict=True):
            searches[row].take(r.double())
            x[row] = searches[row].x.to(x)
        done = [searches[row].done(float(tolerance[row]), int(limit[row])) for row in rows.tolist()]
        rows = rows[~torch.tensor(done)]
    return x, Solved(
        torch.tensor([search.last for search in searches], dtype=torch.float64),
        torch.tensor([search.evaluations for search in searches]),
        torch.tensor([search.stalled for search in searches]),
    )


@dataclass
class _Search:
    """The iteration of one photo: `x` (C, h, w) float64 is where to look next."""

    x: Tensor
    dtype: torch.dtype  # what x is rounded to before it is looked at
    relax: float
    last: float = math.inf
    best: float = math.inf
    evaluations: int = 0
    idle: int = 0
    xs: list[Tensor] = field(default_factory=list[Tensor])
    rs: list[Tensor] = field(default_factory=list[Tensor])
    best_at: tuple[Tensor, Tensor] | None = None

    @property
    def stalled(self) -> bool:
        return self.idle >= PATIENCE

    def done(self, tolerance: float, limit: int) -> bool:
        return self.last <= tolerance or self.evaluations >= limit or self.stalled or not math.isfinite(self.last)

    def take(self, r: Tensor) -> None:
        """Look at r(x), and decide where to look next."""
        self.evaluations += 1
        self.last = r.square().mean().sqrt().item()
        self.idle = 0 if self.last < PROGRESS * self.best else self.idle + 1
        if self.best_at is not None and not self.last <= GROWTH * self.best:
            self._go_back()
        else:
            self.xs, self.rs = [*self.xs, self.x][-WINDOW - 1 :], [*self.rs, r][-WINDOW - 1 :]
            if self.last < self.best:
                self.best, self.best_at = self.last, (self.x, r)
            self.x = self._next()
        if self.stalled and self.best_at is not None:
            self.x, self.last = self.best_at[0], self.best
        self.x = self.x.to(self.dtype).double()

    def _go_back(self) -> None:
        """Forget the history and take half a step from the best x."""
        assert self.best_at is not None
        x, r = self.best_at
        self.relax *= 0.5
        self.xs, self.rs, self.last = [x], [r], self.best
        self.x = x + self.relax * r

    def _next(self) -> Tensor:
        x, r = self.xs[-1], self.rs[-1]
        if len(self.xs) == 1:
            return x + self.relax * r
        dx = torch.stack([(b - a).flatten() for a, b in zip(self.xs, self.xs[1:], strict=False)])
        dr = torch.stack([(b - a).flatten() for a, b in zip(self.rs, self.rs[1:], strict=False)])
        gram = (dr @ dr.T).cpu()
        gram += REGULARISATION * gram.diagonal().max() * torch.eye(len(gram), dtype=gram.dtype)
        weights, singular = torch.linalg.solve_ex(gram, (dr @ r.flatten()).cpu())
        if singular:  # the same residual again and again, as at the floor
            self.xs, self.rs = [x], [r]
            return x + self.relax * r
        return x + r - ((dx + dr).T @ weights.to(dr)).view_as(x)
