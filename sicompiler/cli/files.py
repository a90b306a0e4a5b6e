"""Files that commands write: looked at before the work, written in one piece, and never lost with the disk."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from pathlib import Path

from sicompiler.cli.output import note, show_text
from sicompiler.errors import BadInput

ROOM_BYTES = 2**18  # a plan of a full-size model takes less


def check_file(path: Path | None, what: str) -> Path | None:
    """Find out before the work, not after it, that a file can be written. Nothing is left behind.

    Args:
        path: where to; None for nowhere.
        what: it holds, for the error.

    Returns:
        The path with `~` expanded.

    Raises:
        BadInput: it can't; says why.
    """
    if path is None:
        return None
    path = _expanded(path, what)
    try:
        if path.is_dir():
            raise BadInput(f"can't save {what}: {path} is a folder")
        if not path.absolute().parent.is_dir():
            raise BadInput(f"can't save {what}: {path} is in a folder that does not exist")
        _check_own(path)
        if path.exists() and not path.is_file():
            _check_device(path)
        elif path.exists() and not _in_its_folder(path):
            with path.open("r+b"):  # no file can be put beside it, but this one can be written
                pass
        else:
            _check_room(path.resolve().parent)
    except OSError as error:
        raise _cannot(path, what, error) from error
    return path


def check_folder(path: Path, what: str) -> Path:
    """Find out before the work that files can be written into a folder; it is made if it is missing.

    Args:
        path: the folder.
        what: goes there, for the error.

    Returns:
        The path with `~` expanded.

    Raises:
        BadInput: they can't; says why.
    """
    path = _expanded(path, what)
    try:
        path.mkdir(parents=True, exist_ok=True)
        _check_room(path)
    except FileExistsError as error:
        raise BadInput(f"can't save {what}: {path} is a file, not a folder") from error
    except OSError as error:
        raise _cannot(path, what, error) from error
    return path


def save(path: Path, text: str, what: str) -> None:
    """Write a file in one piece: whoever is interrupted, or has a full disk, keeps the file as it was.

    What was computed is not lost: where the file can't be written, it goes to the system's temporary folder, or else
    to stdout, and the error says so.

    Raises:
        BadInput: it could not be written where it was wanted.
    """
    try:
        write(path, text)
    except OSError as error:
        raise BadInput(f"{_cannot(path, what, error)}; {_rescued(path, text)}") from error


def write(path: Path, text: str) -> None:
    """Write a file in one piece, beside its place first; devices and pipes are written as they are.

    Raises:
        OSError: it can't be written; what was there is as it was.
    """
    _check_own(path)
    if path.exists() and not (path.is_file() and _in_its_folder(path)):
        with path.open("w", encoding="utf-8") as file:
            file.write(text)
        return
    target = path.resolve()  # of a link, what it points to
    fresh = target.with_name(f".{target.name}.{os.getpid()}.new")
    try:
        fresh.write_text(text, encoding="utf-8")
        if target.exists():
            fresh.chmod(stat.S_IMODE(target.stat().st_mode))
        fresh.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise


def _rescued(path: Path, text: str) -> str:
    try:
        other = Path(tempfile.mkdtemp(prefix="sicompiler-")) / (path.name or "output")
        write(other, text)
    except OSError:
        show_text(text if text.endswith("\n") else f"{text}\n")
        return "it was printed instead"
    note(f"saved {other} instead")
    return f"it is in {other}"


def _check_room(folder: Path) -> None:
    """Take some space in a folder, and give it back."""
    with tempfile.TemporaryFile(prefix=".sicompiler-", dir=folder) as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, ROOM_BYTES)
        else:
            file.write(bytes(ROOM_BYTES))
            file.flush()


def _check_device(path: Path) -> None:
    """Write an empty line to what is no file, unless somebody would read it."""
    if stat.S_ISCHR(path.stat().st_mode):
        with path.open("wb", buffering=0) as device:
            if not device.isatty():
                device.write(b"\n")
    elif not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _check_own(path: Path) -> None:
    """A file that is write-protected is not replaced by another one."""
    if path.is_file() and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _in_its_folder(path: Path) -> bool:
    """Whether another file can be put beside one, to take its place."""
    return os.access(path.resolve().parent, os.W_OK)


def _expanded(path: Path, what: str) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:  # ~somebody, who has no home
        raise BadInput(f"can't save {what}: {path}: {error}") from error


def _cannot(path: Path, what: str, error: OSError) -> BadInput:
    return BadInput(f"can't save {what} as {path}: {error.strerror or error}")
