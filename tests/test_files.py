"""Files are written whole or not at all, and names are told apart."""

import os
from pathlib import Path

import pytest

from ddim_edit.errors import OutputError
from ddim_edit.files import atomic, prepare_output, unique_names, write_text


def write_half(path: Path, error: BaseException) -> None:
    with atomic(path) as temporary:
        temporary.write_text("half", encoding="utf-8")
        raise error


def test_a_file_appears_whole_and_nothing_else_stays(tmp_path: Path):
    write_text(tmp_path / "new" / "a.txt", "text")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.txt"]
    assert (tmp_path / "new" / "a.txt").read_text(encoding="utf-8") == "text"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path, error: type[BaseException]):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(error):
        write_half(tmp_path / "a.txt", error())
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "old"


def test_a_full_disk_is_an_output_error(tmp_path: Path):
    with pytest.raises(OutputError, match="No space left"):
        write_half(tmp_path / "a.txt", OSError(28, os.strerror(28)))
    assert list(tmp_path.iterdir()) == []


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


def test_names_are_numbered_whatever_their_case():
    assert unique_names(["a", "b", "A", "a", "a-2"]) == ["a", "b", "A-2", "a-3", "a-2-2"]
