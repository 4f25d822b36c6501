"""Use any function as the model: here the exact denoiser of Gaussian data, which predicts x0.

    python examples/your_own_model.py

For a Gaussian, x_T is known in closed form, so the encoder can be checked against the truth.
"""

import numpy as np
import torch
from torch import Tensor

import ddim_edit as de

STD = 0.5  # of the data, around zero


def main(steps: int = 1000) -> float:
    """Encode Gaussian "photos", compare x_T with the closed form, decode; return the largest round-trip error."""
    schedule = de.NoiseSchedule.from_betas(np.linspace(1e-4, 0.02, 1000).tolist())

    def predict_x0(x: Tensor, t: Tensor) -> Tensor:
        """E[x0 | x_t] of N(0, STD^2); x is (B, 3, H, W), t is (B,) timesteps."""
        level = schedule.level(float(t[0]))
        return x * level.signal * STD**2 / (level.signal**2 * STD**2 + level.noise**2)

    model = de.Model.from_function(predict_x0, schedule, (3, 16, 16), prediction="sample", name="gaussian")
    photos = (STD * de.gaussian([0, 1, 2], model.shape)).clamp(-1, 1)
    latents = de.encode(model, photos, grid=steps, check=False)

    top = latents.level
    exact = photos / STD * (top.signal**2 * STD**2 + top.noise**2) ** 0.5
    error = float((de.decode(model, latents) - photos).abs().max())
    print(f"x_T differs from the closed form by {float((latents.x - exact).abs().max()):.4f} at most")
    print(f"the round trip differs by {error:.5f} at most")

    # The same loop by hand: noise, a grid, a solver, and every step to look at.
    grid = de.Grid.build(schedule, 20)
    start = de.State.start(de.gaussian([7], model.shape))
    with torch.no_grad():
        for step in de.walk(model.denoiser(), de.Ddim(), grid, start, toward="clean"):
            if step.index % 5 == 0:
                rms = float(step.prediction.x0.square().mean().sqrt())
                print(f"step {step.index}: t = {step.level.t:g}, rms of the predicted x0 {rms:.3f}")
    return error


if __name__ == "__main__":
    main()
