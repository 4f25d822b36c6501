"""`Ddim` and its wrappers against a loop over `DDIMScheduler.step`, wherever diffusers follows its own timesteps.

diffusers keeps its table of alpha_bar in float32; both sides carry the state in float64, so nothing else differs.
Left out by design: noise in the step that reaches clean, and the repeat of t = 0 where `set_alpha_to_one` is false.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
import torch
from helpers import gaussian_noise, relative_rms
from torch import Tensor

from ddim_edit.denoiser import Denoiser, MapX0, NetworkDenoiser, PredictionType, clip, dynamic_threshold
from ddim_edit.grid import Grid
from ddim_edit.noise import GivenNoise
from ddim_edit.ode import walk
from ddim_edit.schedule import NoiseSchedule
from ddim_edit.solvers import Ddim, State

X_T = gaussian_noise(0, 2, 3, 4, 4)
MIX = gaussian_noise(1, 3, 3)
TYPES = [str(kind) for kind in PredictionType]
SHAPES = ["linear", "scaled_linear", "squaredcos_cap_v2"]


def network(x: Tensor, t: Tensor, condition: object = None) -> Tensor:
    """Any smooth function of x and t will do, with every pixel of a photo seen by every other."""
    t = t.double().reshape(-1, 1, 1, 1) / 1000
    mixed = torch.einsum("ij,bjhw->bihw", MIX, x) + x.flip(-1) + x.mean(dim=(2, 3), keepdim=True)
    return torch.tanh(mixed + 3 * t) + 0.3 * torch.sin(5 * t)


@dataclass(frozen=True)
class Case:
    """One setting of diffusers' switches: those of the scheduler file, and those given to `step`."""

    config: Mapping[str, object] = field(default_factory=dict[str, object])
    steps: int = 10
    eta: float = 0.0
    use_clipped: bool = False

    def noise(self) -> Tensor:
        """(steps, B, C, h, w): row k serves the step that leaves grid level k + 1."""
        return gaussian_noise(2, self.steps, *X_T.shape)


