from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import gaussian_noise, relative_rms, save_pipeline_folder, tiny_unet
from model_helpers import SIZE, counted_model, cpu, mixture_model, photos
from model_helpers import encode_explicitly as encode
from torch import Tensor

import ddim_edit as de
from ddim_edit.decoding import require_repeatable
from ddim_edit.errors import ConfigError, LatentsError, NumericsError
from ddim_edit.noise import GivenNoise, SeededNoise
from ddim_edit.recipe import Recipe
from ddim_edit.schedule import Spacing
from ddim_edit.solvers import SOLVERS

ZERO_SNR = de.NoiseSchedule.from_config({"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"})


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> de.Model:
    """Three classes, the last of which stands for none."""
    network = tiny_unet(sample_size=SIZE, num_class_embeds=3)
    folder = save_pipeline_folder(tmp_path_factory.mktemp("unet") / "unet", network)
    (folder / "labels.json").write_text('{"names": ["cat", "dog", "none"], "null": 2}')
    return cpu(folder)


def encoded(model: de.Model, count: int = 2, steps: int = 10) -> de.Latents:
    return encode(model, photos(count), grid=steps, check=False)


class TestDecode:
    @pytest.mark.parametrize("spacing", ["leading", "trailing", "quadratic"])
    def test_by_default_the_grid_of_the_encoding_is_walked_back(self, spacing: Spacing):
        model = mixture_model()
        grid = de.Grid.build(model.schedule, 10, spacing)
        latents = encode(model, photos(2), grid=grid, check=False)
        seen: list[float] = []
        restored = de.decode(model, latents, on_step=lambda step: seen.append(step.level.t))
        assert seen == [level.t for level in reversed(grid[:-1])]
        assert restored.equal(de.decode(model, latents, grid=grid, solver=de.Ddim(), denoiser=model.denoiser()))

    def test_label_and_guidance_are_those_of_the_encoding(self, unet: de.Model):
        denoiser = unet.denoiser("dog", guidance=1.5)
        latents = encode(unet, photos(2), grid=5, denoiser=denoiser, check=False)
        assert latents.how["denoiser"] == {"label": 1, "guidance": 1.5}
        assert latents.photos[0].evaluations == 10
        restored = de.decode(unet, latents)
        assert restored.equal(de.decode(unet, latents, denoiser=denoiser))
        assert not restored.equal(de.decode(unet, latents, denoiser=unet.denoiser("cat")))

    def test_the_result_is_float_on_the_cpu_without_a_graph_and_not_clamped(self, unet: de.Model):
        latents = encoded(unet)
        pictures = de.decode(unet, replace(latents, x=(50 * latents.x).requires_grad_()))
        assert (pictures.shape, pictures.dtype, pictures.device.type) == ((2, 3, SIZE, SIZE), torch.float32, "cpu")
        assert not pictures.requires_grad
        assert pictures.abs().max() > 1.5

    def test_the_latents_are_left_as_they_were(self, unet: de.Model):
        latents = encoded(unet)
        before = latents.x.clone()
        de.decode(unet, latents)
        assert latents.x.equal(before)

    def test_a_random_solver_takes_the_given_noise(self):
        model = mixture_model()
        latents = encoded(model)
        random = de.Ddim(eta=1.0)
        a, b, c = (
            de.decode(model, latents, solver=random, noise=SeededNoise(seeds)) for seeds in ((0, 1), (0, 1), (2, 3))
        )
        assert a.equal(b)
        assert not a.equal(c)
        with pytest.raises(ConfigError, match="eta is 1, so the steps need noise"):
            de.decode(model, latents, solver=random)

    def test_another_models_latents_are_refused_unless_forced(self, unet: de.Model):
        other = replace(unet, fingerprint="0123456789abcdef", name="other")
        latents, before = encoded(unet), de.decode(unet, encoded(unet))
        with pytest.raises(LatentsError, match=r"model other differ in weights: .* here, 0123456789abcdef there") as e:
            de.decode(other, latents)
        assert "schedule" not in str(e.value)
        assert de.decode(other, latents, force=True).equal(before)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("solver", {"name": "future"}),
            ("solver", {"name": "ddim", "momentum": 1}),
            ("solver", {"eta": 0}),
            ("solver", "ddim"),
            ("timesteps", [0, 5000]),
            ("timesteps", ["a"]),
            ("timesteps", []),
            ("denoiser", {"map_x0": "custom"}),
            ("denoiser", {"label": 3}),
        ],
    )
    def test_what_cannot_be_restored_must_be_given(self, key: str, value: object):
        model = mixture_model()
        latents = encoded(model)
        strange = replace(latents, how={**latents.how, key: value})
        with pytest.raises(LatentsError, match=f"latents' {key} .* cannot be restored; give it explicitly"):
            de.decode(model, strange)
        given = de.decode(model, strange, grid=10, solver=de.Ddim(), denoiser=model.denoiser())
        assert given.equal(de.decode(model, latents))

    @pytest.mark.parametrize("key", ["timesteps", "solver", "denoiser"])
    def test_a_record_without_the_key(self, key: str):
        latents = encoded(mixture_model())
        poor = replace(latents, how={name: value for name, value in latents.how.items() if name != key})
        with pytest.raises(LatentsError, match=f"latents' {key} None cannot be restored"):
            de.decode(mixture_model(), poor)

    def test_partial_latents_start_at_their_own_level_of_a_whole_grid(self):
        model = mixture_model()
        latents = encode(model, photos(2), grid=de.Grid.build(model.schedule, 20).until(500), check=False)
        seen: list[float] = []
        back = de.decode(model, latents, grid=10, on_step=lambda step: seen.append(step.level.t))
        assert seen == [400, 300, 200, 100, 0, -1]
        assert relative_rms(back, de.decode(model, latents)) < 0.3

    @pytest.mark.parametrize("spacing", ["quadratic", "logsnr"])
    def test_a_number_of_steps_is_spread_as_those_of_the_latents_are(self, spacing: str):
        model = mixture_model()
        grid, expected = (de.Grid.build(model.schedule, steps, spacing) for steps in (8, 5))  # type: ignore[arg-type]
        latents = encode(model, photos(2), grid=grid, check=False)
        assert de.decode(model, latents, grid=5).equal(de.decode(model, latents, grid=expected))

    def test_no_steps_between_their_own_are_refused(self):
        model = mixture_model()
        own = de.Grid.from_timesteps(model.schedule, [100, 300, 900])
        latents = encode(model, photos(1), grid=own, check=False)
        with pytest.raises(ConfigError, match="-1 steps; choose 1 or more"):
            de.decode(model, latents, grid=-1)

    @pytest.mark.parametrize(
        ("steps", "timesteps"), [(1, [900]), (2, [100, 900]), (3, [100, 300, 900]), (5, [100, 200, 300, 600, 900])]
    )
    def test_or_between_their_own_where_no_rule_made_them(self, steps: int, timesteps: list[int]):
        model = mixture_model()
        own = de.Grid.from_timesteps(model.schedule, [100, 300, 900])
        latents = encode(model, photos(2), grid=own, check=False)
        expected = de.decode(model, latents, grid=de.Grid.from_timesteps(model.schedule, timesteps))
        assert de.decode(model, latents, grid=steps).equal(expected)

    def test_partial_latents_at_no_level_of_the_grid(self):
        model = mixture_model()
        latents = encode(model, photos(2), grid=de.Grid.build(model.schedule, 20).until(450), check=False)
        with pytest.raises(LatentsError, match="the latents are at t = 450, which is no level of this grid"):
            de.decode(model, latents, grid=10)

    def test_partial_latents_above_the_whole_grid(self):
        model = mixture_model()
        grid = de.Grid.build(model.schedule, 20)
        latents = encode(model, photos(2), grid=grid.until(500), check=False)
        with pytest.raises(LatentsError, match="the latents are at t = 500, which is no level of this grid"):
            de.decode(model, latents, grid=grid.until(300))

    @pytest.mark.parametrize("spacing", ["leading", "linspace", "quadratic"])
    def test_noise_is_not_decoded_from_a_level_where_photos_show_through(self, spacing: str):
        model, grid = mixture_model(), lambda n: de.Grid.build(mixture_model().schedule, n, spacing)
        latents = encode(model, photos(2), grid=20, check=False)
        with pytest.raises(LatentsError, match=r"the latents are noise \(t = .*\), and this grid begins at t = 0,"):
            de.decode(model, latents, grid=grid(1))
        assert de.decode(model, latents, grid=grid(6)).isfinite().all()

    def test_latents_of_another_shape(self):
        model = mixture_model()
        latents = replace(encoded(model), x=torch.zeros(2, 3, SIZE, 8))
        with pytest.raises(ConfigError, match=r"x_T is \(3, 12, 8\), but the model takes \(3, 12, 12\)"):
            de.decode(model, latents)

    def test_the_state_is_never_half_precision(self):
        model = mixture_model()
        for dtype in (torch.float16, torch.bfloat16):
            latents = encoded(model)
            with pytest.raises(ConfigError, match=rf"x_T is {dtype}; give float32 or float64"):
                de.decode(model, replace(latents, x=latents.x.to(dtype)))

    def test_a_level_without_signal_for_an_epsilon_network(self):
        model, calls = counted_model(schedule=ZERO_SNR)
        recipe = Recipe(de.Grid.build(ZERO_SNR, 5), de.Ddim(), model.denoiser())
        latents = de.Latents(photos(1), recipe.grid[5], model.space, recipe.to_json())
        for run in (lambda: de.decode(model, latents), lambda: de.sample(model, [0], grid=5)):
            with pytest.raises(ConfigError, match="an epsilon model cannot use t = 999, where no signal is left"):
                run()
        assert calls == []

    def test_a_network_that_breaks_down_stops_the_run_with_the_number_of_the_step(self):
        def network(x: Tensor, t: Tensor) -> Tensor:
            return torch.full_like(x, torch.nan if t[0] < 700 else 0.0)

        model = de.Model.from_function(network, mixture_model().schedule, (3, SIZE, SIZE))
        with pytest.raises(NumericsError, match=r"not finite after step 4 of 10 \(t = 500\)"):
            de.sample(model, [0], grid=10)


