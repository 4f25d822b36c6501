"""What `interpolate`, `grid` and `mix` are given: photos, latents or seeds; how they are encoded, on which levels."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from ddim_edit.cli import options, values
from ddim_edit.cli.method import Method, fitted, method_options
from ddim_edit.cli.packing import Command, packed

if TYPE_CHECKING:
    from torch import Tensor

    from ddim_edit.batch import PhotoBatch
    from ddim_edit.images import Photo
    from ddim_edit.latents import Latents
    from ddim_edit.models.base import Model
    from ddim_edit.ode import OnStep
    from ddim_edit.recipe import Recipe


@dataclass(frozen=True)
class Asked:
    """The keys as the command line has them."""

    source: options.Source
    seeds: list[int] | None
    grid: options.GridChoice
    condition: options.Condition
    method: Method
    randomness: options.Randomness
    decode_steps: int | None

    def find(self) -> "Keys":
        """List them; photos are not read yet.

        Raises:
            UsageError: keys of two kinds, or settings that are not for keys of this kind.
        """
        if bool(self.source.photos) == bool(self.seeds):
            raise click.UsageError("Give photos or latents to lead through, or --seeds instead of them.")
        if self.seeds:
            if self.source.chosen or self.method != Method():
                raise click.UsageError("--seeds are drawn, not encoded; leave out --limit, --fit and how to encode.")
            return Keys(self, seeds=self.seeds)
        latents = [_are_latents(path) for path in self.source.photos]
        if all(latents):
            return self._given()
        if any(latents):
            raise click.UsageError("Some of these are latents and some are photos; encode the photos first.")
        return Keys(self, photos=self.source.find())

    def _given(self) -> "Keys":
        from ddim_edit.files import find_latents
        from ddim_edit.latents import Latents

        if self.source.chosen:
            raise click.UsageError("--limit and --fit are for photos, and these are latents; leave them out.")
        if self.grid.given or self.condition.given or self.method != Method() or self.randomness.eta is not None:
            raise click.UsageError(
                "Latents keep the grid, condition, method and eta that they were encoded with; use --decode-steps."
            )
        files = find_latents(self.source.photos)
        return Keys(self, given=Latents.join([Latents.load(path).named(path.stem) for path in files]), files=files)


def _are_latents(path: Path) -> bool:
    """A latents file, or a folder of these and of no photos."""
    if not path.is_dir():
        return path.suffix == ".safetensors"
    from ddim_edit.images import SUFFIXES

    suffixes = {file.suffix.lower() for file in path.iterdir()}
    return ".safetensors" in suffixes and not suffixes & set(SUFFIXES)


def keys_options(command: Command) -> Command:
    """The options of what to lead through, handed over as one `asked`."""
    seeds = click.option("--seeds", type=values.seeds, help="Lead through pictures drawn from seeds, not photos.")
    steps = click.option(
        "--decode-steps", type=click.IntRange(1), help="Steps a picture.  [default: those of encoding]"
    )
    packs = steps, options.eta_options, method_options, options.condition_options, options.grid_options, seeds
    for decorate in (packed("asked", Asked), *packs, options.optional_photo_options):
        command = decorate(command)
    return command


class Ready(NamedTuple):
    """The model as the keys need it, how they are encoded and decoded, and `Keys.outline`."""

    model: "Model"
    recipe: "Recipe"
    decoding: "Recipe"
    outline: "Latents"

    def require_independent(self) -> None:
        """Refuse latents that lol makes too long."""
        from ddim_edit.decoding import recorded

        if recorded(self.outline.how):
            raise click.UsageError(
                "lol is for independent noise, and that of recorded photos is not; use karcher, which takes weights "
                "of 0 or more, or photos encoded at eta 0."
            )


@dataclass(frozen=True)
class Keys:
    """Keys of one kind, before photos are encoded."""

    asked: Asked
    photos: "list[Photo]" = field(default_factory=list["Photo"])
    given: "Latents | None" = None
    seeds: list[int] = field(default_factory=list[int])
    files: list[Path] = field(default_factory=list[Path])  # of the latents

    def __len__(self) -> int:
        return len(self.photos or self.given or self.seeds)

    @property
    def hashes(self) -> list[str]:
        """What identifies the photos or the latents."""
        if self.given:
            return [hashlib.sha256(path.read_bytes()).hexdigest() for path in self.files]
        return [photo.sha256() for photo in self.photos]

    def ready(self, model: "Model") -> Ready:
        """All settings put together and checked, before any work."""
        from ddim_edit.decoding import prepared

        model = fitted(model, [self.given.solver if self.given else self.asked.method.solver])
        recipe = self._recipe(model)
        outline = self.outline(model, recipe)
        decoding, _ = prepared(model, outline, grid=self.asked.decode_steps)
        return Ready(model, recipe, decoding, outline)

    def _recipe(self, model: "Model") -> "Recipe":
        """How the keys are encoded, or how they were."""
        from ddim_edit.recipe import Recipe
        from ddim_edit.solvers import Ddim

        asked = self.asked
        if self.given:
            return Recipe.of(self.given, model)
        if self.seeds:
            solver = asked.randomness.solver() or Ddim()
            return Recipe(asked.grid.build(model.schedule), solver, asked.condition.denoiser(model))
        return asked.method.recipe(model, asked.grid, asked.condition, randomness=asked.randomness)

    def read(self, model: "Model") -> "list[PhotoBatch]":
        """The photos; one that cannot be read stops the run, because the morph would not be the one asked for."""
        from ddim_edit.errors import ImageError

        batches = self.asked.source.batches(self.photos, model)
        ready = list(batches)
        if batches.failures:
            raise ImageError(batches.failures[0].error)
        return ready

    def outline(self, model: "Model", recipe: "Recipe") -> "Latents":
        """The latents; those of photos with zeros for values, in place of encoding them."""
        import torch

        from ddim_edit.latents import Latents, PhotoRecord

        if not self.photos:
            return self.make(model, recipe)[0]
        x = torch.zeros(len(self.photos), *model.shape)
        records = tuple(PhotoRecord(photo.name) for photo in self.photos)
        steps, memory = recipe.grid.steps, (x,) if recipe.solver.pair else ()
        noises = None if recipe.solver.deterministic else x.expand(steps, *x.shape)
        return Latents(x, recipe.grid[steps], model.space, recipe.to_json(), records, memory, noises=noises)

    def make(
        self, model: "Model", recipe: "Recipe", on_step: "OnStep | None" = None
    ) -> "tuple[Latents, Tensor | None]":
        """The latents, and the photos (N, 3, H, W) if that is what they come from."""
        import torch

        from ddim_edit.batch import encode_photos
        from ddim_edit.decoding import seed_latents
        from ddim_edit.latents import Latents

        if self.given:
            return self.given, None
        if self.seeds:
            return seed_latents(
                model, self.seeds, grid=recipe.grid, solver=recipe.solver, denoiser=recipe.denoiser
            ), None
        ready = self.read(model)
        parts = [part.latents for part in encode_photos(model, ready, recipe, check=False, on_step=on_step)]
        return Latents.join(parts), torch.cat([batch.pixels for batch in ready])
