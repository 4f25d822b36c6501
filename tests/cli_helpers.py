"""Running the command line inside the test process, and the small models and photos that it runs on."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from helpers import DDPM_CONFIG, save_pipeline_folder, tiny_unet
from PIL import Image

from ddim_edit.cli import main

SIDE = 16  # pixels
SCHEDULER = {**DDPM_CONFIG, "clip_sample": False}  # no note on stderr
LABELS = {"names": ["cat", "dog", "none"], "null": 2}


class Outcome(NamedTuple):
    code: int
    stdout: str
    stderr: str

    @property
    def said(self) -> str:
        """What stderr says, however its lines are wrapped."""
        return " ".join(self.stderr.split())


Run = Callable[..., Outcome]


def run_cli(*arguments: object, capsys: pytest.CaptureFixture[str]) -> Outcome:
    """Run `ddim-edit` with these arguments; whatever escapes except SystemExit fails the test."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    code = exit_.value.code
    assert isinstance(code, int)
    return Outcome(code, *capsys.readouterr())


def save_tiny_model(folder: Path, *, seed: int = 0, labels: dict[str, object] | None = None) -> Path:
    """A random U-Net for 16x16 photos as a model folder; with labels, for three classes."""
    classes = {} if labels is None else {"num_class_embeds": 3}
    save_pipeline_folder(folder, tiny_unet(seed, sample_size=SIDE, **classes), SCHEDULER)
    if labels:
        (folder / "labels.json").write_text(json.dumps(labels))
    return folder


def save_photo(path: Path, seed: int = 0, size: tuple[int, int] = (20, 24)) -> Path:
    """Colour noise of (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return path


def files_in(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its relative path; empty where there is no folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def runner(
    folder: Path, photos: Sequence[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Runs commands that must succeed, on a tiny model, in a folder of these photos."""
    monkeypatch.chdir(folder)
    save_tiny_model(folder / "model")
    for seed, path in enumerate(photos):
        save_photo(folder / path, seed)

    def run(*arguments: object) -> Outcome:
        outcome = run_cli(*arguments, "--model", "model", capsys=capsys)
        assert outcome.code == 0, outcome.stderr
        return outcome

    return run


def refusal(
    folder: Path,
    photos: Sequence[str],
    arguments: Sequence[object],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Outcome:
    """What a command says that must stop before it loads a model, in a folder of these photos, and leave no trace."""
    monkeypatch.chdir(folder)
    for seed, path in enumerate(photos):
        save_photo(folder / path, seed)
    outcome = run_cli(*arguments, "--model", "nonesuch", capsys=capsys)
    assert {path.name for path in folder.iterdir()} == {"in"}
    return outcome