class TestSample:
    def test_seeds_make_the_same_bits_in_any_order_of_a_batch(self, unet: de.Model):
        pictures = de.sample(unet, [0, 1, 2, 3], grid=5)
        for order in ([3, 2, 1, 0], [1, 3, 0, 2]):
            assert de.sample(unet, order, grid=5).equal(pictures[order])

    @pytest.mark.parametrize("eta", [0.0, 1.0])
    def test_seeds_make_the_same_picture_in_any_batch(self, unet: de.Model, eta: float):
        def draw(*seeds: int) -> Tensor:
            return de.sample(unet, seeds, grid=5, solver=de.Ddim(eta))

        batch = draw(5, 6, 7)
        for row, seed in enumerate((5, 6, 7)):
            assert relative_rms(draw(seed)[0], batch[row]) < 1e-5
        assert not draw(5).equal(draw(6))

    def test_micro_batches_make_the_same_bits_in_every_batch(self, unet: de.Model):
        model = unet.micro_batched(4)
        pictures = de.sample(model, range(8), grid=5)
        assert de.sample(model, [6], grid=5).equal(pictures[6:7])
        assert de.sample(model, [5, 2, 7], grid=5).equal(pictures[[5, 2, 7]])

    def test_seeds_stand_for_their_gaussian_noise(self, unet: de.Model):
        x_t = de.gaussian([3, 4], unet.shape)
        assert de.sample(unet, x_t, grid=5).equal(de.sample(unet, [3, 4], grid=5))

    def test_given_noise_takes_the_place_of_the_seeds(self):
        model = mixture_model()
        noise = gaussian_noise(0, 5, 2, *model.shape).float()
        random = de.Ddim(eta=1.0)
        x_t = de.gaussian([3, 4], model.shape)
        given, same = (de.sample(model, x, grid=5, solver=random, noise=GivenNoise(noise)) for x in ([3, 4], x_t))
        assert given.equal(same)
        assert not given.equal(de.sample(model, [3, 4], grid=5, solver=random))

    def test_given_x_needs_given_noise(self):
        with pytest.raises(ConfigError, match="the steps need noise"):
            de.sample(mixture_model(), photos(1), grid=5, solver=de.Ddim(eta=0.5))

    def test_the_condition_matters(self, unet: de.Model):
        cat, dog, none = (de.sample(unet, [0], grid=5, denoiser=unet.denoiser(label)) for label in ("cat", "dog", None))
        assert not cat.equal(dog)
        assert none.equal(de.sample(unet, [0], grid=5))

    def test_grids_as_levels_numbers_and_respacings(self):
        model = mixture_model()
        number = de.sample(model, [0], grid=10)
        assert number.equal(de.sample(model, [0], grid="ddim10"))
        assert number.equal(de.sample(model, [0], grid=de.Grid.build(model.schedule, 10)))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.int64])
    def test_noise_of_another_type_or_shape(self, dtype: torch.dtype):
        with pytest.raises(ConfigError, match=f"x_T is {dtype}; give float32 or float64"):
            de.sample(mixture_model(), torch.zeros(1, 3, SIZE, SIZE, dtype=dtype), grid=5)
        with pytest.raises(ConfigError, match=r"x_T is \(3, 8, 8\), but the model takes \(3, 12, 12\)"):
            de.sample(mixture_model(), torch.zeros(1, 3, 8, 8), grid=5)

    def test_the_same_noise_gives_like_pictures_at_any_number_of_steps(self):
        """Consistency (DDIM, section 5.2)."""
        model = mixture_model()
        few, many, other = (de.sample(model, [seed], grid=steps) for seed, steps in ((0, 20), (0, 200), (1, 200)))
        assert relative_rms(few, many) < 0.5 * relative_rms(other, many)