def diffusers_run(case: Case) -> list[tuple[Tensor, Tensor]]:
    """(x_t, predicted x0) after every step."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    scheduler = DDIMScheduler(**{"clip_sample": False, **case.config})  # pyright: ignore[reportArgumentType]
    scheduler.set_timesteps(case.steps)
    x, noise, visited = X_T, case.noise(), []
    for row, t in zip(reversed(range(case.steps)), scheduler.timesteps, strict=True):
        out = network(x, t)
        given = noise[row] if case.eta else None
        made = scheduler.step(out, int(t), x, case.eta, case.use_clipped, variance_noise=given)
        x = made.prev_sample  # pyright: ignore[reportAttributeAccessIssue]
        visited.append((x, made.pred_original_sample))  # pyright: ignore[reportAttributeAccessIssue]
    return visited


def our_run(case: Case) -> list[tuple[Tensor, Tensor]]:
    schedule = NoiseSchedule.from_config(case.config)
    kind = PredictionType.parse(str(case.config.get("prediction_type", "epsilon")))
    denoise: Denoiser = NetworkDenoiser(network, kind)
    if case.config.get("thresholding"):
        ratio, maximum = case.config["dynamic_thresholding_ratio"], case.config["sample_max_value"]
        denoise = MapX0(denoise, dynamic_threshold(ratio, maximum), case.use_clipped)  # pyright: ignore
    elif case.config.get("clip_sample"):
        denoise = MapX0(denoise, clip(case.config.get("clip_sample_range", 1.0)), case.use_clipped)  # pyright: ignore
    grid = Grid.build(schedule, case.steps)
    steps = walk(denoise, Ddim(case.eta), grid, State.start(X_T, GivenNoise(case.noise())), toward="clean")
    return [(step.state.x, step.prediction.x0) for step in steps]


def assert_same(case: Case, tolerance: float = 1e-4) -> None:
    ours, theirs = our_run(case), diffusers_run(case)
    assert len(ours) == len(theirs) == case.steps
    for (x, x0), (their_x, their_x0) in zip(ours, theirs, strict=True):
        assert relative_rms(x, their_x) <= tolerance
        assert relative_rms(x0, their_x0) <= tolerance


class TestSeedRow4DiffusersSwitches:
    @pytest.mark.parametrize("offset", [0, 1])
    @pytest.mark.parametrize("to_one", [True, False])
    @pytest.mark.parametrize("steps", [10, 50, 100])
    @pytest.mark.parametrize("prediction", TYPES)
    def test_leading(self, prediction: str, steps: int, to_one: bool, offset: int):
        config = {"prediction_type": prediction, "steps_offset": offset, "set_alpha_to_one": to_one}
        case = Case(config, steps)
        if to_one or offset:
            return assert_same(case)
        # Here t = 0 is the clean end: diffusers' last step goes from it to itself and leaves x as it was.
        theirs, ours = diffusers_run(case), our_run(case)
        assert relative_rms(theirs[-1][0], theirs[-2][0]) < 1e-6
        assert len(ours) == steps - 1
        assert relative_rms(ours[-1][0], theirs[-1][0]) <= 1e-4
        return None

    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("prediction", TYPES)
    @pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
    def test_beta_schedules_and_eta_with_given_noise(self, eta: float, prediction: str, shape: str):
        assert_same(Case({"prediction_type": prediction, "beta_schedule": shape, "steps_offset": 1}, 50, eta))

    def test_stable_diffusions_settings(self):
        config = {
            "beta_schedule": "scaled_linear",
            "beta_start": 8.5e-4,
            "beta_end": 0.012,
            "steps_offset": 1,
            "set_alpha_to_one": False,
        }
        assert_same(Case(config, 50))

    def test_given_betas(self):
        betas = [0.001 + 0.0002 * k for k in range(100)]
        assert_same(Case({"trained_betas": betas, "num_train_timesteps": 100}, 20, eta=0.5))

    @pytest.mark.parametrize("use_clipped", [False, True])
    @pytest.mark.parametrize("limit", [1.0, 0.4])
    @pytest.mark.parametrize("eta", [0.0, 1.0])
    @pytest.mark.parametrize("prediction", TYPES)
    def test_clip_sample(self, prediction: str, eta: float, limit: float, use_clipped: bool):
        config = {"prediction_type": prediction, "clip_sample": True, "clip_sample_range": limit}
        assert_same(Case(config, 20, eta, use_clipped))

    @pytest.mark.parametrize("use_clipped", [False, True])
    @pytest.mark.parametrize(("ratio", "maximum"), [(0.995, 1.0), (0.9, 2.0)])
    @pytest.mark.parametrize("prediction", TYPES)
    def test_thresholding(self, prediction: str, ratio: float, maximum: float, use_clipped: bool):
        config = {
            "prediction_type": prediction,
            "thresholding": True,
            "dynamic_thresholding_ratio": ratio,
            "sample_max_value": maximum,
        }
        assert_same(Case(config, 20, 0.5, use_clipped))

    @pytest.mark.parametrize("steps", [10, 20, 50, 125])
    @pytest.mark.parametrize("eta", [0.0, 1.0])
    def test_trailing_where_the_steps_divide_the_schedule(self, eta: float, steps: int):
        assert_same(Case({"timestep_spacing": "trailing"}, steps, eta))

    @pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
    @pytest.mark.parametrize("eta", [0.0, 1.0])
    def test_zero_terminal_snr_from_the_very_top(self, eta: float, prediction: str):
        config = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": prediction}
        assert_same(Case(config, 20, eta))


@pytest.mark.parametrize(("spacing", "steps"), [("trailing", 13), ("linspace", 20)])
def test_where_diffusers_leaves_its_own_list_we_do_not_follow(spacing: str, steps: int):
    """huggingface/diffusers#12633: when this fails, diffusers walks its list, and these belong to the cases above."""
    case = Case({"timestep_spacing": spacing}, steps)
    assert relative_rms(our_run(case)[-1][0], diffusers_run(case)[-1][0]) > 1e-2
