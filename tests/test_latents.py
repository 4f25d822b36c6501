import json
import math
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import gaussian_noise
from model_helpers import mixture_model, photos
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ddim_edit.decoding import decode
from ddim_edit.errors import LatentsError, OutputError
from ddim_edit.files import find_latents
from ddim_edit.inversion import encode
from ddim_edit.latents import KEY, InversionReport, Latents, PhotoRecord
from ddim_edit.metrics import LatentHealth, Quality
from ddim_edit.schedule import Level

SPACE = {"weights": "abc", "schedule": "def", "codec": "pixels", "prediction": "epsilon", "shape": [3, 2, 2]}
HOW = {"timesteps": [0.0, 500.0], "spacing": "leading", "solver": {"name": "ddim", "eta": 0.0, "sigma_hat": False}}
LEVEL = Level(500.0, 0.28, 0.96)
PINNED = (
    '{"format":1,'
    '"how":{"solver":{"eta":0.0,"name":"ddim","sigma_hat":false},"spacing":"leading","timesteps":[0.0,500.0]},'
    '"level":{"noise":0.96,"signal":0.28,"t":500.0},'
    '"photos":[{"evaluations":2,"health":{"excess_kurtosis":0.25,"neighbour_correlation":-0.5,"rms":1.0},'
    '"inversion":{"iterations":[3,2],"reached":true,"residuals":[0.001,2.5e-05],"stalled":1},'
    '"name":"cat","quality":{"changed_8bit":0.0,"max_error":0.0,"mse":0.0,"psnr":null,"ssim":1.0},'
    '"source":{"fit":"crop","sha256":"00ff"}},'
    '{"evaluations":0,"health":null,"inversion":null,"name":"","quality":null,"source":{}}],'
    '"space":{"codec":"pixels","prediction":"epsilon","schedule":"def","shape":[3,2,2],"weights":"abc"},'
    '"trajectory_t":[0.0,500.0]}'
)


def hand_made() -> Latents:
    cat = PhotoRecord(
        "cat",
        {"sha256": "00ff", "fit": "crop"},
        2,
        LatentHealth(1.0, 0.25, -0.5),
        Quality(mse=0.0, psnr=math.inf, ssim=1.0, max_error=0.0, changed_8bit=0.0),
        InversionReport(True, 1, (1e-3, 2.5e-5), (3, 2)),
    )
    return Latents(
        x=gaussian_noise(0, 2, 3, 2, 2).float(),
        level=LEVEL,
        space=SPACE,
        how=HOW,
        photos=(cat, PhotoRecord()),
        memory=(gaussian_noise(1, 2, 3, 2, 2), gaussian_noise(2, 2, 5).float()),
        trajectory=gaussian_noise(3, 2, 2, 3, 2, 2).float(),
        trajectory_t=(0.0, 500.0),
    )


