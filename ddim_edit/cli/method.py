"""How photos are encoded: the options of every command that encodes, and the recipe they make."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from ddim_edit.cli import options
from ddim_edit.cli.packing import packed

if TYPE_CHECKING:
    from ddim_edit.grid import Grid
    from ddim_edit.inverse import Inverse
    from ddim_edit.models.base import Model
    from ddim_edit.recipe import Recipe
    from ddim_edit.solvers import Solver

# Written out, because reading them from the modules that define them would import torch; a test compares them.
SOLVERS = ("ddim", "midpoint", "heun", "trapezoid", "ab2", "ab3", "dpm++2m", "leapfrog", "lattice", "dop853")
INVERSES = ("explicit", "exact", "refine", "recorded")
LATTICE_MICRO_BATCH = 4  # the smallest at which a photo's bits no longer depend on its batch


@dataclass(frozen=True)
class Method:
    """How photos are encoded on a grid."""

    solver: str = "ddim"
    inverse: str | None = None
    guess: str = "source"
    budget: int | None = None
    tolerance: float | None = None
    target_psnr: float | None = None
    target: str | None = None

    def __post_init__(self) -> None:
        goals = {"--tolerance": self.tolerance, "--target-psnr": self.target_psnr, "--target": self.target}
        given = [flag for flag, value in goals.items() if value is not None]
        if len(given) > 1:
            raise click.UsageError(f"{' and '.join(given)} say the same thing twice; give one of them.")
        if self.inverse in ("explicit", "recorded") and (given or self.budget):
            flag = given[0] if given else "--budget"
            raise click.UsageError(f"{flag} needs an inverse that iterates; use --inverse exact or refine.")
        if self.inverse != "explicit" and self.guess != "source":
            raise click.UsageError("--guess is of the explicit inverse; add --inverse explicit.")

    def recipe(
        self,
        model: "Model",
        grid: options.GridChoice,
        condition: options.Condition,
        *,
        randomness: options.Randomness = options.NOT_RANDOM,
        until: float | None = None,
    ) -> "Recipe":
        """Everything that an encoding depends on besides model and photo.

        Where nobody says otherwise, what solves nothing walks the model's own grid: the classical inverse, and that of
        eta > 0. All others walk one of `recipe.default_spacing`.
        """
        from ddim_edit.recipe import default_spacing

        if randomness.eta and self != Method(inverse=self.inverse):
            raise click.UsageError("--eta above 0 is of DDIM, which records its noise; leave --solver and goals out.")
        plain = self.solver == "ddim" and (self.inverse == "explicit" or bool(randomness.eta))
        schedule, steps = model.schedule, options.ENCODE_STEPS
        levels = grid.build(schedule) if plain else grid.build(schedule, steps, default_spacing(schedule))
        levels = levels if until is None else levels.until(until)
        return self.on(levels, model, condition, randomness.solver() if randomness.eta else None)

    def on(
        self, levels: "Grid", model: "Model", condition: options.Condition, random: "Solver | None" = None
    ) -> "Recipe":
        """The recipe on these levels, of a random solver or the named one; says where steps had to be split."""
        from ddim_edit.recipe import Recipe
        from ddim_edit.solvers import SOLVERS

        solver = random or SOLVERS[self.solver]()
        recipe = Recipe(levels, solver, condition.denoiser(model), self._inverse(solver)).prepared()
        if added := recipe.grid.steps - levels.steps:
            click.echo(f"note: {added} steps more, {recipe.grid.steps} now: some were too large to be undone", err=True)
        return recipe

    def _inverse(self, solver: "Solver") -> "Inverse":
        from ddim_edit.inverse import Exact, Explicit, Recorded, Refine, default_inverse
        from ddim_edit.task import EIGHT_BIT, Goal

        goal = EIGHT_BIT if self.target else Goal(self.tolerance) if self.tolerance is not None else None
        goal = Goal.of_psnr(self.target_psnr) if self.target_psnr is not None else goal
        name = self.inverse or default_inverse(solver).name
        if name == "explicit":
            return Explicit(self.guess)  # pyright: ignore[reportArgumentType]
        if name == "recorded":
            return Recorded()
        if name == "refine":
            return Refine(goal or EIGHT_BIT, self.budget)
        return Exact(goal or (None if self.budget else EIGHT_BIT), self.budget)


method_options = packed(
    "method",
    Method,
    click.option(
        "--solver", type=click.Choice(SOLVERS), default="ddim", show_default=True, help="The decoder to undo."
    ),
    click.option(
        "--inverse",
        type=click.Choice(INVERSES),
        help="exact: solve every step; refine: correct the photo that is encoded; explicit: the classical guess; "
        "recorded: keep the noise of every step.  [default: exact; refine for multistep solvers, recorded at eta > 0]",
    ),
    click.option(
        "--guess",
        type=click.Choice(("source", "target")),
        default="source",
        show_default=True,
        help="Of the explicit inverse: eps at the level that is left, or at the one that is entered.",
    ),
    click.option("--budget", type=click.IntRange(1), metavar="N", help="At most N network evaluations a photo."),
    click.option("--tolerance", type=float, metavar="RMS", help="Error that is allowed, RMS on [0, 1]; 1e-3 is 60 dB."),
    click.option("--target-psnr", type=float, metavar="DB", help="The same, in dB."),
    click.option(
        "--target",
        type=click.Choice(("8bit",)),
        help="Every 8-bit value must come back.  [default, unless a budget or a tolerance is given]",
    ),
)


def fitted(model: "Model", solvers: "Iterable[str]") -> "Model":
    """The model as these solvers need it: for the lattice, with a network that sees batches of one size."""
    from ddim_edit.models.base import MicroBatched

    fixed = isinstance(model.network, MicroBatched)
    return model if fixed or "lattice" not in set(solvers) else model.micro_batched(LATTICE_MICRO_BATCH)
