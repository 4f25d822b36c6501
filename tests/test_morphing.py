import itertools
from dataclasses import replace
from types import GeneratorType

import numpy as np
import pytest
import torch
from helpers import relative_rms, save_pipeline_folder, tiny_unet
from model_helpers import SIZE, counted_model, cpu, mixture_model, photos
from torch import Tensor

import ddim_edit as de
from ddim_edit.errors import ConfigError, LatentsError
from ddim_edit.inversion import with_health
from ddim_edit.models.base import Labels
from ddim_edit.morphing import plan_morph
from ddim_edit.motion import Motion
from ddim_edit.ode import Step
from ddim_edit.pacing import EASES, Steps, dissimilarity, l2
from ddim_edit.perception import FeatureDistance
from ddim_edit.solvers import Leapfrog

UNPACED = Motion(pace="none", path="slerp")


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> de.Model:
    """Three classes, the last of which stands for none."""
    network = tiny_unet(sample_size=SIZE, num_class_embeds=3)
    folder = save_pipeline_folder(tmp_path_factory.mktemp("unet") / "unet", network)
    (folder / "labels.json").write_text('{"names": ["cat", "dog", "none"], "null": 2}')
    return cpu(folder)


def encoded(model: de.Model, count: int = 2, steps: int = 5) -> de.Latents:
    return de.encode(
        model, photos(count), grid=de.Grid.build(model.schedule, steps), inverse=de.Explicit(), check=False
    )


class TestFrames:
    @pytest.mark.parametrize("motion", [UNPACED, Motion(pilot=3), Motion(loop="closed", pilot=3)])
    @pytest.mark.parametrize(("keys", "frames", "batch"), [(2, 2, 8), (2, 9, 4), (3, 3, 1), (4, 5, 8)])
    def test_they_are_counted_exactly(self, motion: Motion, keys: int, frames: int, batch: int):
        model = mixture_model()
        made = list(de.morph(model, encoded(model, keys, 3), frames, motion, batch_size=batch))
        assert [frame.shape for frame in made] == [(3, SIZE, SIZE)] * frames

    @pytest.mark.parametrize("motion", [UNPACED, replace(UNPACED, path=None)])
    def test_every_photo_falls_on_a_frame_of_its_own(self, unet: de.Model, motion: Motion):
        latents = encoded(unet, 3)
        frames = torch.stack(list(de.morph(unet, latents, 7, motion, batch_size=7)))
        keys = de.decode(unet, latents)
        for key, frame in enumerate((0, 3, 6)):
            assert relative_rms(frames[frame], keys[key]) < 1e-4

    @pytest.mark.parametrize("batch", [1, 4])
    def test_the_ends_are_the_decoded_keys_bit_for_bit_in_batches_of_one_size(self, unet: de.Model, batch: int):
        latents = encoded(unet)
        frames = list(de.morph(unet, latents, 2 * batch, Motion(pilot=3), batch_size=batch))
        assert frames[0].equal(de.decode(unet, latents.select([0] * batch))[0])
        assert frames[-1].equal(de.decode(unet, latents.select([1] * batch))[-1])

    def test_micro_batches_make_the_same_bits_for_every_batch_size(self, unet: de.Model):
        model = unet.micro_batched(4)
        latents = encoded(model)
        made = [torch.stack(list(de.morph(model, latents, 6, Motion(pilot=4), batch_size=n))) for n in (1, 4, 5, 8)]
        assert all(other.equal(made[0]) for other in made[1:])
        keys = de.decode(model, latents)
        assert made[0][0].equal(keys[0])
        assert made[0][-1].equal(keys[1])

    def test_only_one_batch_is_decoded_at_a_time(self):
        model, calls = counted_model()
        latents = encoded(model, 2, 3)
        calls.clear()
        frames = de.morph(model, latents, 10, UNPACED, batch_size=4)
        assert isinstance(frames, GeneratorType)
        assert calls == []
        after: list[list[int]] = []
        for _ in range(10):
            next(frames)
            after.append(list(calls))
        one, two, three = [4] * 3, [4] * 6, [4] * 6 + [2] * 3
        assert after == [one] * 4 + [two] * 4 + [three] * 2

    def test_they_start_from_the_path_between_the_keys(self):
        model = mixture_model()
        latents = encoded(model, 3, 3)
        for how in ("slerp", "lerp", "squad"):
            seen: list[Tensor] = []

            def network(x: Tensor, t: Tensor, condition: object, seen: list[Tensor] = seen) -> Tensor:
                seen.append(x)
                return x

            list(de.morph(replace(model, network=network), latents, 5, Motion(path=how, pace="none")))
            assert seen[0].equal(de.along(latents.x, torch.arange(5) / 2, how))

    def test_on_another_grid_with_fewer_steps(self):
        model = mixture_model()
        latents = encoded(model, 2, 20)
        seen: list[Step] = []
        frames = list(de.morph(model, latents, 2, UNPACED, grid=5, on_step=seen.append))
        assert len(seen) == 5
        assert torch.stack(frames).equal(de.decode(model, latents, grid=5))

    def test_the_recipe_of_the_keys_is_kept(self, unet: de.Model):
        latents = de.encode(unet, photos(2), grid=4, denoiser=unet.denoiser("cat"), check=False)
        frames = list(itertools.islice(de.morph(unet, latents, 4, UNPACED, batch_size=4), 4))
        assert frames[0].equal(de.decode(unet, latents.select([0, 0, 0, 0]))[0])


