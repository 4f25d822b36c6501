"""The scripts of examples/ run, and do what they say. Rows 1 to 3 of the systems that must work are among them."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Three plain photos."""
    paths = [tmp_path / f"{name}.png" for name in "abc"]
    for number, path in enumerate(paths):
        Image.linear_gradient("L").rotate(90 * number).convert("RGB").save(path)
    return paths


def test_round_trip(photos: list[Path], tmp_path: Path) -> None:
    assert load("round_trip").main(photos[0], tmp_path, steps=5) > 5
    assert (tmp_path / "round_trip.png").exists()


def test_encode_folder(photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.png").write_bytes(b"no photo")
    assert load("encode_folder").main(tmp_path, tmp_path / "out", batch_size=2) == (3, 1)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"{path.stem}.safetensors" for path in photos}
    assert "failed: " in capsys.readouterr().out


def test_morph_video(photos: list[Path], tmp_path: Path) -> None:
    assert load("morph_video").main(photos, tmp_path, frames=7, steps=2) == 7
    assert {path.name for path in tmp_path.glob("*.*p*")} >= {"morph.webp", "paths.png"}


def test_your_own_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert load("your_own_model").main(steps=100) < 0.1
    assert "step 20" in capsys.readouterr().out
