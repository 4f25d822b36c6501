import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import relative_rms, save_pipeline_folder, tiny_unet
from model_helpers import SIZE, bundled_model, counted_model, cpu, mixture_model, photos
from model_helpers import encode_explicitly as encode
from torch import Tensor

import ddim_edit as de
from ddim_edit.errors import ConfigError, InversionError, NumericsError
from ddim_edit.latents import PhotoRecord
from ddim_edit.metrics import LatentHealth, Quality
from ddim_edit.ode import Step

TYPES = [str(kind) for kind in de.PredictionType]
HEALTHY = LatentHealth(rms=1.0, excess_kurtosis=0.0, neighbour_correlation=0.0)
ZERO_SNR = de.NoiseSchedule.from_config({"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"})


def quality(psnr: float) -> Quality:
    return Quality(mse=10 ** (-psnr / 10), psnr=psnr, ssim=0.9, max_error=0.1, changed_8bit=0.5)


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> de.Model:
    return cpu(save_pipeline_folder(tmp_path_factory.mktemp("unet") / "unet", tiny_unet(sample_size=SIZE)))


@pytest.fixture
def garments(request: pytest.FixtureRequest) -> Tensor:
    """Eight photos (8, 3, 64, 64) of the kind that the bundled model knows; its own samples if there is no data."""
    try:
        folder: Path = request.getfixturevalue("data_folder")
    except pytest.skip.Exception:
        return de.sample(bundled_model(), range(8), grid=10).clamp(-1, 1)
    with np.load(folder / "garments64_test.npz") as archive:
        return torch.from_numpy(archive["images"][:8]).permute(0, 3, 1, 2) / 127.5 - 1


class TestRoundTrip:
    def errors(self, model: de.Model, steps: tuple[int, ...], until: float = 999) -> list[float]:
        """Relative RMS of decode after encode."""
        x = photos(3)
        grids = [de.Grid.build(model.schedule, count).until(until) for count in steps]
        return [relative_rms(de.decode(model, encode(model, x, grid=grid, check=False)), x) for grid in grids]

    @pytest.mark.parametrize("prediction", TYPES)
    @pytest.mark.parametrize("until", [999, 400])
    def test_the_error_of_decode_after_encode_falls_with_the_steps(self, prediction: str, until: float):
        errors = self.errors(mixture_model(prediction), (10, 40, 160), until)
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < 0.1

    def test_so_it_does_with_a_random_unet(self, unet: de.Model):
        few, many = self.errors(unet, (20, 80), until=300)
        assert many < 0.4 * few

    @pytest.mark.parametrize(
        ("schedule", "spacing"),
        [("linear", "quadratic"), ("scaled_linear", "quadratic-full"), ("squaredcos_cap_v2", "quadratic-full")],
    )
    def test_by_default_photos_become_noise_whatever_the_schedule(self, schedule: str, spacing: str):
        betas = {"beta_start": 0.00085, "beta_end": 0.012} if schedule == "scaled_linear" else {}
        model = mixture_model(schedule=de.NoiseSchedule.from_config({"beta_schedule": schedule, **betas}))
        latents = de.encode(model, photos(2))
        assert latents.how["spacing"] == spacing
        assert latents.whole
        for record in latents.photos:
            assert record.quality is not None
            assert record.quality.changed_8bit == 0

    def test_part_of_the_way_ends_where_the_grid_ends(self):
        model = mixture_model()
        grid = de.Grid.build(model.schedule, 100).until(405)
        latents = encode(model, photos(2), grid=grid, check=False)
        assert latents.level == model.schedule.level(400)
        assert latents.how["timesteps"] == [10.0 * k for k in range(41)]
        assert latents.photos[0].evaluations == 41

    def test_part_of_the_way_is_a_beginning_of_the_whole_way(self):
        model, x = mixture_model(), photos(2)
        grid = de.Grid.build(model.schedule, 20)
        whole = encode(model, x, grid=grid, trajectory_every=1, check=False)
        assert whole.trajectory is not None
        for k in (1, 7, 20):
            part = encode(model, x, grid=grid.until(grid[k].t), check=False)
            assert part.x.equal(whole.trajectory[k - 1])

    def test_decoding_on_other_grids(self):
        model, x = mixture_model(), photos(3)
        latents = encode(model, x, grid=100, check=False)
        errors = [relative_rms(de.decode(model, latents, grid=grid), x) for grid in (10, 20, 50)]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < 0.2
        assert de.decode(model, latents, grid="ddim50").equal(de.decode(model, latents, grid=50))