def assert_same(a: Latents, b: Latents) -> None:
    """Bit for bit, dtypes included."""
    for ours, theirs in zip((a.x, *a.memory), (b.x, *b.memory), strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.equal(theirs)
    assert (a.trajectory is None) == (b.trajectory is None)
    assert a.trajectory is None or (b.trajectory is not None and a.trajectory.equal(b.trajectory))
    for name in ("level", "space", "how", "photos", "trajectory_t"):
        assert getattr(a, name) == getattr(b, name)


def header_of(path: Path) -> str:
    with safe_open(path, framework="pt") as file:
        return file.metadata()[KEY]


def rewritten(path: Path, **changes: object) -> Path:
    """The file with other values in its record; None takes a key out."""
    header = {**json.loads(header_of(path)), **changes}
    save_file(load_file(path), path, {KEY: json.dumps({key: v for key, v in header.items() if v is not None})})
    return path


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "a.safetensors"
    hand_made().save(path)
    return path


class TestFile:
    def test_what_is_saved_is_loaded_bit_for_bit(self, saved: Path):
        assert_same(Latents.load(saved), hand_made())

    def test_without_memory_and_trajectory_and_in_float64(self, tmp_path: Path):
        latents = replace(hand_made(), x=gaussian_noise(9, 2, 3, 2, 2), memory=(), trajectory=None, trajectory_t=())
        latents.save(tmp_path / "b.safetensors")
        assert_same(Latents.load(tmp_path / "b.safetensors"), latents)

    def test_an_encoding_comes_back_whole(self, tmp_path: Path):
        latents = encode(mixture_model(), photos(2), grid=10, trajectory_every=3)
        latents.save(tmp_path / "c.safetensors")
        assert_same(Latents.load(tmp_path / "c.safetensors"), latents)

    def test_the_record_is_pinned_byte_for_byte(self, saved: Path):
        assert header_of(saved) == PINNED

    def test_the_file_holds_the_tensors_under_these_names_and_nothing_else(self, saved: Path):
        data = saved.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        assert header.pop("__metadata__") == {KEY: PINNED}
        found = {name: (entry["dtype"], entry["shape"]) for name, entry in header.items()}
        assert found == {
            "x": ("F32", [2, 3, 2, 2]),
            "memory.0": ("F64", [2, 3, 2, 2]),
            "memory.1": ("F32", [2, 5]),
            "trajectory": ("F32", [2, 2, 3, 2, 2]),
        }
        start, end = header["x"]["data_offsets"]
        assert data[8 + length :][start:end] == hand_made().x.numpy().tobytes()

    def test_any_safetensors_tool_reads_it(self, saved: Path):
        assert load_file(saved)["x"].equal(hand_made().x)

    def test_the_same_latents_are_the_same_file(self, saved: Path, tmp_path: Path):
        shuffled = replace(
            hand_made(), how=dict(reversed(HOW.items())), x=hand_made().x.to(memory_format=torch.channels_last)
        )
        shuffled.save(tmp_path / "again.safetensors")
        assert (tmp_path / "again.safetensors").read_bytes() == saved.read_bytes()

    def test_loading_and_saving_again_changes_nothing(self, saved: Path, tmp_path: Path):
        Latents.load(saved).save(tmp_path / "again.safetensors")
        assert (tmp_path / "again.safetensors").read_bytes() == saved.read_bytes()

    def test_an_infinite_psnr_is_null_in_the_file_and_infinite_when_loaded(self, saved: Path):
        quality = json.loads(header_of(saved))["photos"][0]["quality"]
        assert quality["psnr"] is None
        assert Latents.load(saved).photos[0].quality == hand_made().photos[0].quality

    def test_a_finite_psnr_stays_a_number(self, tmp_path: Path):
        record = PhotoRecord("cat", quality=Quality(1e-3, 30.0, 0.9, 0.1, 0.5))
        path = tmp_path / "a.safetensors"
        replace(hand_made(), photos=(record, record)).save(path)
        assert Latents.load(path).photos == (record, record)

    def test_nothing_half_written_is_left_where_saving_fails(self, tmp_path: Path):
        (tmp_path / "folder.safetensors" / "x").mkdir(parents=True)
        with pytest.raises(OutputError, match=r"folder\.safetensors"):
            hand_made().save(tmp_path / "folder.safetensors")
        assert [path.name for path in tmp_path.iterdir()] == ["folder.safetensors"]


class TestRefusedFiles:
    def refused(self, path: Path, match: str) -> None:
        with pytest.raises(LatentsError, match=match) as caught:
            Latents.load(path)
        assert path.name in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("number", [0, 2, 99, None])
    def test_another_format(self, saved: Path, number: int | None):
        self.refused(rewritten(saved, format=number), f"format {number}, this version reads 1")

    @pytest.mark.parametrize("keep", [0, 4, 100, -1])
    def test_a_truncated_file(self, saved: Path, keep: int):
        saved.write_bytes(saved.read_bytes()[:keep])
        self.refused(saved, "cannot be read as safetensors")

    def test_a_file_of_another_kind(self, tmp_path: Path):
        path = tmp_path / "photo.safetensors"
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
        self.refused(path, "cannot be read as safetensors")

    def test_a_pickle_is_never_opened_as_one(self, tmp_path: Path):
        path = tmp_path / "latents.safetensors"
        torch.save({"x": torch.zeros(1, 3, 2, 2)}, path)
        self.refused(path, "cannot be read as safetensors")

    def test_a_missing_file_and_a_folder(self, tmp_path: Path):
        self.refused(tmp_path / "none.safetensors", "does not exist")
        self.refused(tmp_path, "does not exist")

    def test_tensors_without_a_record(self, tmp_path: Path):
        path = tmp_path / "weights.safetensors"
        save_file({"x": torch.zeros(1, 3, 2, 2)}, path)
        self.refused(path, "no ddim_edit record")

    @pytest.mark.parametrize("text", ["", "{", "[1]", "null"])
    def test_a_record_that_is_no_json_object(self, saved: Path, text: str):
        save_file(load_file(saved), saved, {KEY: text})
        self.refused(saved, "record")

    @pytest.mark.parametrize("key", ["level", "space", "how", "photos", "trajectory_t"])
    def test_a_record_that_lacks_a_field(self, saved: Path, key: str):
        self.refused(rewritten(saved, **{key: None}), "record is incomplete")

    def test_a_photo_record_that_lacks_a_field(self, saved: Path):
        self.refused(rewritten(saved, photos=[{"name": "cat"}]), "record is incomplete")

    @pytest.mark.parametrize("name", ["../../escaped", "/tmp/escaped", "a/b", ".."])
    def test_a_name_that_leads_elsewhere(self, saved: Path, name: str):
        records = json.loads(PINNED)["photos"]
        self.refused(rewritten(saved, photos=[{**records[0], "name": name}, *records[1:]]), "no name of a file")

    def test_fewer_photo_records_than_latents(self, saved: Path):
        one = json.loads(PINNED)["photos"][:1]
        self.refused(rewritten(saved, photos=one), "2 latents, but 1 photo records")

    def test_a_file_without_x(self, saved: Path):
        save_file({"trajectory": torch.zeros(1)}, saved, {KEY: PINNED})
        self.refused(saved, "tensor x is missing")

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("tensor", ["x", "trajectory", "memory.1"])
    def test_values_that_are_not_finite(self, saved: Path, tensor: str, value: float):
        tensors = load_file(saved)
        tensors[tensor].view(-1)[-1] = value
        save_file(tensors, saved, {KEY: PINNED})
        self.refused(saved, "not finite")


class TestRows:
    def test_select_takes_rows_in_the_given_order(self):
        latents = hand_made()
        chosen = latents.select([1, 0, 1])
        assert chosen.x.equal(latents.x[[1, 0, 1]])
        assert [record.name for record in chosen.photos] == ["", "cat", ""]
        assert all(now.equal(value[[1, 0, 1]]) for now, value in zip(chosen.memory, latents.memory, strict=True))
        assert chosen.trajectory is not None
        assert latents.trajectory is not None
        assert chosen.trajectory.equal(latents.trajectory[:, [1, 0, 1]])
        assert len(chosen) == 3

    def test_join_is_the_inverse_of_select(self):
        latents = hand_made()
        assert_same(Latents.join([latents.select([0]), latents.select([1])]), latents)

    def test_join_keeps_a_trajectory_only_where_all_have_the_same_timesteps(self):
        latents = hand_made()
        assert latents.trajectory is not None
        without = replace(latents, trajectory=None, trajectory_t=())
        other = replace(latents, trajectory=latents.trajectory[:1], trajectory_t=(500.0,))
        for parts in ([latents, without], [without, latents], [latents, other]):
            joined = Latents.join(parts)
            assert (joined.trajectory, joined.trajectory_t) == (None, ())
            assert len(joined) == 4

    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            ({"how": {**HOW, "spacing": "trailing"}}, "spacing"),
            ({"how": {**HOW, "solver": {"name": "other"}}}, "solver"),
            ({"level": Level(480.0, 0.3, 0.95)}, "level"),
            ({"space": {**SPACE, "weights": "other"}}, "weights"),
        ],
    )
    def test_join_refuses_latents_encoded_differently_and_names_the_field(self, changes: dict[str, object], field: str):
        other = replace(hand_made(), **changes)
        with pytest.raises(LatentsError, match=field):
            Latents.join([hand_made(), other])

    @pytest.mark.parametrize(("signal", "whole"), [(0.0, True), (0.0995, True), (0.1, False), (1.0, False)])
    def test_latents_are_whole_where_next_to_no_signal_is_left(self, signal: float, whole: bool):
        level = Level(500.0, signal, math.sqrt(1 - signal**2))
        assert replace(hand_made(), level=level).whole is whole

    def test_names_are_the_stems_or_the_rows(self):
        assert hand_made().names == ["cat", "00001"]

    def test_one_record_per_latent(self):
        assert replace(hand_made(), photos=()).photos == (PhotoRecord(), PhotoRecord())
        with pytest.raises(LatentsError, match="2 latents, but 1 photo records"):
            replace(hand_made(), photos=(PhotoRecord(),))


