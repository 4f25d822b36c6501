"""Files: written so that a crash, a full disk or Ctrl-C never leaves half of one; listed as people count.

A file is written under a temporary name, and then renamed.
"""

import errno
import glob
import os
import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ddim_edit.errors import LatentsError, OutputError

_STEM_BYTES = 180  # of a temporary name; 255 is what most file systems take, with the rest of it
# Of system errors that name no file, those that writing meets; a lost connection, say, is not one of them.
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


@contextmanager
def atomic(path: Path) -> Generator[Path]:
    """Give a temporary path beside `path`; rename it to `path` when the block ends well, delete it otherwise.

    The temporary name keeps the suffix, because image and video writers choose the format by it.

    Raises:
        OutputError: the folder cannot be written to, or the disk is full. Other errors of the block pass unchanged.
    """
    temporary = path.with_name(f".{_short(path.stem)}.{os.getpid()}.tmp{path.suffix}")
    with writing(path, temporary):
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path, temporary: Path) -> Generator[None]:
    """Make the folders above `path`, and turn system errors that concern its writing into an OutputError.

    Such errors name `path`, `temporary`, something in them or a folder above them, or nothing, as those of a full disk
    do; all others pass unchanged. Folders made here vanish again where nothing is written into them.
    """
    missing: list[Path] = []  # the deepest first
    try:
        missing += [folder for folder in path.parents if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if not _concerns(error, path, temporary):
            raise
        raise OutputError(f"cannot write {path}: {error.strerror or error}; choose another --output") from error
    finally:
        with suppress(OSError):  # until one holds something
            for folder in missing:
                folder.rmdir()


def _short(stem: str) -> str:
    """So much of a name that a temporary one is never too long where the name itself is not."""
    return stem.encode()[:_STEM_BYTES].decode(errors="ignore")


def _concerns(error: OSError, *places: Path) -> bool:
    if not isinstance(error.filename, str | bytes):
        return error.errno in _DISK_ERRORS
    named = Path(os.fsdecode(error.filename)).absolute()
    return any(p.is_relative_to(named) or named.is_relative_to(p) for p in (place.absolute() for place in places))


def remove_leftovers(path: Path) -> None:
    """Delete what killed programs left of this file while they wrote it; no other program may be writing it now."""
    for leftover in path.parent.glob(f".{glob.escape(_short(path.stem))}.*.tmp{path.suffix}"):
        leftover.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a small text file (UTF-8), whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_bytes(data)


def prepare_output(*paths: Path, overwrite: bool) -> None:
    """Check before the long work starts that these files may be written; leave no trace.

    Raises:
        OutputError: a file exists and `overwrite` is false, or its folder cannot be made or written to.
    """
    for path in paths:
        if path.exists() and not overwrite:
            raise OutputError(f"{path} exists; choose another --output or pass --overwrite")
    for folder in {path.parent for path in paths}:
        try:
            there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
            probe = there / f".ddim-edit-probe.{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise OutputError(f"cannot write into {folder}: {error.strerror}; choose another --output") from error


def as_counted(file: Path) -> tuple[list[tuple[bool, int, str]], str]:
    """A key to sort files of a folder by as people count, `a2` before `a10`; the name decides between `a1` and `a01`.

    Numbers come before letters.
    """
    parts = re.findall(r"(\d+)|(\D+)", file.stem.casefold())
    return [(not digits, int(digits or 0), text) for digits, text in parts], file.name


def unique_names(names: Sequence[str]) -> list[str]:
    """Put `-2`, `-3`, ... behind names that were taken already; letter case does not count, as on some disks."""
    unique: list[str] = []
    taken: dict[str, int] = {}  # name -> the highest number given to it
    for name in names:
        number = taken.get(name.casefold(), 0) + 1
        while (candidate := name if number == 1 else f"{name}-{number}").casefold() in taken:
            number += 1
        taken[name.casefold()] = number
        taken.setdefault(candidate.casefold(), 1)
        unique.append(candidate)
    return unique


def find_latents(arguments: Sequence[Path]) -> list[Path]:
    """List the latents files meant by files and folders; those of a folder as people count, `a2` before `a10`.

    Raises:
        LatentsError: a folder has none, or there is no such place.
    """
    if missing := [path for path in arguments if not path.exists()]:
        raise LatentsError(f"{missing[0]} does not exist; give a .safetensors file that encode wrote")
    return [file for path in arguments for file in (_in_folder(path) if path.is_dir() else [path])]


def _in_folder(folder: Path) -> list[Path]:
    found = [file for file in folder.glob("*.safetensors") if not file.name.startswith(".")]
    if not found:
        raise LatentsError(f"{folder} has no .safetensors files; subfolders are not searched")
    return sorted(found, key=as_counted)
