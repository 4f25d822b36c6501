"""What importing costs, each time in a fresh interpreter."""

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "diffusers", "numpy", "scipy", "skimage", "matplotlib", "PIL", "av", "safetensors", "tqdm"}


def loaded_by(code: str, *flags: str) -> set[str]:
    """The top-level packages that this code loads."""
    script = f"{code}\nimport json, sys\nprint(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, *flags, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_importing_the_package_loads_nothing_heavy():
    assert not loaded_by("import ddim_edit") & HEAVY


def test_a_name_loads_no_more_than_it_needs():
    loaded = loaded_by("import ddim_edit; ddim_edit.DdimEditError")
    assert not loaded & HEAVY


RUN = """
import contextlib, io, runpy, sys
for arguments in {arguments}:
    sys.argv = ["ddim-edit", *arguments]
    with contextlib.suppress(SystemExit), contextlib.redirect_stderr(io.StringIO()):
        runpy.run_module("ddim_edit", run_name="__main__")
        raise AssertionError("did not exit")
"""


def test_help_of_every_command_loads_nothing_heavy():
    commands = ("demo", "encode", "decode", "roundtrip", "interpolate", "sample", "experiment")
    commands += ("train", "evaluate-model", "info", "doctor")
    experiments = ("reconstruct", "consistency", "eta-steps", "interpolate", "cycle", "trajectory", "render")
    nested = [["experiment", name, "--help"] for name in experiments]
    arguments = [["--help"], ["--version"], *([command, "--help"] for command in commands), *nested]
    loaded = loaded_by(RUN.format(arguments=arguments))
    assert "click" in loaded
    assert not loaded & HEAVY


def test_wrong_usage_is_told_before_anything_heavy_is_loaded():
    arguments = [["encode"], ["encode", "a.jpg", "--fit", "squeeze"], ["sample", "--seeds", "x"], ["frobnicate"]]
    assert not loaded_by(RUN.format(arguments=arguments)) & HEAVY


ALL = """
import importlib, pkgutil, ddim_edit
for module in pkgutil.walk_packages(ddim_edit.__path__, "ddim_edit."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""


@pytest.fixture(scope="module")
def loaded_by_all():
    return loaded_by(ALL, "-W", "error")


def test_importing_every_module_raises_no_warning(loaded_by_all):
    assert {"torch", "ddim_edit"} <= loaded_by_all


def test_importing_every_module_loads_no_package_that_is_slow_or_optional(loaded_by_all):
    slow_or_optional = {
        "diffusers",
        "transformers",
        "torchvision",
        "matplotlib",
        "skimage",
        "scipy",
        "av",
        "accelerate",
    }
    assert not loaded_by_all & slow_or_optional