class TestWhatIsRecorded:
    def test_a_trajectory_keeps_every_kth_state(self):
        model, x = mixture_model(), photos(2)
        seen: dict[float, Tensor] = {}

        def watch(step: Step) -> None:
            seen[step.level.t] = step.state.x

        latents = encode(model, x, grid=20, trajectory_every=5, check=False, on_step=watch)
        assert latents.trajectory is not None
        assert latents.trajectory_t == (200.0, 450.0, 700.0, 950.0)
        assert latents.trajectory.shape == (4, *x.shape)
        for t, state in zip(latents.trajectory_t, latents.trajectory, strict=True):
            assert state.equal(seen[t])
        assert latents.trajectory[-1].equal(latents.x)

    def test_no_trajectory_unless_it_is_asked_for(self):
        latents = encode(mixture_model(), photos(1), grid=5, check=False)
        assert (latents.trajectory, latents.trajectory_t) == (None, ())

    def test_the_self_check_is_the_quality_of_a_decode(self):
        model, x = mixture_model(), photos(3)
        latents = encode(model, x, grid=10)
        assert [record.quality for record in latents.photos] == de.compare(x, de.decode(model, latents))
        bare = encode(model, x, grid=10, check=False)
        assert [record.quality for record in bare.photos] == [None] * 3
        assert bare.x.equal(latents.x)

    def test_the_self_check_is_not_counted_and_can_be_saved(self):
        costs: dict[bool, int] = {}
        for check in (True, False):
            model, calls = counted_model()
            latents = encode(model, photos(2), grid=10, check=check)
            costs[check] = len(calls)
            assert [record.evaluations for record in latents.photos] == [10, 10]
        assert costs == {True: 20, False: 10}

    @pytest.mark.parametrize("steps", [1, 10, 50])
    def test_health_of_whole_encodings(self, steps: int):
        latents = encode(mixture_model(), photos(2), grid=de.Grid.build(de.NoiseSchedule.from_config({}), steps))
        if steps == 1:  # t = 0 alone: x is still the photo
            assert [record.health for record in latents.photos] == [None, None]
        else:
            assert [record.health for record in latents.photos] == de.latent_health(latents.x)

    def test_no_health_of_partial_encodings(self):
        model = mixture_model()
        grid = de.Grid.build(model.schedule, 50)
        for t, healthy in ((400, False), (600, False), (700, True)):
            (record,) = encode(model, photos(1), grid=grid.until(t), check=False).photos
            assert (record.health is not None) is healthy

    def test_where_and_how_it_was_made(self):
        model = mixture_model()
        latents = encode(model, photos(1), grid=de.Grid.build(model.schedule, 5, "trailing"), check=False)
        assert latents.space == model.space
        assert latents.how == {
            "timesteps": [199.0, 399.0, 599.0, 799.0, 999.0],
            "spacing": "trailing",
            "solver": {"name": "ddim", "eta": 0.0, "sigma_hat": False},
            "inverse": {"name": "explicit", "at": "source"},
            "denoiser": {},
        }
        assert latents.level == model.schedule.level(999)


