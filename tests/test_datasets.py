"""Sets of photos: where classes come from, and what happens where photos or classes are bad."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import save_photo

from ddim_edit.datasets import PhotoSet, read_photo_set
from ddim_edit.errors import ConfigError, ImageError
from ddim_edit.training.data import Order, set_aside

SIZE = (12, 12)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(("b/x.png", "a/x.png", "a/deep/y.jpg", "z.png", ".hidden/h.png")):
        save_photo(tmp_path / "photos" / name, number, size=(14 + number, 30))
    (tmp_path / "photos" / "a" / "notes.txt").write_text("no photo, by its name")
    return tmp_path / "photos"


def write_table(folder: Path, rows: dict[str, str], header: str = "file,label") -> Path:
    table = folder.parent / "table.csv"
    table.write_text("\n".join([header, *(f"{file},{label}" for file, label in rows.items())]))
    return table


def test_classes_are_the_first_level_of_folders(folder: Path):
    photos = read_photo_set(folder, SIZE)
    assert photos.classes == ("a", "a", "b", "none")
    assert (photos.pixels.shape, photos.pixels.dtype) == ((4, 3, 12, 12), torch.uint8)
    assert photos.class_names == ("a", "b", "none")
    assert photos.failures == ()


def test_a_flat_folder_has_no_classes(tmp_path: Path):
    save_photo(tmp_path / "a.png")
    photos = read_photo_set(tmp_path, SIZE)
    assert photos.classes is None
    assert photos.class_names == ("none",)


ROWS = {"b/x.png": "1", "a/x.png": "2", "a/deep/y.jpg": "2", "z.png": "none"}


def test_a_table_gives_the_classes(folder: Path):
    assert read_photo_set(folder, SIZE, table=write_table(folder, ROWS)).classes == ("2", "2", "1", "none")


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (ROWS | {"gone.png": "1"}, "file,label", r"not there: 1 \(gone.png\); paths begin in the folder of photos"),
        (ROWS | {"./z.png": "1"}, "file,label", r"names files that are not there: 1 \(\./z.png\)"),
        (ROWS | {"": "1"}, "file,label", r"has rows without a file: 1 \(\); complete them"),
        ({"z.png": "1"}, "file,label", r"has no row for photos: 3 \(a/deep/y.jpg, a/x.png, b/x.png\)"),
        (ROWS | {"z.png": ""}, "file,label", r"has no label for files: 1 \(z.png\)"),
        (ROWS, "name,kind", "needs a first line with `file` and `label`"),
        ({}, "", "needs a first line with `file` and `label`"),
    ],
)
def test_a_table_that_does_not_fit(folder: Path, rows: dict[str, str], header: str, message: str):
    with pytest.raises(ConfigError, match=message):
        read_photo_set(folder, SIZE, table=write_table(folder, rows, header))


def test_a_file_has_one_class(folder: Path):
    table = write_table(folder, ROWS)
    table.write_text(table.read_text() + "\nz.png,1\n")
    with pytest.raises(ConfigError, match=r"names files twice: 1 \(z.png\); leave one row for each"):
        read_photo_set(folder, SIZE, table=table)


def test_classes_that_are_numbers_keep_their_order():
    classes = ("11", "2", "0", "10", "none", "hat")
    found = PhotoSet(torch.zeros(6, 3, 2, 2, dtype=torch.uint8), classes)
    assert found.class_names == ("0", "2", "10", "11", "hat", "none")


def test_photos_that_cannot_be_read_are_listed_and_keep_the_classes_in_step(folder: Path):
    (folder / "a" / "x.png").write_bytes(b"nothing of the kind")
    photos = read_photo_set(folder, SIZE)
    assert photos.classes == ("a", "b", "none")
    (failure,) = photos.failures
    assert failure.source.endswith("x.png")
    assert "is not an image" in failure.error
    assert photos.pixels[1].equal(read_photo_set(folder / "b", SIZE).pixels[0])


def test_a_set_without_a_readable_photo(tmp_path: Path):
    with pytest.raises(ImageError, match="has no image files"):
        read_photo_set(tmp_path, SIZE)
    (tmp_path / "a.jpg").write_text("text")
    with pytest.raises(ImageError, match=r"none of 1 photos can be read; the first: .*a\.jpg is not an image"):
        read_photo_set(tmp_path, SIZE)
    with pytest.raises(ImageError, match="does not exist"):
        read_photo_set(tmp_path / "nowhere", SIZE)


def save_archive(path: Path, **arrays: object) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (3, *SIZE, 3), dtype=np.uint8)
    np.savez(path, **({"images": images} | arrays))  # pyright: ignore[reportArgumentType]
    return path


def test_an_archive_keeps_its_pixels_and_labels(tmp_path: Path):
    path = save_archive(tmp_path / "p.npz", labels=np.array([1, 0, 1], np.uint8), label_names=np.array(["cat", "dog"]))
    photos = read_photo_set(path, SIZE)
    assert photos.classes == ("dog", "cat", "dog")
    with np.load(path) as archive:
        assert photos.pixels.permute(0, 2, 3, 1).numpy().tobytes() == archive["images"].tobytes()
    names = np.array([b"cat", b"dog"])
    assert read_photo_set(save_archive(tmp_path / "b.npz", labels=[0, 1, 0], label_names=names), SIZE).classes == (
        ("cat", "dog", "cat")
    )
    assert read_photo_set(save_archive(tmp_path / "q.npz", labels=np.array([2, 0, 2])), SIZE).classes == ("2", "0", "2")
    assert read_photo_set(save_archive(tmp_path / "r.npz"), SIZE, limit=2).classes is None


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": np.array([0, 1])}, r"`labels` is int64 \(2,\); 3 photos need whole numbers \(3,\)"),
        ({"labels": np.zeros(3)}, "`labels` is float64"),
        ({"labels": np.array([0, 1, 2]), "label_names": np.array(["a", "b"])}, "go from 0 to 2; there are 2"),
        ({"labels": np.array([0, -1, 2])}, "go from -1 to 2"),
        ({"labels": np.array([0, 1, "2"], dtype=object)}, "`labels` holds objects; store whole numbers"),
        (
            {"labels": np.array([0, 1, 0]), "label_names": np.array(["a", "b"], dtype=object)},
            "`label_names` holds objects; store text",
        ),
    ],
)
def test_labels_of_an_archive_that_do_not_fit(tmp_path: Path, arrays: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        read_photo_set(save_archive(tmp_path / "p.npz", **arrays), SIZE)


def test_a_table_for_an_archive_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=re.escape("is no folder; an .npz has its own `labels`")):
        read_photo_set(save_archive(tmp_path / "p.npz"), SIZE, table=tmp_path / "t.csv")


def test_the_digest_is_of_pixels_and_classes(folder: Path):
    photos = read_photo_set(folder, SIZE)
    assert photos.digest == read_photo_set(folder, SIZE).digest
    assert photos.digest != PhotoSet(photos.pixels, ("a", "b", "b", "none")).digest
    assert photos.digest != PhotoSet(photos.pixels + 1, photos.classes).digest


def test_photos_set_aside_are_not_trained_on():
    photos = PhotoSet(torch.arange(20, dtype=torch.uint8).view(20, 1, 1, 1), tuple(map(str, range(20))))
    kept, held_out = set_aside(photos, 6, seed=1)
    assert held_out is not None
    assert (len(kept), len(held_out)) == (14, 6)
    assert sorted([*kept.pixels.flatten().tolist(), *held_out.pixels.flatten().tolist()]) == list(range(20))
    assert kept.classes == tuple(str(value) for value in kept.pixels.flatten().tolist())
    assert set_aside(photos, 0, seed=1)[1] is None
    with pytest.raises(ConfigError, match="set_aside is 20 of 20 photos"):
        set_aside(photos, 20, seed=1)


def test_every_photo_is_seen_once_an_epoch_however_batches_are_cut():
    order = Order(7, seed=3)
    rows = order.rows(0, 28)
    for epoch in range(4):
        assert sorted(rows[7 * epoch : 7 * epoch + 7].tolist()) == list(range(7))
    assert not rows[:7].equal(rows[7:14])
    assert torch.cat([order.rows(start, 4) for start in range(0, 28, 4)]).equal(rows)
    assert Order(7, seed=3).rows(10, 5).equal(rows[10:15])
