import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import save_pipeline_folder, tiny_unet
from model_helpers import SIZE, counted_model, cpu, mixture_model, photos
from model_helpers import encode_explicitly as encode
from torch import Tensor

import ddim_edit as de
from ddim_edit.batch import Failure, PhotoBatch, PhotoBatches, decode_in_batches, encode_photos, roundtrip_photos
from ddim_edit.errors import NumericsError
from ddim_edit.images import find_photos
from ddim_edit.latents import PhotoRecord
from ddim_edit.noise import SeededNoise
from ddim_edit.recipe import Recipe

GOOD = ("a", "c", "d", "f", "g")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five photos, and among them one that is no photo and one that is cut off."""
    place = tmp_path / "my photos"
    place.mkdir()
    for name, pixels in zip(GOOD, photos(5), strict=True):
        de.write_image(pixels, place / f"{name}.png")
    (place / "b.jpg").write_text("no photo at all")
    (place / "e.png").write_bytes((place / "a.png").read_bytes()[:200])
    return place


def batches(folder: Path, batch_size: int = 2) -> PhotoBatches:
    return PhotoBatches(find_photos([folder]), (SIZE, SIZE), batch_size=batch_size)


def recipe(model: de.Model, steps: int = 5, **settings: float) -> Recipe:
    return Recipe(de.Grid.build(model.schedule, steps), de.Ddim(**settings), model.denoiser(), de.Explicit())  # pyright: ignore


def read(folder: Path, names: Sequence[str]) -> Tensor:
    return torch.stack([de.read_image(folder / f"{name}.png", (SIZE, SIZE)) for name in names])


class TestPhotoBatches:
    def test_bad_photos_are_collected_and_the_rest_is_read_in_full_batches(self, folder: Path):
        found = batches(folder)
        given = list(found)
        assert [[record.name for record in batch.records] for batch in given] == [["a", "c"], ["d", "f"], ["g"]]
        assert torch.cat([batch.pixels for batch in given]).equal(read(folder, GOOD))
        assert [failure.source for failure in found.failures] == [str(folder / "b.jpg"), str(folder / "e.png")]
        for failure, name in zip(found.failures, ("b.jpg", "e.png"), strict=True):
            assert name in failure.error
            assert "\n" not in failure.error

    @pytest.mark.parametrize(("size", "lengths"), [(1, [1] * 5), (3, [3, 2]), (5, [5]), (8, [5])])
    def test_only_the_last_batch_is_smaller(self, folder: Path, size: int, lengths: list[int]):
        assert [len(batch.records) for batch in batches(folder, size)] == lengths

    def test_sources_are_the_hash_of_the_file_and_the_fit_and_never_a_path(self, folder: Path):
        found = PhotoBatches(find_photos([folder]), (SIZE, SIZE), fit="pad", batch_size=8)
        ((records, _),) = found
        for record in records:
            sha256 = hashlib.sha256((folder / f"{record.name}.png").read_bytes()).hexdigest()
            assert record == PhotoRecord(record.name, {"sha256": sha256, "fit": "pad"})

    def test_photos_are_read_when_their_batch_is_asked_for(self, folder: Path):
        found = iter(batches(folder))
        next(found)
        for name in ("d", "f", "g"):
            (folder / f"{name}.png").unlink()
        assert list(found) == []

    def test_a_second_walk_does_not_repeat_the_failures(self, folder: Path):
        found = batches(folder)
        assert len(list(found)) == len(list(found)) == 3
        assert len(found.failures) == 2

    def test_nothing_readable_gives_no_batch(self, folder: Path):
        found = PhotoBatches(find_photos([folder / "b.jpg"]), (SIZE, SIZE))
        assert list(found) == []
        assert len(found.failures) == 1


class TestEncodePhotos:
    def test_names_sources_and_health_are_recorded(self, folder: Path):
        model = mixture_model()
        given, made = list(batches(folder)), list(encode_photos(model, batches(folder), recipe(model)))
        assert len(made) == 3
        for batch, encoded in zip(given, made, strict=True):
            assert encoded.seconds > 0
            expected = encode(model, batch.pixels, grid=5)
            assert encoded.latents.x.equal(expected.x)
            for record, name, bare in zip(encoded.latents.photos, batch.records, expected.photos, strict=True):
                assert (record.name, record.source) == (name.name, name.source)
                assert (record.evaluations, record.health, record.quality) == (5, bare.health, bare.quality)

    def test_latents_of_files_hold_no_path_and_no_time(self, folder: Path, tmp_path: Path):
        model = cpu(save_pipeline_folder(tmp_path / "my models" / "unet", tiny_unet(sample_size=SIZE)))
        saved = [tmp_path / "once", tmp_path / "twice"]
        for path in saved:
            made = encode_photos(model, batches(folder), recipe(model, 2))
            de.Latents.join([encoded.latents for encoded in made]).save(path)
        data = saved[0].read_bytes()
        assert data == saved[1].read_bytes()
        for part in (str(tmp_path), "my photos", "my models", ".png"):
            assert part.encode() not in data

    def test_batches_are_encoded_one_at_a_time(self, folder: Path):
        model, calls = counted_model()
        made = encode_photos(model, batches(folder), recipe(model), check=False)
        next(made)
        assert calls == [2] * 5
        next(made)
        assert calls == [2] * 10

    def test_settings_are_those_of_encode(self, folder: Path):
        model = mixture_model()
        steps: list[de.Step] = []
        (first, *_) = encode_photos(
            model, batches(folder), recipe(model, 6), trajectory_every=2, check=False, on_step=steps.append
        )
        assert first.latents.trajectory is not None
        assert len(first.latents.trajectory) == 3
        assert first.latents.photos[0].quality is None
        assert len(steps) == 3 * 6


class TestRoundTripPhotos:
    def test_one_result_per_photo_with_what_it_cost(self, folder: Path):
        model, calls = counted_model()
        results = list(roundtrip_photos(model, batches(folder), recipe(model)))
        assert [result.photo.name for result in results] == list(GOOD)
        assert calls == [2] * 20 + [1] * 10  # there and back, without another check
        x = read(folder, GOOD)
        latents = encode(model, x, grid=5)
        for row, result in enumerate(results):
            torch.testing.assert_close(result.picture, de.decode(model, latents)[row])
            assert (result.photo.evaluations, result.decode_evaluations) == (5, 5)
            assert result.photo.quality == de.compare(x[row : row + 1], result.picture[None])[0]
            assert result.photo.health is not None
            assert result.seconds > 0

    @pytest.mark.parametrize("name", de.SOLVERS)
    def test_both_ways_are_counted_for_every_solver(self, folder: Path, name: str):
        model, calls = counted_model()
        model = model.micro_batched(1)  # one call a photo
        way = replace(recipe(model, 4), solver=de.SOLVERS[name]())
        results = list(roundtrip_photos(model, batches(folder), way))
        assert sum(r.photo.evaluations + r.decode_evaluations for r in results) == len(calls)


class TestDecodeInBatches:
    @pytest.fixture
    def latents(self) -> de.Latents:
        return encode(mixture_model(), photos(5), grid=5, check=False)

    @pytest.mark.parametrize(
        ("size", "rows"), [(2, [range(2), range(2, 4), range(4, 5)]), (5, [range(5)]), (8, [range(5)])]
    )
    def test_rows_come_in_order_with_their_pictures(self, latents: de.Latents, size: int, rows: list[range]):
        model, calls = counted_model()
        made = list(decode_in_batches(model, latents, recipe(model), batch_size=size))
        assert [given for given, _ in made] == rows
        assert calls == [len(given) for given in rows for _ in range(5)]
        torch.testing.assert_close(torch.cat([pictures for _, pictures in made]), de.decode(model, latents))

    def test_nothing_is_decoded_ahead(self, latents: de.Latents):
        model, calls = counted_model()
        made = decode_in_batches(model, latents, recipe(model), batch_size=2)
        assert calls == []
        next(made)
        assert calls == [2] * 5

    def test_every_row_keeps_its_seed(self, latents: de.Latents):
        model, seeds = mixture_model(), (7, 8, 9, 10, 11)
        random = recipe(model, eta=1.0)
        made = [pictures for _, pictures in decode_in_batches(model, latents, random, batch_size=2, seeds=seeds)]
        whole = de.decode(model, latents, solver=random.solver, noise=SeededNoise(seeds))
        torch.testing.assert_close(torch.cat(made), whole)

    def test_the_given_recipe_is_used(self, latents: de.Latents):
        model = mixture_model()
        ((_, pictures),) = decode_in_batches(model, latents, recipe(model, 3))
        assert pictures.equal(de.decode(model, latents, grid=3))


def overflowing(pixel: float) -> de.Model:
    """A model with no finite answer for photos whose first value is above this."""
    model = mixture_model()

    def network(x: Tensor, t: Tensor, condition: object) -> Tensor:
        out = model.network(x, t, None)
        return torch.where(x[:, :1, :1, :1] > pixel, torch.inf, out)

    return replace(model, network=network)


def test_a_photo_whose_values_overflow_costs_no_other(folder: Path):
    bright = photos(5)[2]
    bright[0, 0, 0] = 1.0
    de.write_image(bright, folder / "d.png")
    model, found = overflowing(0.99), batches(folder, 4)
    failures: list[Failure] = []
    made = list(encode_photos(model, found, recipe(model), failures=failures))
    assert [name for part in made for name in part.latents.names] == ["a", "c", "f", "g"]
    (failure,) = failures
    assert failure.error.startswith("d: values are not finite after step 1 of 5")
    plain = encode_photos(mixture_model(), batches(folder, 1), recipe(mixture_model()))
    wanted = {part.latents.names[0]: part.latents.x for part in plain}
    for part in made:
        for row, name in enumerate(part.latents.names):
            torch.testing.assert_close(part.latents.x[row : row + 1], wanted[name])
    with pytest.raises(NumericsError):
        list(encode_photos(model, batches(folder, 4), recipe(model)))


def test_batches_may_come_from_anywhere():
    model = mixture_model()
    given = [PhotoBatch([PhotoRecord("x"), PhotoRecord("y")], photos(2))]
    (made,) = encode_photos(model, given, recipe(model))
    assert made.latents.names == ["x", "y"]