class TestSameNumbers:
    def test_the_same_run_twice_is_the_same_file(self, unet: de.Model, tmp_path: Path):
        files = [tmp_path / name for name in "ab"]
        for file in files:
            encode(unet, photos(3), grid=5, trajectory_every=2).save(file)
        assert files[0].read_bytes() == files[1].read_bytes()

    def test_the_photos_are_left_as_they_were(self, unet: de.Model):
        x = photos(2)
        before = x.clone()
        encode(unet, x, grid=3)
        assert x.equal(before)

    @pytest.mark.parametrize("layout", ["channels last", "transposed", "strided", "expanded"])
    def test_the_memory_layout_does_not_matter_to_a_bit(self, unet: de.Model, layout: str):
        x = photos(2)
        if layout == "expanded":
            x = x[:1].expand(2, -1, -1, -1)
        given = {
            "channels last": x.to(memory_format=torch.channels_last),
            "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
            "strided": torch.stack([x, x], dim=-1)[..., 0],
            "expanded": x,
        }[layout]
        assert not given.is_contiguous()
        plain = encode(unet, x.contiguous(), grid=5, check=False)
        assert encode(unet, given, grid=5, check=False).x.equal(plain.x)
        turned = replace(plain, x=plain.x.to(memory_format=torch.channels_last))
        assert de.decode(unet, turned).equal(de.decode(unet, plain))

    def test_every_layout_reaches_the_network_as_the_plain_one(self):
        plain: list[bool] = []

        def network(x: Tensor, t: Tensor) -> Tensor:
            plain.append(x.is_contiguous())
            return torch.zeros_like(x)

        model = de.Model.from_function(network, mixture_model().schedule, (3, SIZE, SIZE))
        encode(model, photos(2).to(memory_format=torch.channels_last), grid=3)
        de.sample(model, photos(2).to(memory_format=torch.channels_last), grid=3)
        assert plain == [True] * 9

    def test_a_batch_of_eight_and_of_one_agree_on_the_bundled_model(self, garments: Tensor):
        batch = encode(bundled_model(), garments, grid=10, check=False).x
        for row in (0, 7):
            alone = encode(bundled_model(), garments[row : row + 1], grid=10, check=False).x
            assert (alone - batch[row]).abs().max() < 1e-4

    def test_float64_photos_are_encoded_in_float64(self):
        model, x = mixture_model(), photos(2)
        double = encode(model, x.double(), grid=20, check=False)
        assert double.x.dtype == torch.float64
        assert relative_rms(encode(model, x, grid=20, check=False).x, double.x) < 1e-5


