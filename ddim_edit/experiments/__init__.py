"""The experiments of the DDIM paper and their like, as tables and figures with intervals. One file each."""

from ddim_edit.experiments import consistency, cycle, eta_steps, interpolate, reconstruct, trajectory
from ddim_edit.experiments.base import Experiment
from ddim_edit.experiments.runner import render, run
from ddim_edit.experiments.store import Store

EXPERIMENTS: dict[str, Experiment] = {
    module.EXPERIMENT.name: module.EXPERIMENT
    for module in (reconstruct, consistency, eta_steps, interpolate, cycle, trajectory)
}

__all__ = ["EXPERIMENTS", "Experiment", "Store", "render", "run"]
