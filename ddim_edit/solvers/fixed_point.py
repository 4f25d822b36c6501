"""Fixed points, photo by photo: Anderson acceleration with safeguards.

Solves r(x) = 0 for every photo of a batch by x <- x + r(x), sped up by the photo's own history (Walker and Ni,
SIAM J. Numer. Anal. 49, 2011: type II). The network runs on the photos that are not finished yet; everything else is
done for each photo alone and in float64, so that a photo's result depends on its batch no more than the network's.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ddim_edit.solvers.base import Solved

WINDOW = 5  # moves remembered; more bring nothing
PATIENCE = 4  # looks without progress after which the history is dropped, and after as many more the search ends
PROGRESS = 0.9  # a residual below this share of the best one is progress
GROWTH = 2.0  # a residual above this multiple of the best one says that the history misleads
REGULARISATION = 1e-12  # relative to the square of a move: histories are nearly collinear at the floor
DOUBT = 0.5  # the same for moves that were made in another, similar search

Enough = Callable[[int, float, int], bool]


@dataclass(frozen=True)
class Moves:
    """Pairs of changes: moving x by dx changed r by dr. Both (B, k, C, h, w) float64; what is zero is no move."""

    dx: Tensor
    dr: Tensor


def solve(
    residual: Callable[[Tensor, Tensor], Tensor],
    guess: Tensor,
    *,
    enough: Enough,
    relax: float = 1.0,
    hints: Moves | None = None,
    keep: int = 0,
) -> tuple[Tensor, Solved, Moves]:
    """Find x with residual(x) = 0 for every photo.

    Args:
        residual: (rows (b,) int64, x (b, C, h, w)) -> r (b, C, h, w) of these photos: where x + r is a better x.
        guess: (B, C, h, w), where to start.
        enough: (row, RMS of r, looks so far) -> whether this photo is finished; asked after every look.
        relax: the step where there is no history yet is x + relax * r.
        hints: moves that a similar equation answered in a similar way.
        keep: how many of the last moves to return.

    Returns:
        x; what was reached: `residual` is the RMS of the last r seen, and x is one step beyond it (of a photo that
        stalled, they are the best x and its residual); and the last moves.
    """
    home = torch.device("cpu") if guess.device.type == "mps" else guess.device  # MPS has no float64
    searches = [_Search(x.to(home).double(), guess.dtype, relax) for x in guess]
    if hints:
        for row, search in enumerate(searches):
            search.hint(hints.dx[row], hints.dr[row])
    x = guess.clone()
    rows = torch.arange(len(guess))
    while len(rows):
        updates = residual(rows, x[rows])
        for row, r in zip(rows.tolist(), updates, strict=True):
            searches[row].take(r.to(home).double())
            x[row] = searches[row].x.to(x)
        done = [searches[row].over or enough(row, searches[row].last, searches[row].looks) for row in rows.tolist()]
        rows = rows[~torch.tensor(done)]
    found = Solved(
        torch.tensor([search.last for search in searches], dtype=torch.float64),
        torch.tensor([search.looks for search in searches]),
        torch.tensor([search.stalled for search in searches]),
        torch.tensor([search.first for search in searches], dtype=torch.float64),
    )
    return x, found, _last_moves(searches, keep)


@dataclass
class _Search:
    """The iteration of one photo: `x` (C, h, w) float64 is where to look next."""

    x: Tensor
    dtype: torch.dtype  # what x is rounded to before it is looked at
    relax: float
    first: float = math.inf
    last: float = math.inf
    best: float = math.inf
    looks: int = 0
    idle: int = 0
    moves: list[tuple[Tensor, Tensor, float]] = field(default_factory=list[tuple[Tensor, Tensor, float]])
    seen: tuple[Tensor, Tensor] | None = None  # x and r of the last look that counts
    best_at: tuple[Tensor, Tensor] | None = None

    @property
    def stalled(self) -> bool:
        return self.idle >= 2 * PATIENCE

    @property
    def over(self) -> bool:
        return self.stalled or not math.isfinite(self.last)

    def hint(self, dx: Tensor, dr: Tensor) -> None:
        """Begin with the moves (k, C, h, w) of another search."""
        self.moves = [(*move, DOUBT) for move in zip(dx, dr, strict=True) if move[1].any()]

    def take(self, r: Tensor) -> None:
        """Look at r(x), and decide where to look next."""
        self.looks += 1
        self.last = r.square().mean().sqrt().item()
        self.first = self.last if self.looks == 1 else self.first
        self.idle = 0 if self.last < PROGRESS * self.best else self.idle + 1
        if self.best_at is not None and not self.last <= GROWTH * self.best:
            self._go_back(0.5)
        elif self.best_at is not None and self.idle == PATIENCE:
            self._go_back(1.0)
        else:
            self._learn(r)
            self.x = self._next()
        if self.stalled and self.best_at is not None:
            self.x, self.last = self.best_at[0], self.best
        self.x = self.x.to(self.dtype).double()

    def _learn(self, r: Tensor) -> None:
        if self.seen is not None:
            move = self.x - self.seen[0], r - self.seen[1], REGULARISATION
            self.moves = [*self.moves, move][-WINDOW:]
        self.seen = self.x, r
        if self.last < self.best:
            self.best, self.best_at = self.last, self.seen

    def _go_back(self, share: float) -> None:
        """Forget the history and take a share of the usual step from the best x."""
        assert self.best_at is not None
        self.relax *= share
        self.moves, self.seen, self.last = [], self.best_at, self.best
        self.x = self._step()

    def _step(self) -> Tensor:
        assert self.seen is not None
        x, r = self.seen
        return x + self.relax * r

    def _next(self) -> Tensor:
        """The best combination of the moves, and from there a step."""
        if not self.moves:
            return self._step()
        assert self.seen is not None
        x, r = self.seen
        dx = torch.stack([dx.flatten() for dx, *_ in self.moves])
        dr = torch.stack([dr.flatten() for _, dr, _ in self.moves])
        doubts = torch.tensor([doubt for *_, doubt in self.moves], dtype=torch.float64)
        gram = (dr @ dr.T).cpu()
        gram += torch.diag(doubts * gram.diagonal())
        weights, singular = torch.linalg.solve_ex(gram, (dr @ r.flatten()).cpu())
        if singular:  # the same residual again and again, as at the floor
            self.moves = []
            return self._step()
        share = self.relax if doubts.min() == DOUBT else 1.0  # in front of the first move of its own
        return x + share * r - ((dx + share * dr).T @ weights.to(dr)).view_as(x)


def _last_moves(searches: list[_Search], count: int) -> Moves:
    """The last moves of every search, filled up with zeros."""
    x = torch.stack([search.x for search in searches])
    dx = x.new_zeros(len(x), count, *x.shape[1:])
    dr = torch.zeros_like(dx)
    for row, search in enumerate(searches):
        for k, (move, answer, _) in enumerate(search.moves[-count:] if count else ()):
            dx[row, k], dr[row, k] = move, answer
    return Moves(dx, dr)