class TestSpace:
    def test_the_same_space_is_accepted(self):
        hand_made().require_same(dict(SPACE), of="model m")

    def test_differing_fields_are_named_with_both_values_and_the_others_are_not(self):
        with pytest.raises(LatentsError) as caught:
            hand_made().require_same({**SPACE, "weights": "xyz", "shape": [3, 4, 4]}, of="model m")
        message = str(caught.value)
        for part in ("weights: abc here, xyz there", "shape: [3, 2, 2] here, [3, 4, 4] there", "model m"):
            assert part in message
        assert "schedule" not in message


def test_latents_of_another_size_say_which_size_to_choose():
    latents = noisy(1)
    height, width = latents.x.shape[2:]
    space = {"weights": "w", "shape": [3, height, width]}
    latents = replace(latents, space=space)
    with pytest.raises(LatentsError, match=f"use one size, as with --size {height}x{width}"):
        latents.require_same({**space, "shape": [3, 64, 64]}, of="model m")


def test_photos_without_a_name_take_that_of_their_file():
    one, two = (replace(noisy(count), photos=()) for count in (1, 2))
    assert one.named("cat").names == ["cat"]
    assert two.named("cat").names == ["cat_00000", "cat_00001"]
    named = replace(two, photos=(PhotoRecord("a"), PhotoRecord()))
    assert named.named("cat").names == ["a", "cat_00001"]


