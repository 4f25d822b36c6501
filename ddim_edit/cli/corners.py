"""`grid`: everything between four photos, latents or seeds, on one sheet."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ddim_edit.cli import options, run
from ddim_edit.cli.keys import Asked, Keys, Ready, keys_options

if TYPE_CHECKING:
    from torch import Tensor

    from ddim_edit.latents import Latents

# Written out, because reading them from the module that defines them would import torch; a test compares them.
MIXES = ("slerp", "lol", "karcher")

_CORNERS = ("top left", "top right", "bottom left", "bottom right")


@click.command()
@keys_options
@options.output_option("grid.png", "The sheet, a .png; beside it a .json that says what each tile is.")
@click.option("--rows", type=click.IntRange(2), default=5, show_default=True)
@click.option("--columns", "--cols", type=click.IntRange(2), default=5, show_default=True)
@click.option(
    "--mix",
    type=click.Choice(MIXES),
    default=MIXES[0],
    show_default=True,
    help="slerp along the rows, then across (the paper's); lol and karcher mix all four at once.",
)
@click.option("--scale", type=click.IntRange(1, 32), help="Enlarge by a whole factor.  [default: to 128 pixels]")
@options.metadata_option
@options.model_options
@options.running_options
@click.pass_context
def grid(  # noqa: PLR0913
    ctx: click.Context,
    *,
    asked: Asked,
    output: Path,
    rows: int,
    columns: int,
    mix: str,
    scale: int | None,
    metadata: bool,
    choice: options.ModelChoice,
    running: options.Running,
) -> int:
    """Decode a grid between four PHOTOS (or latents, or --seeds): top left, top right, bottom left, bottom right.

    \b
    ddim-edit grid a.jpg b.jpg c.jpg d.jpg --rows 5 --columns 7 -o grid.png
    ddim-edit grid --seeds 0-3 -n 20
    """
    from ddim_edit.files import prepare_output, write_text
    from ddim_edit.images import visible_scale, write_image

    facts = output.with_suffix(".json")
    if output.suffix.lower() != ".png":
        raise click.UsageError(f"--output {output} would be no PNG; name it {output.with_suffix('.png')}.")
    prepare_output(output, facts, overwrite=running.overwrite)
    keys = asked.find()
    if len(keys) != len(_CORNERS):
        raise click.UsageError(f"A grid has four corners, and {len(keys)} are given; give {', '.join(_CORNERS)}.")
    ready = keys.ready(choice.load())
    if mix == "lol":
        ready.require_independent()
    record = run.Record(run.describe_run(ctx, ready.model, ready.recipe.grid), outputs=[output, facts])
    latents, photos, tiles = _decoded(keys, ready, (rows, columns), mix, running)
    table = [list(tiles[row * columns : (row + 1) * columns]) for row in range(rows)]
    picture, found = _sheet(table, latents, scale or visible_scale(tiles.shape[-1]))
    errors = _check(latents, photos, [table[0][0], table[0][-1], table[-1][0], table[-1][-1]])
    about = run.picture_metadata(record.description)
    corners = [
        {"name": name, "place": place, "max_error": error}
        for name, place, error in zip(latents.names, _CORNERS, errors, strict=True)
    ]
    whole = {"format": 1, **json.loads(about["ddim_edit"]), "corners": corners, **found}
    write_image(picture, output, metadata=about if metadata else None)
    write_text(facts, json.dumps(whole, indent=1) + "\n")
    return run.finish(record, output, (), done=rows * columns, running=running)


def _decoded(
    keys: Keys, ready: Ready, size: tuple[int, int], mix: str, running: options.Running
) -> "tuple[Latents, Tensor | None, Tensor]":
    """The corners, their photos if they are photos, and the tiles (rows * columns, 3, H, W)."""
    import torch

    from ddim_edit.batch import decode_in_batches
    from ddim_edit.mixing import corner_grid

    def spread(corners: "Tensor") -> "Tensor":
        return corner_grid(corners, *size, mix).flatten(0, 1)  # pyright: ignore[reportArgumentType]

    model, recipe, decoding, _ = ready
    total = len(keys.photos) * recipe.grid.steps + size[0] * size[1] * decoding.grid.steps
    with run.Progress("grid", total, shown=running.progress) as bar:
        latents, photos = keys.make(model, recipe, bar)
        tiles = latents.moved(spread(latents.x), spread)
        parts = decode_in_batches(model, tiles, decoding, batch_size=keys.asked.source.batch_size, on_step=bar)
        return latents, photos, torch.cat([pictures for _, pictures in parts])


def _check(latents: "Latents", photos: "Tensor | None", shown: "list[Tensor]") -> list[float | None]:
    """The largest error of each corner on [0, 1], where it is a photo; warns of latents and photos that are odd."""
    import torch

    from ddim_edit.inversion import named_advice, with_health, with_quality

    checked = with_health(latents)
    if photos is not None:
        checked = with_quality(checked, photos, torch.stack(shown))
    for line in named_advice(checked):
        click.echo(f"warning: {line}", err=True)
    return [None if photos is None or not record.quality else record.quality.max_error for record in checked.photos]


def _sheet(table: "list[list[Tensor]]", latents: "Latents", scale: int) -> "tuple[Tensor, dict[str, Any]]":
    """The sheet, and where each tile is on it and between the corners."""
    from ddim_edit.sheets import sheet, tile_boxes

    rows, columns = len(table), len(table[0])
    names = iter(latents.names)
    corners = {(i, j): next(names) for i in (0, rows - 1) for j in (0, columns - 1)}
    captions = [[corners.get((i, j), "") for j in range(columns)] for i in range(rows)]
    down, across = ([number / (count - 1) for number in range(count)] for count in (rows, columns))
    titles: dict[str, Any] = {
        "captions": captions,
        "row_titles": [f"{share:.2f}" for share in down],
        "column_titles": [f"{share:.2f}" for share in across],
        "scale": scale,
    }
    boxes = tile_boxes(table, **titles)
    tiles = [
        {"row": i, "column": j, "box": boxes[i][j], "down": down[i], "across": across[j], "corner": corners.get((i, j))}
        for i in range(rows)
        for j in range(columns)
    ]
    return sheet(table, **titles), {"box": "left, top, width, height", "tiles": tiles}