class TestRefused:
    @pytest.mark.parametrize(
        ("shape", "message"),
        [
            *dict.fromkeys(
                [(3, SIZE, 8), (1, 1, SIZE, SIZE), (1, 3, SIZE, 8), (1, 4, SIZE, SIZE)],
                r"pixels are .*, but mixture takes \(B, 3, 12, 12\); resize them",
            ).items(),
            ((3, SIZE, SIZE), r"pixels are \(3, 12, 12\), one photo; give a batch, as photo\[None\]"),
            ((0, 3, SIZE, SIZE), "there are no photos"),
        ],
    )
    def test_pixels_of_another_shape(self, shape: tuple[int, ...], message: str):
        model, calls = counted_model()
        with pytest.raises(ConfigError, match=message):
            encode(model, torch.zeros(shape), grid=5)
        assert calls == []

    @pytest.mark.parametrize("value", [5.01, -5.01, 255.0, math.nan, math.inf])
    def test_pixels_outside_the_range(self, value: float):
        model, calls = counted_model()
        x = photos(2)
        x[1, 2, 3, 4] = value
        with pytest.raises(ConfigError, match=r"not finite or not in \[-1, 1\]; scale 8-bit values"):
            encode(model, x, grid=5)
        assert calls == []

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float16, torch.bfloat16])
    def test_pixels_of_another_type(self, dtype: torch.dtype):
        model, calls = counted_model()
        with pytest.raises(ConfigError, match=rf"pixels are {dtype}; give float32 or float64"):
            encode(model, torch.zeros(1, 3, SIZE, SIZE, dtype=dtype), grid=5)
        assert calls == []

    @pytest.mark.parametrize("eta", [0.1, 1.0])
    def test_random_solvers(self, eta: float):
        model, calls = counted_model()
        with pytest.raises(InversionError, match="is random, so nothing can be encoded with it"):
            encode(model, photos(1), grid=5, solver=de.Ddim(eta))
        assert calls == []

    def test_a_level_without_signal_for_an_epsilon_network(self):
        model, calls = counted_model(schedule=ZERO_SNR)
        with pytest.raises(ConfigError, match="an epsilon model cannot use t = 999, where no signal is left"):
            encode(model, photos(1), grid=5)
        assert calls == []

    @pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
    def test_the_other_networks_can_use_it(self, prediction: str):
        latents = encode(mixture_model(prediction, ZERO_SNR), photos(1), grid=50, check=False)
        assert latents.level.signal == 0

    def test_a_network_that_breaks_down_stops_the_run_with_the_number_of_the_step(self):
        schedule = mixture_model().schedule
        for value in (math.nan, math.inf):

            def network(x: Tensor, t: Tensor, value: float = value) -> Tensor:
                return torch.full_like(x, value if t[0] > 300 else 0.0)

            model = de.Model.from_function(network, schedule, (3, SIZE, SIZE))
            with pytest.raises(NumericsError, match=r"not finite after step 6 of 10 \(t = 500\)"):
                encode(model, photos(1), grid=10)  # the sixth step leaves t = 400

    def test_nothing_is_left_of_a_graph(self):
        model = mixture_model()
        assert not encode(model, photos(1).requires_grad_(), grid=3).x.requires_grad


def test_on_step_sees_the_encoding_and_then_the_self_check():
    seen: list[tuple[int, float]] = []

    def watch(step: Step) -> None:
        seen.append((step.index, step.level.t))

    encode(mixture_model(), photos(1), grid=3, on_step=watch)
    assert seen == [(1, 0.0), (2, 333.0), (3, 666.0), (1, 333.0), (2, 0.0), (3, -1.0)]


def test_on_step_may_replace_the_state():
    model, x = mixture_model(), photos(1)
    zero = encode(
        model, x, grid=3, check=False, on_step=lambda step: replace(step.state, x=torch.zeros_like(step.state.x))
    )
    assert zero.x.eq(0).all()


class TestAdvice:
    def test_none_where_all_is_well(self):
        assert de.advice(PhotoRecord()) == []
        assert de.advice(PhotoRecord(quality=quality(30.0), health=HEALTHY)) == []
        assert de.advice(PhotoRecord(quality=quality(math.inf), health=HEALTHY)) == []

    def test_a_photo_that_comes_back_changed(self):
        (line,) = de.advice(PhotoRecord(quality=quality(29.94), health=HEALTHY))
        assert "29.9 dB, visibly changed; use more steps (-n)" in line

    def test_a_latent_that_is_no_noise(self):
        (line,) = de.advice(PhotoRecord(quality=quality(40), health=replace(HEALTHY, rms=0.43)))
        assert "rms 0.43" in line

    def test_one_line_for_each_problem(self):
        record = PhotoRecord(quality=quality(12), health=replace(HEALTHY, neighbour_correlation=0.5))
        assert len(de.advice(record)) == 2
        (line,) = de.advice(PhotoRecord(health=HEALTHY, second_health=replace(HEALTHY, rms=0.43)))  # of a pair
        assert "rms 0.43" in line
        assert all("\n" not in line for line in de.advice(record))


def test_both_halves_of_a_pair_are_named_once():
    bad = LatentHealth(0.5, 0.0, 0.0)
    assert len(de.advice(PhotoRecord(health=bad, second_health=bad))) == 1