def test_no_latents_are_told():
    model = mixture_model()
    none = encode(model, photos(1), grid=5).select([])
    for use in (lambda: Latents.join([]), lambda: decode(model, none)):
        with pytest.raises(LatentsError, match="there are no latents; give one or more"):
            use()


class TestLatentsOfYourOwn:
    def test_decode_as_those_they_were_made_from(self):
        model = mixture_model()
        latents = encode(model, photos(2), grid=5)
        swapped = latents.with_x(latents.x[[1, 0, 1]])
        assert len(swapped) == 3
        assert decode(model, swapped).equal(decode(model, latents)[[1, 0, 1]])
        assert swapped.photos == (PhotoRecord(),) * 3

    def test_carry_step_noise_where_the_others_did(self):
        latents = replace(noisy(2), memory=())
        assert latents.noises is not None
        made = latents.with_x(latents.x[:1], latents.noises[:, :1])
        assert made.noises is not None
        assert made.noises.equal(latents.noises[:, :1])
        for x, noises in ((latents.x, None), (latents.x[:1], latents.noises)):
            with pytest.raises(LatentsError, match=r"noises must be \(4, "):
                latents.with_x(x, noises)
        with pytest.raises(LatentsError, match="noises must be None here"):
            replace(latents, noises=None).with_x(latents.x, latents.noises)

    def test_must_fit(self):
        with pytest.raises(LatentsError, match=r"x is \(3, 2, 2\); give \(N, 3, 2, 2\)"):
            hand_made().with_x(hand_made().x[0])
        with pytest.raises(LatentsError, match=r"these are pairs of solver .*, and x is half of one"):
            replace(hand_made(), memory=(hand_made().x,)).with_x(hand_made().x)


class TestFindLatents:
    def test_folders_give_their_latents_as_people_count(self, tmp_path: Path):
        wanted = ["2", "10", "a", "a01", "a1", "A2", "a2b", "a10", "a-2", "b"]
        for name in [*reversed(wanted), ".hidden"]:
            (tmp_path / f"{name}.safetensors").touch()
        for name in ("run.json", "a.png"):
            (tmp_path / name).touch()
        (tmp_path / "below").mkdir()
        single = tmp_path / "b.safetensors"
        found = find_latents([single, tmp_path])
        assert found == [single, *(tmp_path / f"{name}.safetensors" for name in wanted)]

    def test_a_folder_without_any_is_an_error(self, tmp_path: Path):
        with pytest.raises(LatentsError, match=r"has no \.safetensors files"):
            find_latents([tmp_path])


def noisy(photos: int) -> Latents:
    made = hand_made().select([0] * photos)
    return replace(made, noises=gaussian_noise(5, 4, photos, 3, 2, 2).float())


def test_step_noises_go_with_their_photos(tmp_path: Path):
    latents = noisy(3)
    latents.save(tmp_path / "a.safetensors")
    loaded = Latents.load(tmp_path / "a.safetensors")
    assert latents.noises is not None
    for made, rows in (
        (loaded, [0, 1, 2]),
        (latents.select([2, 0]), [2, 0]),
        (Latents.join([latents] * 2), [0, 1, 2] * 2),
    ):
        assert made.noises is not None
        assert made.noises.equal(latents.noises[:, rows])
    assert hand_made().noises is None


def test_latents_with_and_without_step_noise_are_not_joined():
    with pytest.raises(LatentsError, match="some of the latents carry step noise and some do not"):
        Latents.join([noisy(2), hand_made()])
