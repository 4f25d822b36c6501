"""Writing files so that a crash, a full disk or Ctrl-C never leaves half of one: temporary name, then rename."""

import errno
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ddim_edit.errors import OutputError

# Of system errors that name no file, those that writing meets; a lost connection, say, is not one of them.
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


@contextmanager
def atomic(path: Path) -> Generator[Path]:
    """Give a temporary path beside `path`; rename it to `path` when the block ends well, delete it otherwise.

    The temporary name keeps the suffix, because image and video writers choose the format by it.

    Raises:
        OutputError: the folder cannot be written to, or the disk is full. Other errors of the block pass unchanged.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    with reported(path, temporary):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            temporary.replace(path)
        finally:
            with suppress(OSError):  # where not even the folder could be made, there is nothing to delete
                temporary.unlink()


@contextmanager
def reported(path: Path, temporary: Path) -> Generator[None]:
    """Turn system errors that concern the writing of `path` into an OutputError; all others pass unchanged.

    They name one of the two, something in it or a folder above it, or nothing, as those of a full disk do.
    """
    try:
        yield
    except OSError as error:
        if not _concerns(error, path, temporary):
            raise
        raise OutputError(f"cannot write {path}: {error.strerror or error}; choose another --output") from error


def _concerns(error: OSError, *places: Path) -> bool:
    if not isinstance(error.filename, str | bytes):
        return error.errno in _DISK_ERRORS
    named = Path(os.fsdecode(error.filename)).absolute()
    return any(p.is_relative_to(named) or named.is_relative_to(p) for p in (place.absolute() for place in places))


def write_text(path: Path, text: str) -> None:
    """Write a small text file (UTF-8), whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def prepare_output(*paths: Path, overwrite: bool) -> None:
    """Check before the long work starts that these files may be written, and make their folders.

    Raises:
        OutputError: a file exists and `overwrite` is false, or its folder cannot be made or written to.
    """
    for path in paths:
        if path.exists() and not overwrite:
            raise OutputError(f"{path} exists; choose another --output or pass --overwrite")
    for folder in {path.parent for path in paths}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".ddim-edit-probe.{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise OutputError(f"cannot write into {folder}: {error.strerror}; choose another --output") from error


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
