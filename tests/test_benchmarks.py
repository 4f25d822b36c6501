"""The benchmarks that call what is no public interface still run, with so little to do that figures mean nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("training.py --repeats 1 --steps 1 --batch-size 2 --threads 1 --device cpu", "ratio "),
        ("processes.py --steps 1 --repeats 1 --batch-size 2", "ratio "),
        ("interpolation.py --limit 2 --steps 2 --frames 3", "| fade of pixels "),
    ],
    ids=lambda text: text.split(".")[0],
)
def test_it_runs(command: str, said: str):
    script, *arguments = command.split()
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / script, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
