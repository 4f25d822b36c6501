"""Experiments from the command line on a tiny model, and what consistency finds on a model that is exact."""

import csv
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import files_in, run_cli, save_photo, save_tiny_model
from helpers import Mixture
from model_helpers import SIZE, mixture_model
from test_experiment_numbers import disc

from ddim_edit import models
from ddim_edit.errors import OutputError
from ddim_edit.experiments import (
    EXPERIMENTS,
    Store,
    consistency,
    eta_steps,
    interpolate,
    render,
    report,
    run,
    statistics,
)
from ddim_edit.experiments.base import Cell, units_of
from ddim_edit.experiments.consistency import EXPERIMENT as CONSISTENCY
from ddim_edit.grid import Grid
from ddim_edit.images import read_image, read_picture, to_uint8
from ddim_edit.inversion import round_trip
from ddim_edit.models import Model
from ddim_edit.schedule import NoiseSchedule
from ddim_edit.solvers import Ddim

PHOTOS = 33
QUICK = {
    "reconstruct": ["photos", "--limit", "3", "-n", "1,2", "--spacings", "linear,quadratic", "--show", "2"],
    "consistency": [
        "--seeds",
        "0-2",
        "-n",
        "2,4",
        "--etas",
        "hat,0",
        "--spacings",
        "leading,quadratic",
        "--batch-size",
        "2",
    ],
    "eta-steps": ["photos", "--seeds", "0-3", "-n", "1,2", "--etas", "0,1", "--export", "3", "--batch-size", "2"],
    "interpolate": ["--seeds", "0-3", "-n", "1", "--frames", "4", "--grid-side", "2", "--paths", "slerp,squad,lerp"],
    "cycle": ["--seeds", "0-2", "-n", "1,2"],
    "trajectory": ["--seeds", "0-1", "-n", "3"],
}
OWN = {
    "reconstruct": {"figures/error_against_steps.pdf", "sheets/reconstructions_ddim_explicit_uniform.png"},
    "consistency": {"figures/ratio_against_steps.png", "sheets/same_noise_0_leading.png", "paired.csv"},
    "eta-steps": {"samples/eta-1_steps-2_3.npz", "sheets/etas_at_1_steps.png", "figures/roughness_against_steps.csv"},
    "interpolate": {"sheets/grid.png", "sheets/line_seed0000-seed0001.png", "figures/norms_along_the_path.pdf"},
    "cycle": {"figures/error_against_steps.csv"},
    "trajectory": {"sheets/panels.png", "trajectory.webp", "figures/prediction_error.png"},
}
ALL = {"result.json", "rows.csv", "summary.csv", "summary.json", "table.tex", "methods.txt", "report.html", "run.json"}
every_experiment = pytest.mark.parametrize("name", EXPERIMENTS)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tiny model and photos."""
    folder = tmp_path_factory.mktemp("experiments")
    save_tiny_model(folder / "model")
    for number in range(PHOTOS):
        save_photo(folder / "photos" / f"p{number:02d}.png", number)
    return folder


@pytest.fixture
def conduct(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.setattr(statistics, "RESAMPLES", 199)

    def go(name, *arguments, code=0, model="model"):
        chosen = [] if name == "render" else ["--model", model]
        outcome = run_cli("experiment", name, *arguments, *chosen, capsys=capsys)
        assert outcome.code == code, outcome.stderr
        return outcome

    return go


@pytest.fixture
def done(conduct, place):
    """The folder of each experiment, run once for all tests; not to be changed."""

    def folder(name):
        path = place / f"done-{name}"
        if not path.exists():
            assert conduct(name, *QUICK[name], "-o", path).stdout == ""
        return path

    return folder


def rows_of(folder):
    return list(csv.DictReader((folder / "rows.csv").read_text().splitlines()))


def lasting(folder):
    """The files of a run but run.json (and run-2.json, ...), which are the one place of times."""
    return {name: data for name, data in files_in(folder).items() if not name.startswith("run")}


def differing(folder, other):
    """The files that two runs do not share, byte for byte."""
    ours, theirs = lasting(folder), lasting(other)
    return {name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)}


@every_experiment
def test_an_experiment_is_a_folder_that_renders_again_to_the_same_bytes(name, conduct, done, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(done(name), folder)
    assert files_in(folder).keys() >= ALL | OWN[name]
    experiment = EXPERIMENTS[name]
    rows = rows_of(folder)
    assert tuple(rows[0]) == experiment.header
    assert len({experiment.key(row) for row in rows}) == len(rows)
    known = json.loads((folder / "result.json").read_text())
    assert (known["complete"], known["failures"]) == (True, [])
    for file in lasting(folder):
        if not file.startswith(("pictures/", "samples/", "rows", "result")):
            (folder / file).unlink()
    conduct("render", folder)
    assert not differing(folder, done(name))


@every_experiment
def test_the_report_stands_alone(name, done, place):
    folder = done(name)
    page = (folder / "report.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources
    assert all(source.startswith("data:") for source in sources)
    assert "<script" not in page
    assert str(place) not in page
    pictures = [*files_in(folder / "figures"), *files_in(folder / "sheets")]
    assert page.count("<img") == sum(file.endswith(".png") for file in pictures)


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to open reports in; on Debian: apt install chromium")
@every_experiment
def test_the_report_opens_in_a_browser_without_a_network_or_complaints(name, done, tmp_path):
    page = (done(name) / "report.html").resolve()
    shot = tmp_path / "shot.png"
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    offline = "--host-resolver-rules=MAP * ~NOTFOUND"
    watched = ["--enable-logging=stderr", f"--screenshot={shot}", "--window-size=1000,1400"]
    command = [CHROMIUM, *quiet, offline, *watched, page.as_uri()]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stderr
    assert [line for line in said.splitlines() if "CONSOLE" in line] == []
    picture = read_picture(shot)
    assert picture.shape[1:] == (1400, 1000)
    assert picture.std() > 0.1  # a blank page has none


def test_the_command_in_the_result_repeats_the_run(conduct, done, tmp_path):
    command = json.loads((done("cycle") / "result.json").read_text())["command"].split()
    assert command[:5] == ["ddim-edit", "experiment", "cycle", "--seeds", "0-2"]
    assert command[-2:] == ["--model", "model"]
    conduct("cycle", *command[3:-2], "-o", tmp_path / "again")
    assert not differing(tmp_path / "again", done("cycle"))


@pytest.mark.parametrize("name", ["consistency", "reconstruct"])
def test_a_killed_run_goes_on_and_ends_with_the_files_of_one_that_was_not(name, conduct, done, tmp_path, monkeypatch):
    append = Store.append
    calls = 0

    def dying(self, experiment, rows):
        nonlocal calls
        calls += 1
        append(self, experiment, rows if calls == 1 else rows[:1])
        if calls == 2:
            with (self.root / "rows.csv").open("a") as file:
                file.write("half of a li")
            raise KeyboardInterrupt

    folder = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(Store, "append", dying)
        conduct(name, *QUICK[name], "-o", folder, code=130)
    assert json.loads((folder / "result.json").read_text())["complete"] is False
    conduct(name, *QUICK[name], "-o", folder)
    assert not differing(folder, done(name))


def test_what_is_done_is_not_done_again(conduct, done, monkeypatch):
    folder = done("cycle")
    before = lasting(folder)
    monkeypatch.setattr(Store, "append", lambda *_: pytest.fail("a row was made again"))
    conduct("cycle", *QUICK["cycle"], "-o", folder)
    assert lasting(folder) == before


def test_another_run_is_not_mixed_into_a_folder(conduct, done, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(done("cycle"), folder)
    before = files_in(folder)
    refused = conduct("cycle", "--seeds", "0-1", "-n", "2", "-o", folder, code=1)
    assert "holds a run with other" in refused.stderr
    assert ", images, settings: seeds, settings: steps_list, steps; choose another" in refused.stderr
    assert files_in(folder) == before
    conduct("cycle", "--seeds", "0-1", "-n", "2", "-o", folder, "--overwrite")
    assert len(rows_of(folder)) == 2


def test_overwriting_that_was_stopped_can_be_done_again(conduct, done, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    shutil.copytree(done("cycle"), folder)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda self, missing_ok=False: (_ for _ in ()).throw(KeyboardInterrupt))
        conduct("cycle", *QUICK["cycle"], "-o", folder, "--overwrite", code=130)
    assert (folder / "result.json").exists()
    conduct("cycle", *QUICK["cycle"], "-o", folder, "--overwrite")
    assert rows_of(folder) == rows_of(done("cycle"))


@every_experiment
def test_with_nothing_to_show_there_are_no_sheets(conduct, done, tmp_path, name):
    """And the zero is part of the command that makes the rows again."""
    conduct(name, *QUICK[name], "--show", "0", "-o", tmp_path / "out")
    assert not list(tmp_path.glob("out/sheets/*"))
    assert (tmp_path / "out" / "report.html").exists()
    assert "--show 0" in json.loads((tmp_path / "out" / "result.json").read_text())["command"]


def test_a_folder_of_something_else_is_never_touched(conduct, tmp_path):
    (tmp_path / "diary.txt").write_text("mine")
    for more in ([], ["--overwrite"]):
        refused = conduct("cycle", *QUICK["cycle"], "-o", tmp_path, *more, code=1)
        assert "holds something other than an experiment" in refused.stderr
    assert files_in(tmp_path) == {"diary.txt": b"mine"}
    assert "give an experiment's folder" in conduct("render", tmp_path, code=1).stderr


def test_config_goes_on_with_a_run_and_repeats_it_elsewhere(conduct, done, tmp_path):
    first, folder = done("consistency"), tmp_path / "again"
    conduct("consistency", "--config", first / "run.json", "-o", folder)
    command = [json.loads((place / "result.json").read_text())["command"] for place in (first, folder)]
    assert command[0] == command[1]
    before = files_in(folder)
    conduct("consistency", "--config", folder / "run.json", "--show", "8")
    after = files_in(folder)
    assert {name for name in after if after[name] != before.get(name)} <= {"run-2.json", "run.json"}


def test_a_dry_run_refuses_what_the_run_would(conduct, tmp_path):
    (tmp_path / "diary.txt").write_text("mine")
    refused = conduct("cycle", *QUICK["cycle"], "--dry-run", "-o", tmp_path, code=1)
    assert "holds something other than an experiment" in refused.stderr
    assert files_in(tmp_path) == {"diary.txt": b"mine"}


def test_a_dry_run_says_the_cost_and_writes_nothing(conduct, tmp_path):
    told = conduct("consistency", *QUICK["consistency"], "--dry-run", "-o", tmp_path / "out")
    assert "consistency: 72 steps" in told.stderr  # 3 seeds x 2 etas x 2 spacings x (2 + 4) steps
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["consistency", "--etas", "0,2"], "choose it in [0, 1], or sigma-hat"),
        (["consistency", "--etas", "1"], "0 in --etas"),
        (["consistency", "--seeds", "4"], "two --seeds"),
        (["consistency", "--steps-list", "10,x"], "no list of whole numbers above 0"),
        (["consistency", "--spacings", "cubic"], "'cubic' is unknown; choose from leading"),
        (["cycle", "--solvers", "nothing"], "'nothing' is unknown"),
        (["interpolate", "--paths", "bezier"], "'bezier' is unknown"),
        (["interpolate", "--seeds", "0", "--keys", "2"], "give more"),
        (["interpolate", "photos/p00.png"], "give more"),
        (["interpolate", "photos", "--seeds", "0-3"], "Give photos or --seeds"),
        (["eta-steps", "photos", "--spacings", "linear,quadratic"], "takes one of --spacings"),
        (["reconstruct"], "Missing argument"),
    ],
)
def test_wrong_usage_is_refused_before_anything_is_written(arguments, message, conduct, tmp_path):
    name, *rest = arguments
    assert message in conduct(name, *rest, "-o", tmp_path / "out", code=2).stderr
    assert not (tmp_path / "out").exists()


def test_a_photo_that_cannot_be_read_is_told_and_counted(conduct, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no photo")
    told = conduct("reconstruct", "photos/p00.png", tmp_path / "bad.jpg", "-n", "1", "-o", tmp_path / "out", code=3)
    assert "failed:" in told.stderr
    assert len(json.loads((tmp_path / "out" / "result.json").read_text())["failures"]) == 1
    assert "could not be read: 1" in (tmp_path / "out" / "methods.txt").read_text()


def test_paths_between_photos_start_and_end_at_them(conduct, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "load_model", lambda *given, **settings: mixture_model())  # an exact network
    folder = tmp_path / "out"
    paths = ["--frames", "3", "--grid-side", "2", "--paths", "slerp,lerp"]
    told = conduct("interpolate", "photos", "--limit", "5", "--batch-size", "3", *paths, "-o", folder)
    assert "note: no path leads to p04" in told.stderr
    rows = rows_of(folder)
    assert [(row["image"], row["path"]) for row in rows] == [
        (group, path) for path in ("slerp", "lerp") for group in ("p00-p01", "p02-p03")
    ]
    assert all(float(row["end_error"]) < 1 / 255 for row in rows)
    known = json.loads((folder / "result.json").read_text())
    assert [set(image) for image in known["images"]] == [{"name", "sha256", "fit"}] * 5
    for corner, name in enumerate(("00-00", "00-01", "01-00", "01-01")):
        shown = read_picture(folder / "pictures" / "grid-2" / f"{name}.png")
        assert (to_uint8(shown) == to_uint8(read_image(f"photos/p{corner:02d}.png", (SIZE, SIZE)))).all()


def test_photos_are_encoded_once_and_only_if_something_is_missing(conduct, tmp_path, monkeypatch):
    encoded = []

    def counting(model, pixels, *rest, **settings):
        encoded.append(len(pixels))
        return round_trip(model, pixels, *rest, **settings)

    monkeypatch.setattr(interpolate, "round_trip", counting)
    flags = ["--limit", "4", "--batch-size", "2", "-n", "2", "--spacing", "leading", "--frames", "3"]
    for _ in range(2):
        conduct("interpolate", "photos", *flags, "--grid-side", "2", "-o", tmp_path / "out")
    assert encoded == [2, 2]


def test_features_are_taken_under_the_label_of_the_samples(place, conduct, monkeypatch, tmp_path):
    save_tiny_model(place / "labelled", labels={"names": ["cat", "dog", "cow"], "null": None})
    seen = []
    features = eta_steps.encoder_features

    def watched(model, pixels, condition):
        seen.append(condition.tensors["label"].tolist())
        return features(model, pixels, condition)

    monkeypatch.setattr(eta_steps, "encoder_features", watched)
    flags = ["photos", "--seeds", "0-1", "-n", "1", "--etas", "0", "--label", "dog"]
    conduct("eta-steps", *flags, "-o", tmp_path / "out", model="labelled")
    assert {tuple(label) for label in seen} == {(1,)}


def test_exported_samples_are_those_of_their_seeds(done):
    folder = done("eta-steps")
    with np.load(folder / "samples" / "eta-0_steps-2_3.npz") as archive:
        samples = archive["arr_0"]
    assert samples.shape == (3, 16, 16, 3)
    assert samples.dtype == np.uint8
    drawn = read_picture(folder / "pictures" / "eta-0_steps-2" / "seed0001.png").permute(1, 2, 0)
    assert np.abs(samples[1] / 127.5 - 1 - drawn.numpy()).max() < 1.5 / 127.5
    assert not list((folder / "samples").glob("*.parts"))


def test_a_distance_that_resampling_biases_has_no_interval(done):
    for row in csv.DictReader((done("eta-steps") / "summary.csv").read_text().splitlines()):
        assert float(row["feature_distance"]) >= 0
        assert row["feature_distance_low"] == row["feature_distance_high"] == ""
        assert float(row["contrast_low"]) <= float(row["contrast"]) <= float(row["contrast_high"])


def test_samples_are_exported_from_a_folder_that_is_finished(conduct, done, tmp_path):
    folder = tmp_path / "eta-steps"
    shutil.copytree(done("eta-steps"), folder)
    flags = [word for word in QUICK["eta-steps"] if word not in ("--export", "3")]
    before = files_in(folder)
    late = folder / "samples" / "eta-0_steps-1_4.parts"  # as of a run that was killed before it tidied up
    conduct("eta-steps", *flags, "--export", "4", "-o", folder)
    late.mkdir()
    conduct("eta-steps", *flags, "--export", "4", "-o", folder)
    assert not late.exists()
    after = files_in(folder)
    assert {name for name in after if name not in before and not name.startswith("run")} == {
        f"samples/eta-{eta}_steps-{steps}_4.npz" for eta in (0, 1) for steps in (1, 2)
    }
    assert after["rows.csv"] == before["rows.csv"]


@pytest.mark.parametrize(
    ("timesteps", "text"),
    [
        ([1.0, 4.0, 9.0], "3 steps, 1, 4, 9"),
        ([float(t) for t in range(0, 100, 4)], "25 steps, 0, 4, 8, ..., 96"),
        ([float(t * t) for t in range(25)], f"25 steps, {', '.join(str(t * t) for t in range(25))}"),
    ],
)
def test_no_timestep_is_left_out_that_cannot_be_told(timesteps, text):
    assert report._timesteps(timesteps) == text


def test_the_table_has_whole_rows_and_marks_the_best(done):
    table = (done("consistency") / "table.tex").read_text()
    assert table.count(r"\begin{tabular}") == table.count(r"\end{tabular}") == table.count(r"\toprule") == 2
    lines = table.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    columns = len(CONSISTENCY.settings) + 1 + sum(measure.shown for measure in CONSISTENCY.measures)
    assert {len(line.split(" & ")) for line in lines} == {columns}
    assert r"\textbf{" in table


@pytest.fixture(scope="module")
def discs(tmp_path_factory):
    """Consistency on the exact denoiser of soft discs, whose attributes can be read from the pixels."""
    draw = np.random.default_rng(0)
    kinds = [[float(draw.uniform(*ends)) for ends in ((-1, 1), (-0.8, 0.3), (2.5, 5))] for _ in range(24)]
    means = torch.stack([disc(*kind) for kind in kinds]).double()
    schedule = NoiseSchedule.from_config({})
    exact = Mixture(means, torch.full((24,), 0.1).double(), torch.full((24,), 1 / 24).double())
    model = Model.from_function(exact.network(schedule), schedule, (3, 16, 16), name="discs")
    grids = {s: {n: Grid.build(schedule, n, s) for n in (5, 20, 100)} for s in ("uniform", "quadratic")}
    etas = {"0": Ddim(), "1": Ddim(1.0)}
    plan = consistency.Plan(grids, etas, range(16))
    store = Store(tmp_path_factory.mktemp("discs") / "out")
    store.begin({"format": 1, "experiment": "consistency"})
    run(CONSISTENCY, consistency.units(model, model.denoiser(), plan, store, 16), store, lambda step: None)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(statistics, "RESAMPLES", 199)
        found = statistics.summarise(CONSISTENCY, store.rows(CONSISTENCY))
    return {tuple(one.setting.values()): one.found for one in found}


@pytest.mark.parametrize("spacing", ["uniform", "quadratic"])
def test_at_eta_0_the_ratio_is_small_and_falls_with_the_steps(discs, spacing):
    ratios = [discs["0", spacing, steps]["ratio"].value for steps in ("5", "20", "100")]
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[1] <= 0.05
    assert ratios[2] == 0


def test_attributes_stay_at_eta_0_and_are_lost_at_eta_1(discs):
    assert discs["0", "uniform", "20"]["hue_correlation"].value > 0.95
    assert discs["1", "uniform", "100"]["hue_correlation"].value < 0.3
    assert discs["1", "uniform", "100"]["ratio"].value > 0.3


def test_units_have_the_keys_of_their_rows():
    cells = [Cell({"steps": "1"}, 1), Cell({"steps": "2"}, 2)]
    units = units_of(cells, ["a", "b", "c"], 2, lambda cell, names, on_step: [{"error": 0.0} for _ in names])
    assert [unit.keys for unit in units] == [
        (("a", "1"), ("b", "1")),
        (("c", "1"),),
        (("a", "2"), ("b", "2")),
        (("c", "2"),),
    ]
    assert [unit.cost for unit in units] == [2, 1, 4, 2]
    assert units[1].make(lambda step: None) == [{"image": "c", "steps": "1", "error": 0.0}]


def test_render_of_a_run_without_rows_says_what_to_do(tmp_path):
    store = Store(tmp_path / "out")
    store.begin({"format": 1, "experiment": "cycle"})
    with pytest.raises(OutputError, match="has no rows yet"):
        render(EXPERIMENTS["cycle"], store.root)
