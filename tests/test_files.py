"""Files are written whole or not at all, and names are told apart."""

import errno
import os
from collections.abc import Iterator
from math import nan
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ddim_edit.errors import DdimEditError, ImageError, OutputError
from ddim_edit.files import atomic, prepare_output, remove_leftovers, unique_names, write_bytes, write_text
from ddim_edit.video import write_video


def write_half(path: Path, error: BaseException) -> None:
    with atomic(path) as temporary:
        temporary.write_text("half", encoding="utf-8")
        raise error


def test_a_file_appears_whole_and_nothing_else_stays(tmp_path: Path):
    write_text(tmp_path / "new" / "a.txt", "text")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.txt"]
    assert (tmp_path / "new" / "a.txt").read_text(encoding="utf-8") == "text"


@pytest.mark.parametrize("name", ["a.txt", "frames"])
def test_folders_made_for_a_file_that_is_not_written_vanish_again(tmp_path: Path, name: str):
    (tmp_path / "old").mkdir()
    target = tmp_path / "old" / "new" / "newer" / name
    with pytest.raises(DdimEditError):
        write_half(target, ImageError("stop")) if name == "a.txt" else write_video([torch.full((3, 4, 4), nan)], target)
    assert list(tmp_path.rglob("*")) == [tmp_path / "old"]
    write_text(tmp_path / "old" / "new" / "b.txt", "text")
    with pytest.raises(ImageError):
        write_half(target, ImageError("stop"))
    assert set((tmp_path / "old").rglob("*")) == {tmp_path / "old" / "new", tmp_path / "old" / "new" / "b.txt"}


def test_the_check_of_an_output_makes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "new" / "newer" / "a.txt", Path("new") / "a.txt", Path("a.txt")):
        prepare_output(path, overwrite=False)
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path, error: type[BaseException]):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(error):
        write_half(tmp_path / "a.txt", error())
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "old"


def test_a_full_disk_is_an_output_error(tmp_path: Path):
    with pytest.raises(OutputError, match="No space left"):
        write_half(tmp_path / "a.txt", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory", "photo.jpg"),
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        OSError("a library's own error"),
    ],
    ids=["another file", "the network", "no system error"],
)
@pytest.mark.parametrize("name", ["a.txt", "frames"])
def test_what_does_not_concern_the_file_is_not_blamed_on_it(tmp_path: Path, name: str, error: OSError):
    def frames() -> Iterator[Tensor]:
        yield torch.zeros(3, 4, 4)
        raise error

    with pytest.raises(type(error)) as caught:
        write_half(tmp_path / name, error) if name == "a.txt" else write_video(frames(), tmp_path / name)
    assert caught.value is error
    assert list(tmp_path.iterdir()) == []


def test_what_concerns_the_file_is_named_however_the_path_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def write_elsewhere() -> None:
        with atomic(Path("a.txt")) as temporary:
            (temporary.absolute() / "below a file that is not there").touch()

    with pytest.raises(OutputError, match=r"cannot write a\.txt: No such file"):
        write_elsewhere()


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        write_text(tmp_path / "file" / "a.txt", "text")
    with pytest.raises(OutputError, match="cannot write into"):
        prepare_output(tmp_path / "file" / "a.txt", overwrite=False)


def test_what_exists_is_refused_unless_it_may_be_replaced(tmp_path: Path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(OutputError, match="exists; choose another --output or pass --overwrite"):
        prepare_output(tmp_path / "a.txt", overwrite=False)
    prepare_output(tmp_path / "a.txt", overwrite=True)
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "old"


@pytest.mark.parametrize("stem", ["猫" * 82, "x" * 250])
def test_a_name_that_the_disk_takes_is_not_too_long_to_be_written(tmp_path: Path, stem: str):
    path = tmp_path / f"{stem}.png"
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    with atomic(path) as temporary:
        temporary.write_bytes(b"killed here")
        left = temporary.with_name(temporary.name.replace(f".{os.getpid()}.", ".1."))
        left.write_bytes(b"")
    remove_leftovers(path)
    assert list(tmp_path.iterdir()) == [path]


def test_names_are_numbered_whatever_their_case():
    assert unique_names(["a", "b", "A", "a", "a-2"]) == ["a", "b", "A-2", "a-3", "a-2-2"]
