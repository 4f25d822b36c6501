import sys
from importlib.metadata import PackageNotFoundError, version

import pytest
from cli_helpers import save_tiny_model

from ddim_edit import models
from ddim_edit.doctor import checks
from ddim_edit.files import write_text


def check(name):
    """The check of this name; those after it are not run."""
    return next(found for found in checks() if found.name == name)


@pytest.fixture
def install(monkeypatch, tmp_path):
    """Put a module with this source where Python finds it."""

    def write(name, source):
        write_text(tmp_path / name / "__init__.py", source)
        monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.syspath_prepend(tmp_path)

    yield write
    sys.modules.pop("torchvision", None)


def test_a_broken_torchvision_is_recognised(install):
    install("torchvision", "raise RuntimeError('operator torchvision::nms does not exist')")
    found = check("torchvision")
    assert not found.ok
    assert not found.optional
    assert "operator torchvision::nms does not exist" in found.detail
    assert "pip uninstall torchvision" in found.detail


def test_an_error_that_says_nothing_is_named_by_its_type(install):
    install("torchvision", "raise RuntimeError")
    assert check("torchvision").detail.startswith("broken (RuntimeError), which breaks diffusers too")


def test_a_working_torchvision_is_no_problem(install):
    install("torchvision", "__version__ = '9.8.7'")
    found = check("torchvision")
    assert found.ok
    assert found.detail == "9.8.7, works"


def test_no_torchvision_is_no_problem(monkeypatch):
    monkeypatch.setattr("ddim_edit.doctor.find_spec", lambda name: None)
    found = check("torchvision")
    assert found.ok
    assert "not needed" in found.detail


def test_a_missing_package_is_named_with_the_remedy(monkeypatch):
    def without_scipy(package):
        if package == "scipy":
            raise PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr("ddim_edit.doctor.version", without_scipy)
    assert check("torch").ok
    found = check("scipy")
    assert not found.ok
    assert found.detail == "not installed; pip install scipy"


def test_the_bundled_model_is_loaded_and_run(monkeypatch, tmp_path):
    monkeypatch.setitem(models.BUNDLED, "small", save_tiny_model(tmp_path / "tiny"))
    found = check("bundled model")
    assert found.ok
    assert found.detail == "loads and draws; (3, 16, 16), finite: True"


def test_a_missing_bundled_model_is_told_and_stops_nothing(monkeypatch, tmp_path):
    monkeypatch.setitem(models.BUNDLED, "small", tmp_path)
    found = {result.name: result for result in checks()}
    assert not found["bundled model"].ok
    assert not found["bundled model"].optional
    assert "has no config.json" in found["bundled model"].detail
    assert found["hub"].ok


def test_mp4_without_pyav_is_optional(monkeypatch, tmp_path):
    monkeypatch.setitem(models.BUNDLED, "small", tmp_path)  # not the matter of this test, and slow
    monkeypatch.setitem(sys.modules, "av", None)
    found = check("mp4")
    assert not found.ok
    assert found.optional
    assert "pip install 'ddim-edit[video]'" in found.detail
