"""`experiment`: the DDIM paper's tables and figures, each one command, into a folder that explains itself."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ddim_edit.cli import conduct, options, values
from ddim_edit.cli.interpolate import PATHS
from ddim_edit.cli.method import fitted

if TYPE_CHECKING:
    from ddim_edit.ode import OnStep


@click.group()
def experiment() -> None:
    """Reproduce the DDIM paper's tables and figures: numbers with intervals, figures, and a report to read.

    Every command writes rows.csv (one row per image and setting), summary.csv, table.tex, figures, sheets, methods.txt
    and report.html into a folder, and goes on where it was stopped.
    """


@experiment.command()
@options.photo_options
@conduct.methods_options
@conduct.common_options
def reconstruct(
    *,
    source: options.Source,
    methods: conduct.Methods,
    common: conduct.Common,
) -> int:
    """Table 2: encode PHOTOS and decode them again, by numbers of steps, solvers and spacings.

    \b
    ddim-edit experiment reconstruct photos.npz --steps-list 10,20,50,100 -o table2
    """
    from ddim_edit.experiments.reconstruct import EXPERIMENT, units

    found = source.find()
    store, model = common.store, fitted(common.choice.load(), methods.solvers)
    chosen = methods.build(model, common.condition)
    photos, failures = conduct.read_photos(source, found, model)
    work = units(model, photos, chosen, store, common.setup.show, source.batch_size)
    grids = {" ".join(method.setting.values()): method.recipe.grid for method in chosen}
    job = conduct.Job(EXPERIMENT, store, model, work, conduct.photo_images(photos), grids, failures)
    return conduct.carry_out(job, common)


@experiment.command()
@conduct.seeds_option
@conduct.steps_option
@conduct.etas_option
@conduct.spacings_option
@options.batch_option
@conduct.common_options
def consistency(
    *,
    seeds: list[int],
    steps_list: list[int],
    etas: list[str],
    spacings: list[str],
    batch_size: int,
    common: conduct.Common,
) -> int:
    """Figure 5: the same x_T decoded with different numbers of steps, eta and spacing.

    \b
    ddim-edit experiment consistency --seeds 0-3 --steps-list 10,20,100 --etas 0,1 --spacings linear,quadratic
    """
    from ddim_edit.experiments.consistency import EXPERIMENT, Plan, units

    if len(seeds) < 2 or "0" not in etas:
        raise click.UsageError(
            "Consistency compares with eta 0 and with other seeds; give two --seeds, and 0 in --etas."
        )
    store, model = common.store, common.choice.load()
    grids = {spacing: conduct.grids_of(model.schedule, spacing, steps_list) for spacing in spacings}
    plan = Plan(grids, conduct.solvers_of(etas), seeds)
    work = units(model, common.condition.denoiser(model), plan, store, batch_size)
    listed = {f"{spacing} {steps}": grid for spacing in grids for steps, grid in grids[spacing].items()}
    job = conduct.Job(EXPERIMENT, store, model, work, conduct.seed_images(seeds), listed)
    return conduct.carry_out(job, common)


@experiment.command()
@options.photo_options
@conduct.seeds_option
@conduct.steps_option
@conduct.etas_option
@conduct.spacings_option
@click.option("--export", type=click.IntRange(1), help="Also write N samples a setting as .npz (FID: 50000).")
@conduct.common_options
def eta_steps(
    *,
    source: options.Source,
    seeds: list[int],
    steps_list: list[int],
    etas: list[str],
    spacings: list[str],
    export: int | None,
    common: conduct.Common,
) -> int:
    """Table 1 and Figure 3: samples by eta and number of steps, against reference PHOTOS; .npz files for FID tools.

    \b
    ddim-edit experiment eta-steps photos.npz --seeds 0-255 --steps-list 10,20,50 -o table1
    """
    from ddim_edit.experiments.eta_steps import EXPERIMENT, Plan, export_samples, units

    if len(spacings) != 1 or len(seeds) < 2:
        raise click.UsageError("The grid of eta and steps takes one of --spacings, and two --seeds or more.")
    found = source.find()
    store, model = common.store, common.choice.load()
    grids = conduct.grids_of(model.schedule, spacings[0], steps_list)
    plan = Plan(grids, conduct.solvers_of(etas), seeds)
    photos, failures = conduct.read_photos(source, found, model)
    denoiser = common.condition.denoiser(model)
    work = units(model, denoiser, plan, photos.pixels, store, show=common.setup.show, batch=source.batch_size)
    images = [*conduct.seed_images(seeds), *conduct.photo_images(photos)]
    named = {f"{spacings[0]} {steps}": grid for steps, grid in grids.items()}

    def after(on_step: "OnStep") -> None:
        if export:
            folder = common.setup.output / "samples"
            export_samples(model, denoiser, plan, folder, count=export, batch=source.batch_size, on_step=on_step)

    extra = (export or 0) * sum(cell.steps for cell in plan.cells)
    job = conduct.Job(EXPERIMENT, store, model, work, images, named, failures, after, extra)
    return conduct.carry_out(job, common)


@experiment.command()
@options.optional_photo_options
@click.option("--seeds", type=values.seeds, help="One x_T a seed.  [default: 0-7, where no photos are given]")
@options.grid_options
@click.option("--paths", type=values.choices(PATHS), default="slerp,lerp", show_default=True)
@click.option("--keys", type=click.IntRange(2), default=2, show_default=True, help="Latents that a path goes through.")
@click.option("--frames", type=click.IntRange(3), default=33, show_default=True, help="Of a path.")
@click.option("--grid-side", type=click.IntRange(2), default=7, show_default=True, help="Of the grid between four.")
@conduct.common_options
def interpolate(
    *,
    source: options.Source,
    seeds: list[int] | None,
    grid: options.GridChoice,
    paths: list[str],
    keys: int,
    frames: int,
    grid_side: int,
    common: conduct.Common,
) -> int:
    """Figures 6 and 11 to 13: paths between neighbours (0 and 1, 2 and 3, ...), and the grid between the first four.

    Between PHOTOS, which are encoded exactly, or between latents drawn from seeds.

    \b
    ddim-edit experiment interpolate --seeds 0-15 -n 50 -o paths
    ddim-edit experiment interpolate a.jpg b.jpg c.jpg d.jpg -o paths
    """
    from ddim_edit.experiments.interpolate import CORNERS, EXPERIMENT, Plan, decode_grid, groups_of, units

    store, model = common.store, common.choice.load()
    given = conduct.Waypoints.of(source, seeds, model, grid, common.condition)
    names = [str(image["name"]) for image in given.images]
    if len(names) < keys or frames < keys:
        raise click.UsageError(
            f"A path through {keys} latents needs as many photos or --seeds, and --frames; give more."
        )
    if left := names[len(names) // keys * keys :]:
        click.echo(f"note: no path leads to {', '.join(left)}; give {keys} for each path (--keys)", err=True)
    plan = Plan(groups_of(names, keys), given.take, paths, frames, given.recipe, given.photos)  # pyright: ignore[reportArgumentType]
    work = units(model, plan, store, common.setup.show, source.batch_size)
    has_grid, steps = len(names) >= CORNERS, given.recipe.grid.steps

    def after(on_step: "OnStep") -> None:
        if has_grid:
            decode_grid(model, plan, grid_side, store, on_step)

    extra = (grid_side**2 * has_grid + (0 if given.photos is None else len(names))) * steps
    named = {given.recipe.grid.spacing: given.recipe.grid}
    job = conduct.Job(EXPERIMENT, store, model, work, given.images, named, given.failures, after, extra)
    return conduct.carry_out(job, common)


@experiment.command()
@conduct.seeds_option
@conduct.methods_options
@options.batch_option
@conduct.common_options
def cycle(
    *,
    seeds: list[int],
    methods: conduct.Methods,
    batch_size: int,
    common: conduct.Common,
) -> int:
    """From x_T to a picture and back: how much of the noise returns, by numbers of steps, solvers and spacings."""
    from ddim_edit.experiments.cycle import EXPERIMENT, units

    store, model = common.store, fitted(common.choice.load(), methods.solvers)
    chosen = methods.build(model, common.condition)
    grids = {" ".join(method.setting.values()): method.recipe.grid for method in chosen}
    work = units(model, seeds, chosen, batch_size)
    job = conduct.Job(EXPERIMENT, store, model, work, conduct.seed_images(seeds), grids)
    return conduct.carry_out(job, common)


@experiment.command()
@conduct.seeds_option
@options.grid_options
@options.eta_options
@options.batch_option
@conduct.common_options
def trajectory(
    *,
    seeds: list[int],
    grid: options.GridChoice,
    randomness: options.Randomness,
    batch_size: int,
    common: conduct.Common,
) -> int:
    """Watch runs on their way: "current x" beside "predicted x0", as panels and as an animation."""
    from ddim_edit.experiments.trajectory import EXPERIMENT, units
    from ddim_edit.solvers import Ddim

    store, model = common.store, common.choice.load()
    levels = grid.build(model.schedule)
    solver, denoiser = randomness.solver() or Ddim(), common.condition.denoiser(model)
    work = units(model, denoiser, seeds, levels, solver, store, show=common.setup.show, batch=batch_size)
    job = conduct.Job(EXPERIMENT, store, model, work, conduct.seed_images(seeds), {levels.spacing: levels})
    return conduct.carry_out(job, common)


@experiment.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
def render(folder: Path) -> int:
    """Make the tables, figures and the report in FOLDER again, from its rows and pictures and without the model."""
    from ddim_edit.errors import OutputError
    from ddim_edit.experiments import EXPERIMENTS, Store
    from ddim_edit.experiments import render as render_folder

    name = str(Store(folder).description()["experiment"])
    if name not in EXPERIMENTS:
        raise OutputError(f"{folder} holds {name!r}; known are {', '.join(EXPERIMENTS)}; update ddim_edit")
    for path in render_folder(EXPERIMENTS[name], folder):
        click.echo(path)
    return 0