def test_the_lattice_needs_float64():
    model = replace(mixture_model().micro_batched(4), device=torch.device("mps"))
    with pytest.raises(ConfigError, match="solver lattice needs float64, which mps lacks"):
        require_repeatable(model, SOLVERS["lattice"]())


class TestSeedLatents:
    @pytest.mark.parametrize("solver", [de.Ddim(), de.Ddim(eta=0.5), de.Ddim(1.0, sigma_hat=True)])
    def test_they_decode_to_what_sample_draws(self, unet: de.Model, solver: de.Ddim, tmp_path: Path):
        latents = de.seed_latents(unet, [3, 8], grid=4, solver=solver, denoiser=unet.denoiser("cat"))
        drawn = de.sample(unet, [3, 8], grid=4, solver=solver, denoiser=unet.denoiser("cat"))
        assert de.decode(unet, latents).equal(drawn)
        assert latents.names == ["seed0003", "seed0008"]
        latents.save(tmp_path / "seeds.safetensors")
        assert de.decode(unet, de.Latents.load(tmp_path / "seeds.safetensors")).equal(drawn)
        assert de.decode(unet, latents.select([1, 0])).flip(0).sub(drawn).abs().max() < 1e-5

    def test_noise_of_another_number_of_steps_is_refused_and_other_noise_taken(self):
        model = mixture_model()
        latents = de.seed_latents(model, [0], grid=4, solver=de.Ddim(eta=1.0))
        with pytest.raises(LatentsError, match="carry noise for 4 steps, but this grid has 7"):
            de.decode(model, latents, grid=8)
        assert de.decode(model, latents, grid=8, solver=de.Ddim()).isfinite().all()
        other = de.decode(model, latents, noise=SeededNoise((1,)))
        assert not other.equal(de.decode(model, latents))

    def test_seeds_of_numpy_can_be_saved(self, tmp_path: Path):
        model = mixture_model()
        ours = de.seed_latents(model, np.arange(2), grid=5)  # pyright: ignore[reportArgumentType]
        ours.save(tmp_path / "a.safetensors")
        assert ours.x.equal(de.seed_latents(model, [0, 1], grid=5).x)

    def test_no_seeds(self):
        with pytest.raises(ConfigError, match="no seeds"):
            de.seed_latents(mixture_model(), [])