class TestPace:
    @pytest.mark.parametrize("pace", ["l2", "ssim", "unet", l2])
    def test_paced_steps_are_more_even(self, unet: de.Model, pace):
        latents = de.seed_latents(unet, [0, 1, 2], grid=4)
        distance = dissimilarity if pace == "ssim" else l2
        even, paced = (
            Steps.of(de.morph(unet, latents, 25, Motion(pace=p, pilot=13)), distance) for p in ("none", pace)
        )
        assert paced.smoothness > even.smoothness
        if pace in ("l2", l2):
            assert 1 - paced.smoothness < 0.2 * (1 - even.smoothness)
            assert paced.largest_over_median < 1.2

    def test_the_plan_says_what_it_cost(self):
        model, calls = counted_model()
        latents = encoded(model, 3, 4)
        calls.clear()
        plan = plan_morph(model, latents, 9, Motion(pilot=5, endpoints="exact"), photos=photos(3))
        assert sum(calls) == plan.looked * plan.cost == (2 * 4 + 1 + 3) * 4
        assert plan.looked == plan.motion.met(3) + plan.motion.pilots(3, 9)

    def test_passes_over_the_frames_make_steps_more_even(self, unet: de.Model):
        latents = de.seed_latents(unet, [0, 1], grid=4)
        plans = [plan_morph(unet, latents, 25, Motion(pilot=9, settle=n)) for n in (0, 1, 2)]
        uneven = [1 - Steps.of(plan.frames(unet)).smoothness for plan in plans]
        assert uneven[2] < uneven[1] < uneven[0] / 2

    def test_passes_over_a_loop_keep_its_keys_and_cost_the_frames_and_the_key_that_closes_it(self, unet: de.Model):
        latents = de.seed_latents(unet, [0, 1, 2], grid=4)
        for passes in (0, 2):
            plan = plan_morph(unet, latents, 10, Motion(pilot=4, settle=passes, loop="closed"))
            assert {0.0, 1.0, 2.0} <= set(plan.positions.tolist())
            assert plan.looked == plan.motion.pilots(3, 10) == 10 + passes * 11

    def test_max_step_decides_the_number_of_frames(self):
        model = mixture_model()
        plans = [plan_morph(model, encoded(model), 5, Motion(max_step=bound)) for bound in (0.01, 0.005)]
        assert len(plans[0].positions) < len(plans[1].positions)
        assert max(Steps.of(plans[1].frames(model)).lengths) <= 0.00501

    def test_features_are_asked_of_the_network(self):
        model = mixture_model()
        with pytest.raises(ConfigError, match="mixture shows no features to pace by; choose l2 or ssim"):
            plan_morph(model, encoded(model), 5, Motion(pace="unet"))

    def test_features_of_a_model_that_needs_a_label_are_those_of_the_keys(self, unet: de.Model):
        model = replace(unet, labels=Labels(2))
        with pytest.raises(ConfigError, match="needs a label and has none for 'no label'"):
            FeatureDistance(model)
        latents = de.seed_latents(model, [0, 1], grid=4, denoiser=model.denoiser(1))
        assert plan_morph(model, latents, 5, Motion(pace="unet", pilot=3)).compared == 3

    def test_features_of_another_picture_are_not_taken_for_those_of_the_first(self, unet: de.Model):
        distance, (a, b) = FeatureDistance(unet), photos(2)
        assert distance(a, b) == distance(a, b) > 0

    def test_features_see_the_photo_at_its_level(self, unet: de.Model):
        seen: list[Tensor] = []

        def show(x: Tensor, t: Tensor, condition: object) -> list[Tensor]:
            seen.append(x)
            return [x]

        model, photo = replace(unet, features=show), photos(1)[0]
        FeatureDistance(model)(photo, photo)
        level = model.schedule.level(0.05 * len(model.schedule))
        torch.testing.assert_close(seen[0][0], level.signal * photo)

    def test_features_are_asked_once_for_each_picture(self, unet: de.Model):
        plan = plan_morph(unet, encoded(unet, 3, 1), 5, Motion(pace="unet", pilot=4))
        assert (plan.looked, plan.compared) == (7, 7)
        distance, (a, b) = FeatureDistance(unet), photos(2)
        assert distance(a, a) == 0
        assert distance(a, b) == pytest.approx(distance(b, a))
        assert distance(a, b) > 0

    def test_features_come_from_fine_to_coarse_and_leave_no_hook(self, unet: de.Model):
        assert unet.features is not None
        x, t = photos(2), torch.full((2,), 50.0)
        fine, coarse = unet.features(x, t, unet.condition("cat"))
        assert (fine.shape[0], fine.shape[2]) == (2, SIZE // 2)
        assert coarse.shape[2:] == (SIZE // 2, SIZE // 2)
        again = unet.features(x, t, unet.condition("cat"))
        assert len(again) == 2
        assert again[0].equal(fine)


class TestLoops:
    def test_a_closed_clip_has_no_seam_and_no_repeated_frame(self):
        model = mixture_model()
        frames = list(de.morph(model, encoded(model, 5), 60, Motion(loop="closed", pilot=13)))
        steps = Steps.of(frames, loop=True)
        assert steps.repeated == 0
        assert 0.5 < (steps.seam_over_median or 0) < 2
        assert steps.largest_over_median < 1.5
        pixels = torch.stack(frames).flatten(1)
        assert torch.pdist(pixels.double()).min() > 0  # no frame twice, wherever it lies

    def test_a_boomerang_comes_back_the_way_it_went(self):
        model, calls = counted_model()
        latents = encoded(model, 3, 3)
        plan = plan_morph(model, latents, 10, replace(UNPACED, loop="boomerang"))
        assert plan.order == [0, 1, 2, 3, 4, 5, 4, 3, 2, 1]
        calls.clear()
        frames = list(plan.frames(model, batch_size=3))
        assert len(frames) == 10
        for k in range(1, 5):
            torch.testing.assert_close(frames[k], frames[10 - k], rtol=0, atol=1e-4)
        assert Steps.of(frames, loop=True).repeated == 0

    def test_a_boomerang_has_an_even_number_of_frames(self):
        with pytest.raises(ConfigError, match="frames=9 but a boomerang has an even number; choose 10"):
            Motion(loop="boomerang").check(2, 9)

    @pytest.mark.parametrize("count", [3, 20])
    def test_many_keys_and_a_repeated_one(self, count: int):
        model = mixture_model()
        latents = encoded(model, count, 2).select([0, *range(count)])
        frames = list(de.morph(model, latents, 3 * count, Motion(loop="closed", pilot=3)))
        assert len(frames) == 3 * count
        assert torch.stack(frames).isfinite().all()


class TestEndpoints:
    def clip(self, endpoints: str, photos_: Tensor, latents: de.Latents) -> list[Tensor]:
        motion = Motion(endpoints=endpoints, pilot=9)  # type: ignore[arg-type]
        return list(de.morph(mixture_model(), latents, 33, motion, photos=photos_))

    def test_exact_meets_the_photos_without_the_pop_of_paste(self):
        given = photos(2)
        latents = encoded(mixture_model(), 2, 3)  # so few steps that keys decode far from their photos
        decoded, paste, exact = (self.clip(kind, given, latents) for kind in ("decoded", "paste", "exact"))
        for clip in (paste, exact):
            assert float((clip[0] - given[0]).abs().max()) < 1e-6
            assert float((clip[-1] - given[1]).abs().max()) < 1e-6
        assert float((decoded[0] - given[0]).abs().max()) > 0.05
        assert all(a.equal(b) for a, b in zip(decoded[1:-1], paste[1:-1], strict=True))
        pops = {len(clip): Steps.of(clip) for clip in (paste, exact)}
        assert pops  # both have 33 frames
        assert Steps.of(paste).largest_over_median > 3
        assert Steps.of(exact).largest_over_median < 2

    def test_the_residual_fades_from_key_to_key(self):
        model, given = mixture_model(), photos(3)
        plan = plan_morph(
            model, encoded(model, 3, 3), 9, replace(UNPACED, endpoints="exact", loop="closed"), photos=given
        )
        assert plan.residuals is not None
        bare = torch.stack(list(replace(plan, photos=None).frames(model)))
        frames = torch.stack(list(plan.frames(model)))
        a, b, c = plan.residuals
        want = [a, (2 * a + b) / 3, (a + 2 * b) / 3, b, (2 * b + c) / 3, (b + 2 * c) / 3, c, (2 * c + a) / 3]
        torch.testing.assert_close((frames - bare)[:8], torch.stack(want), rtol=0, atol=1e-5)

    def test_the_quality_of_the_keys_is_known(self):
        model = mixture_model()
        plan = plan_morph(model, encoded(model, 2, 3), 9, Motion(endpoints="exact", pilot=3), photos=photos(2))
        (expected, _) = de.compare(photos(2), de.decode(model, encoded(model, 2, 3)))
        assert plan.latents.photos[0].quality == expected
        assert any("comes back with" in line for line in plan.warnings)

    def test_photos_must_be_there_and_fit(self):
        model = mixture_model()
        with pytest.raises(ConfigError, match="endpoints=exact needs the photos; give them, or choose decoded"):
            plan_morph(model, encoded(model), 5, Motion(endpoints="exact"))
        with pytest.raises(ConfigError, match=r"photos are \(3, 3, 12, 12\) for 2 latents"):
            plan_morph(model, encoded(model), 5, Motion(endpoints="paste"), photos=photos(3))


class TestNoises:
    def test_at_eta_above_0_the_step_noise_is_interpolated_too(self, unet: de.Model):
        latents = de.seed_latents(unet, [0, 1], grid=4, solver=de.Ddim(eta=1.0))
        plan = plan_morph(unet, latents, 3, UNPACED)
        between = plan.between(plan.positions)
        assert between.noises is not None
        assert latents.noises is not None
        for step in range(4):
            want = de.slerp(latents.noises[step, 0], latents.noises[step, 1], 0.5)
            assert between.noises[step, 1].equal(want)
        drawn = de.sample(unet, [0, 1], grid=4, solver=de.Ddim(eta=1.0))
        frames = list(plan.frames(unet))
        torch.testing.assert_close(frames[0], drawn[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(frames[-1], drawn[1], rtol=0, atol=1e-5)


class TestHealth:
    def latents(self, x: Tensor) -> de.Latents:
        model = mixture_model()
        made = encoded(model, 2)
        return with_health(replace(made, x=x.float(), photos=()))

    def flagged(self, x: Tensor) -> list[bool]:
        latents = self.latents(x)
        return [de.advice(record) != [] for record in latents.photos]

    def test_gaussian_latents_raise_one_false_alarm_in_a_hundred_at_most(self):
        x = torch.from_numpy(np.random.default_rng(0).standard_normal((1000, 3, 32, 32)))
        assert sum(self.flagged(x)) <= 10

    def test_shrunk_correlated_and_uniform_latents_are_flagged(self):
        numbers = np.random.default_rng(1)
        gauss = torch.from_numpy(numbers.standard_normal((20, 3, 34, 34)))
        around = sum(gauss.roll(way, dim) for way in (1, -1) for dim in (2, 3))
        correlated = (gauss + 0.166 * around)[..., 1:-1, 1:-1]  # 2 c / (1 + 4 c^2) = 0.3 with every neighbour
        uniform = torch.from_numpy(numbers.uniform(-(3**0.5), 3**0.5, (20, 3, 32, 32)))
        for bad in (0.9 * gauss, correlated / correlated.std(), uniform):
            assert all(self.flagged(bad))

    def test_a_correction_says_what_it_changes(self):
        model = mixture_model()
        latents = encoded(model)
        for how in ("radius", "adain", "clip"):
            plan = plan_morph(model, latents, 3, replace(UNPACED, correct=how))
            assert any(line.startswith(f"correct={how} changes the key latents by") for line in plan.warnings)
        assert not any("correct=" in line for line in plan_morph(model, latents, 3, UNPACED).warnings)


class TestMotion:
    def test_a_curve_that_leaves_the_keys_is_refused_before_any_work(self):
        with pytest.raises(ConfigError, match="is no curve between two keys"):
            Motion(ease=(0.5, -0.5, 0.5, 1.5)).check(2, 9)

    def test_a_curve_may_be_named(self):
        assert Motion(ease="ease-in").curve == EASES["ease-in"]
        assert Motion(ease=(0.2, 0.0, 0.5, 1.0)).curve == (0.2, 0.0, 0.5, 1.0)

    def test_a_denoiser_of_your_own_decodes_the_frames(self):
        model = mixture_model()
        darker = de.MapX0(model.denoiser(), lambda x0: x0 - 0.1)
        latents = de.encode(model, photos(2), grid=10, denoiser=darker)
        with pytest.raises(LatentsError, match="cannot be restored; give it explicitly"):
            plan_morph(model, latents, 3, UNPACED)
        frames = list(de.morph(model, latents, 3, UNPACED, denoiser=darker))
        ends = de.decode(model, latents, denoiser=darker)
        assert torch.allclose(torch.stack([frames[0], frames[-1]]), ends, atol=1e-6)

    def test_latents_that_are_odd_are_named(self):
        model = mixture_model()
        made = de.seed_latents(model, [0, 1], grid=50)
        plan = plan_morph(model, replace(made, x=0.5 * made.x), 4, UNPACED)
        assert any("far from Gaussian noise" in line for line in plan.warnings)

    def test_a_bound_on_steps_asks_for_no_number_of_frames(self):
        for loop in ("none", "boomerang"):
            Motion(max_step=0.1, loop=loop).check(61, 33)

    def test_pairs_are_not_corrected_by_halves(self):
        model = mixture_model()
        pairs = de.encode(model, photos(2), grid=4, solver=Leapfrog(), check=False)
        with pytest.raises(ConfigError, match="correct=radius is for single latents, and these are pairs"):
            plan_morph(model, pairs, 4, Motion(correct="radius"))

    @pytest.mark.parametrize(
        ("setting", "match"),
        [
            ({"path": "cubic"}, "path='cubic' is not known; choose None, slerp"),
            ({"loop": "round"}, "loop='round' is not known; choose none, closed, boomerang"),
            ({"pace": "lpips"}, "pace='lpips' is not known; choose none, l2, ssim, unet"),
            ({"endpoints": "near"}, "endpoints='near'"),
            ({"correct": "whiten"}, "correct='whiten'"),
            ({"pace": "none", "max_step": 0.1}, "needs a distance to measure steps by"),
            ({"pilot": 1}, "pilot=1 but a distance needs two pictures; choose 2 or more"),
            ({"settle": -1}, "settle=-1 passes; choose 0 or more"),
            ({"settle": 1, "pace": "none"}, "settle=1 needs a distance to even out; choose a pace"),
            ({"settle": 1, "max_step": 0.1}, "and settle would too; give one of them"),
            ({"endpoints": "paste", "max_step": 0.1}, "cannot hold where pasted photos pop"),
            ({"ease": EASES["ease-in"], "max_step": 0.1}, "and ease would too; give one of them"),
            ({"ease": "bouncy"}, "ease='bouncy' is not known; choose linear, ease-in"),
            ({"over": "segment", "max_step": 0.1}, "and over would too; give one of them"),
        ],
    )
    def test_unknown_settings_name_the_known_ones(self, setting: dict[str, object], match: str):
        with pytest.raises(ConfigError, match=match):
            Motion(**setting)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("keys", "frames", "match"),
        [(1, 5, "a morph needs two photos or more, not 1"), (3, 2, "frames=2 but there are 3 keys")],
    )
    def test_too_few_photos_or_frames(self, keys: int, frames: int, match: str):
        model, calls = counted_model()
        latents = encoded(model, keys, 3)
        calls.clear()
        with pytest.raises(ConfigError, match=match):
            next(de.morph(model, latents, frames))
        assert calls == []
