"""How decoding is undone: explicitly, exactly step by step, or by correcting the photo that is encoded.

An `Inverse` walks photos to noise with a recipe's solver, grid and denoiser, and says per photo what it reached. The
goal is stated on the photo, and checked by the actual decode.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import ClassVar, Literal, Protocol, cast

import torch
from torch import Tensor

from ddim_edit.denoiser import CLIPPING, Denoiser
from ddim_edit.errors import ConfigError, InversionError
from ddim_edit.grid import Grid
from ddim_edit.noise import GivenNoise, SeededNoise, gaussian
from ddim_edit.ode import walk
from ddim_edit.solvers import Ddim, Implicit, Recorder, Solver, State
from ddim_edit.task import EIGHT_BIT, Goal, Inverted, Restored, Task, Walk

ATTEMPTS = 8  # at most, for the photos that have not come back yet
PROGRESS = 0.9  # share of a photo's least error below which an attempt counts as progress
PATIENCE = 2  # attempts in a row without progress after which a photo is given up
STEPWISE = 4.0  # residual of one step over the goal's RMS, times the root of the number of steps


class Inverse(ABC):
    """A way to undo a decoder. Concrete ones are frozen dataclasses whose fields are JSON."""

    name: ClassVar[str]

    @property
    def settings(self) -> Mapping[str, object]:
        """JSON: the name and the fields, recorded with latents."""
        return {"name": self.name, **asdict(self)}  # pyright: ignore[reportArgumentType]

    @abstractmethod
    def run(self, task: Task) -> Inverted:
        """Walk the photos to noise."""

    def check(self, solver: Solver, grid: Grid, denoise: Denoiser) -> None:
        """Refuse, before any work, what this inverse cannot undo.

        Args:
            solver: the decoder's.
            grid: the levels.
            denoise: the decoder's.

        Raises:
            InversionError: a random solver, or photos that are clipped at every step.
            ConfigError: another solver or a budget that will not do; the message says what to use instead.
        """
        if not solver.deterministic:
            raise InversionError(
                f"{solver.settings} is random, so nothing can be encoded with it; encode with eta = 0, "
                "or use the inverse recorded"
            )

    def prepared(self, grid: Grid, solver: Solver) -> Grid:
        """The grid to walk instead of this one."""
        return grid

    def reached(self, pixels: Tensor, restored: Tensor) -> Tensor | None:
        """(B,) bool, whether photos (B, 3, H, W) that came back like this meet the goal; None where there is none."""
        return None


@dataclass(frozen=True)
class Explicit(Inverse):
    """The classical, approximate inverse: every step toward noise is made with one guess of eps.

    Args:
        at: `source`: eps at the cleaner level, the DDIM paper's (and any other solver's own step toward noise);
            `target`: eps of the cleaner x at the noisier level, that of diffusers and prompt-to-prompt.
    """

    at: Literal["source", "target"] = "source"
    name: ClassVar[str] = "explicit"

    def __post_init__(self) -> None:
        if self.at not in ("source", "target"):
            raise ConfigError(f"eps cannot be guessed at {self.at!r}; choose source or target")

    def check(self, solver: Solver, grid: Grid, denoise: Denoiser) -> None:
        """`target` is the first iterate of solving a step."""
        super().check(solver, grid, denoise)
        if self.at == "target" and solver.undone_by != "solving":
            raise ConfigError(f"solver {solver.name} has no guess at the target level; use the one at the source")

    def run(self, task: Task) -> Inverted:
        """One walk."""
        rows = torch.arange(len(task.x0))
        if self.at == "source":
            return Inverted(task.to_noise(rows, task.solver))
        found = task.to_noise(rows, Implicit(task.solver, torch.zeros(1).double(), limit=1, warm=False))
        return Inverted(found._replace(state=replace(found.state, solved=())))  # what it says is of the y before


@dataclass(frozen=True)
class Exact(Inverse):
    """The exact inverse: every step is solved until the photo comes back as well as the goal says.

    Args:
        goal: checked by decoding, and missed only where the network's precision or the budget ends. None: as good as
            the budget allows, unchecked.
        budget: evaluations of the network per photo, at most; those for checking the goal count too.
    """

    goal: Goal | None = EIGHT_BIT
    budget: int | None = None
    name: ClassVar[str] = "exact"

    def __post_init__(self) -> None:
        if self.goal is None and self.budget is None:
            raise ConfigError("an exact inverse with neither goal nor budget has no end; give it one of them")

    def check(self, solver: Solver, grid: Grid, denoise: Denoiser) -> None:
        """The solver's steps must need nothing but x and keep all of it; the budget must do for one look at each."""
        super().check(solver, grid, denoise)
        if solver.undone_by == "refining":
            raise ConfigError(f"steps of solver {solver.name} cannot be undone one by one; use --inverse refine")
        if solver.undone_by == "solving" and (cut := [key for key in CLIPPING if key in denoise.settings]):
            raise InversionError(f"{cut[0]} takes away what cannot be brought back; encode without it, or explicitly")
        require_budget(self.budget, solver, grid, denoise.cost * (1 if self.goal is None else 2))

    def prepared(self, grid: Grid, solver: Solver) -> Grid:
        """Without stiff steps, where steps are solved; a pair needs no solving."""
        return grid if solver.pair else grid.refined()

    def reached(self, pixels: Tensor, restored: Tensor) -> Tensor | None:
        """As the goal says."""
        return None if self.goal is None else self.goal.measured(pixels, restored)[1]

    def run(self, task: Task) -> Inverted:
        """Solve; with a goal decode, and solve more tightly what has not come back."""
        rows = torch.arange(len(task.x0))
        if task.solver.undone_by == "itself":
            return Inverted(task.to_noise(rows, task.solver))
        if self.goal is None:
            looks = torch.tensor([cast(int, self.budget) // task.look])
            return Inverted(task.to_noise(rows, Implicit(task.solver, torch.zeros(1).double(), looks)))
        return _until_reached(task, self.goal, _Tightening(task, self.goal), self.budget)


@dataclass(frozen=True)
class Refine(Inverse):
    """Undo the decoder as a whole, whatever it is: encode a photo that is changed until the true one comes out.

    y <- y + (x0 - decode(encode(y))), from y = x0: defect correction. It needs a solver pair that nearly comes back by
    itself (a second-order one on some 20 levels), and gives up on a photo where it does not converge.

    Args:
        goal: where to stop.
        budget: evaluations of the network per photo, at most, in both directions.
    """

    goal: Goal = EIGHT_BIT
    budget: int | None = None
    name: ClassVar[str] = "refine"

    def check(self, solver: Solver, grid: Grid, denoise: Denoiser) -> None:
        """The budget must suffice for going to noise and back once."""
        super().check(solver, grid, denoise)
        require_budget(self.budget, solver, grid, 2 * denoise.cost)

    def run(self, task: Task) -> Inverted:
        """Encode, decode, correct."""
        return _until_reached(task, self.goal, _Correcting(task), self.budget)


@dataclass(frozen=True)
class Recorded(Inverse):
    """The inverse of a random solver: the noise is kept that leads back to the photo; see `solvers.Recorder`.

    Args:
        seed: of what is drawn; the same for every photo, so that a code does not depend on its company.
    """

    seed: int = 0
    name: ClassVar[str] = "recorded"

    def check(self, solver: Solver, grid: Grid, denoise: Denoiser) -> None:
        """There must be noise to record."""
        if solver.deterministic:
            raise ConfigError(f"{solver.settings} adds no noise that could be recorded; use --inverse exact, or an eta")

    def prepared(self, grid: Grid, solver: Solver) -> Grid:
        """With a first level of little noise: the step there adds none, and is solved."""
        return grid.entered()

    def run(self, task: Task) -> Inverted:
        """One walk toward clean, from where the photo is drowned in noise."""
        grid, seeds = task.grid, (self.seed,) * len(task.x0)
        recorder, first = Recorder.of(cast(Ddim, task.solver), task.x0, task.denoise, grid)
        end = start = recorder.start(grid, gaussian(seeds, tuple(task.x0.shape[1:])), SeededNoise(seeds))
        versions = [start.x]
        for step in walk(task.denoise, recorder, grid, start, toward="clean", on_step=task.on_step):
            end = step.state
            versions.insert(0, end.x)
        noises = torch.stack(end.memory)
        spent = end.evaluations + first.evaluations
        state = replace(start, evaluations=spent, noise=GivenNoise(noises), solved=first.solved)
        every = task.keep_every
        path = [(grid[i].t, versions[i].cpu()) for i in range(every, grid.steps + 1, every)] if every else []
        return Inverted(Walk(state, path, noises.cpu()))


class _Attempts(Protocol):
    def walk(self, rows: Tensor, left: Tensor | None) -> Walk: ...

    def learn(self, rows: Tensor, decoded: Tensor, rms: Tensor) -> None: ...


@dataclass
class _Tightening:
    """Solve the steps to a tolerance that falls, photo by photo, with the error that is seen in the end."""

    task: Task
    goal: Goal

    def __post_init__(self) -> None:
        grid = self.task.grid
        start = 2 * self.goal.rms * STEPWISE / math.sqrt(grid.steps)  # 2: photos lie in [-1, 1]
        self.tolerance = torch.full((len(self.task.x0),), start, dtype=torch.float64)

    def walk(self, rows: Tensor, left: Tensor | None) -> Walk:
        looks = None if left is None else left // self.task.look - self.task.grid.steps  # a look each to decode
        return self.task.to_noise(rows, Implicit(self.task.solver, self.tolerance[rows], looks))

    def learn(self, rows: Tensor, decoded: Tensor, rms: Tensor) -> None:
        self.tolerance[rows] *= (0.5 * self.goal.rms / rms).clamp(0.01, 0.3)


@dataclass
class _Correcting:
    """Encode a photo that is moved by what the last one missed."""

    task: Task

    def __post_init__(self) -> None:
        self.y = self.task.x0.clone()

    def walk(self, rows: Tensor, left: Tensor | None) -> Walk:
        return self.task.to_noise(rows, self.task.solver, self.y[rows])

    def learn(self, rows: Tensor, decoded: Tensor, rms: Tensor) -> None:
        self.y[rows] += self.task.x0[rows] - decoded


def _until_reached(task: Task, goal: Goal, attempts: _Attempts, budget: int | None) -> Inverted:
    """Try again what has not come back, as long as it gets better and the budget lasts; keep the best of each photo."""
    batch = len(task.x0)
    best = torch.full((batch,), math.inf, dtype=torch.float64)
    spent = torch.zeros(batch, dtype=torch.int64)
    idle = torch.zeros(batch, dtype=torch.int64)
    reached = torch.zeros(batch, dtype=torch.bool)
    kept: dict[int, tuple[Walk, Restored]] = {}
    rows = torch.arange(batch)
    for _ in range(ATTEMPTS):
        found = attempts.walk(rows, None if budget is None else budget - spent[rows])
        back = task.and_back(rows, found.state)
        restored = task.to_pixels(back.x)
        rms, good = goal.measured(task.pixels[rows], restored)
        cost = found.state.evaluations + back.evaluations
        better = good | (rms < best[rows])
        idle[rows] = torch.where(rms < PROGRESS * best[rows], 0, idle[rows] + 1)
        for k in torch.nonzero(better).flatten().tolist():
            one = [(t, x[k : k + 1]) for t, x in found.path]
            shown = Restored(restored[k : k + 1], back.evaluations[k : k + 1])
            kept[int(rows[k])] = Walk(found.state.select(torch.tensor([k])), one), shown
        best[rows] = torch.minimum(best[rows], rms)
        spent[rows] += cost
        reached[rows] = good
        attempts.learn(rows, back.x, rms)
        affordable = torch.ones_like(good) if budget is None else spent[rows] + cost <= budget
        rows = rows[~good & (idle[rows] < PATIENCE) & affordable]
        if not len(rows):
            break
    walks, pictures = zip(*(kept[row] for row in range(batch)), strict=True)
    state = replace(State.join([walk.state for walk in walks]), evaluations=spent)
    path = [(steps[0][0], torch.cat([x for _, x in steps])) for steps in zip(*(w.path for w in walks), strict=True)]
    return Inverted(Walk(state, path), Restored(*map(torch.cat, zip(*pictures, strict=True))), reached)


def require_budget(budget: int | None, solver: Solver, grid: Grid, cost: int) -> None:
    """Refuse a budget that does not suffice for `cost` forwards of every evaluation of one walk.

    Raises:
        ConfigError: it is too small, or of a solver whose walks cost what they cost.
    """
    if budget is None:
        return
    if solver.undone_by == "itself":
        raise ConfigError(f"solver {solver.name} takes what it takes; leave the budget out, or choose another solver")
    least = solver.evaluations(grid.steps) * cost
    if budget < least:
        raise ConfigError(f"budget {budget} is too small for {grid.steps} steps; give {least} or more")


def default_inverse(solver: Solver) -> Inverse:
    """The inverse that brings photos back for this solver: exact where it can be."""
    if not solver.deterministic:
        return Recorded()
    return Refine() if solver.undone_by == "refining" else Exact()


INVERSES: dict[str, type[Inverse]] = {kind.name: kind for kind in (Explicit, Exact, Refine, Recorded)}
