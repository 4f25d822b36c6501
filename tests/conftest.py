"""Fixtures of the whole suite. One thread a process: two OpenMP threads on a busy machine are several times slower."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import hypothesis
import pytest
import torch
from helpers import Mixture

from ddim_edit.schedule import NoiseSchedule

torch.set_num_threads(1)
hypothesis.settings.register_profile("suite", max_examples=60, deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("suite")

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--data", default=None, help="the data folder (default: $DDIM_EDIT_DATA, else ../shared/data)")


@pytest.fixture(scope="session")
def data_folder(request: pytest.FixtureRequest) -> Path:
    given = request.config.getoption("--data") or os.environ.get("DDIM_EDIT_DATA")
    folder = Path(str(given)) if given else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("skipped: no data folder")
    return folder


@pytest.fixture(scope="session")
def linear_schedule() -> NoiseSchedule:
    """T = 1000, betas 1e-4 to 0.02: that of the DDIM paper."""
    return NoiseSchedule.from_config({"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02})


@pytest.fixture(scope="session")
def mixture() -> Mixture:
    """Three Gaussians in (2, 2, 2): 8 dimensions."""
    return Mixture.make()
