"""How photos are encoded: grid, solver, denoiser and inverse, as objects and as the JSON that latents carry."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar, cast

import numpy as np

from ddim_edit.denoiser import Denoiser
from ddim_edit.errors import ConfigError, LatentsError
from ddim_edit.grid import Grid
from ddim_edit.inverse import Exact, Inverse
from ddim_edit.latents import Latents, is_noise
from ddim_edit.models.base import Model
from ddim_edit.schedule import SPACINGS, NoiseSchedule, Spacing
from ddim_edit.solvers import SOLVERS, Solver

T = TypeVar("T")

# Of encoding, by default; benchmarks/inversion.py says why.
STEPS = 20


def default_spacing(schedule: NoiseSchedule) -> Spacing:
    """Quadratic, whose steps are all about as hard to undo; to the last timestep where its top is not yet noise.

    A linear schedule is noise there; photos show through a scaled linear or a cosine one.
    """
    top, last = Grid.build(schedule, min(2, len(schedule)), "quadratic")[-1], schedule.level(len(schedule) - 1)
    return "quadratic" if is_noise(top) or last.signal == 0 else "quadratic-full"


@dataclass(frozen=True)
class Recipe:
    """Everything besides the model and the photo that a latent depends on."""

    grid: Grid
    solver: Solver
    denoiser: Denoiser
    inverse: Inverse = Exact()

    @property
    def cost(self) -> int:
        """Network forwards of decoding one picture; more where the solver iterates, and no more where it does not."""
        return self.solver.evaluations(self.grid.steps) * self.denoiser.cost

    def prepared(self) -> "Recipe":
        """The recipe that will be followed: on the grid that its inverse wants, if it can be followed at all.

        Raises:
            InversionError, ConfigError: a solver, a denoiser or a budget that the inverse cannot work with.
        """
        recipe = replace(self, grid=self.inverse.prepared(self.grid, self.solver))
        self.inverse.check(recipe.solver, recipe.grid, self.denoiser)
        return recipe

    def to_json(self) -> dict[str, object]:
        """What goes into `Latents.how`."""
        return {
            "timesteps": self.grid.timesteps,
            "spacing": self.grid.spacing,
            "solver": self.solver.settings,
            "inverse": dict(self.inverse.settings),
            "denoiser": dict(self.denoiser.settings),
        }

    @classmethod
    def of(
        cls,
        latents: Latents,
        model: Model,
        *,
        grid: Grid | int | str | None = None,
        solver: Solver | None = None,
        denoiser: Denoiser | None = None,
    ) -> "Recipe":
        """The recipe that latents were encoded with, or with parts of it replaced.

        Args:
            latents: what was encoded.
            model: the one that encoded them.
            grid: other levels; a number of steps is spread over the schedule as the latents' own are.
            solver: another solver.
            denoiser: another condition, guidance or clipping.

        Raises:
            LatentsError: a part that is not replaced and that this version cannot restore.
        """
        how = latents.how

        def timesteps(value: object) -> Grid:
            return Grid.from_timesteps(model.schedule, cast(Sequence[float], value), str(how["spacing"]))

        def named_solver(value: object) -> Solver:
            settings = dict(cast(Mapping[str, object], value))
            return SOLVERS[str(settings.pop("name"))](**settings)

        def settings(value: object) -> Denoiser:
            return model.denoiser(**cast(dict[str, float], value))  # pyright: ignore[reportArgumentType]

        return cls(
            _restored(how, "timesteps", timesteps) if grid is None else _other_grid(how, model, grid),
            solver or _restored(how, "solver", named_solver),
            denoiser or _restored(how, "denoiser", settings),
        )


def _other_grid(how: Mapping[str, object], model: Model, grid: Grid | int | str) -> Grid:
    spacing = how.get("spacing")
    if isinstance(grid, Grid | str) or spacing in SPACINGS:
        return Grid.of(model.schedule, grid, spacing if spacing in SPACINGS else None)
    if grid < 1:
        raise ConfigError(f"{grid} steps; choose 1 or more")
    own = _restored(how, "timesteps", lambda value: np.asarray(value, dtype=np.float64))
    along = np.linspace(len(own) - 1, 0, grid)[::-1]  # a single step is the last of theirs
    return Grid.from_timesteps(model.schedule, np.interp(along, np.arange(len(own)), own).round().tolist())


def _restored(how: Mapping[str, object], key: str, make: Callable[[object], T]) -> T:
    try:
        return make(how[key])
    except (KeyError, TypeError, ValueError) as error:
        raise LatentsError(f"the latents' {key} {how.get(key)!r} cannot be restored; give it explicitly") from error
