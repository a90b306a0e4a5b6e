"""A folder of entries: written at once, checked when read, bounded in size, and never a reason for a run to fail."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_path

log = logging.getLogger("sicompiler")

VARIABLE = "SICOMPILER_CACHE"  # names the folder; "off" switches the cache off
SIZE_VARIABLE = "SICOMPILER_CACHE_BYTES"  # how large it may grow
MOST_BYTES = 2**30
KEPT_SHARE = 0.8  # of the bound that is left after the oldest entries have gone: evicting is not for every write
STALE_SECONDS = 3600  # after which a half-written file is nobody's
OFF = frozenset({"off", "none", "0", "false"})
SUFFIX, PART = ".entry", ".part"
_MAGIC = b"sicompiler cache 1 "
_HEAD = len(_MAGIC) + 64 + 1


@dataclass(frozen=True)
class Info:
    """What lies in a cache.

    Attributes:
        folder: where.
        entries: how many.
        total_bytes: of all of them.
        most_bytes: the bound.
    """

    folder: Path
    entries: int
    total_bytes: int
    most_bytes: int


class Store:
    """Entries by name in a folder that several processes may share.

    An entry appears as a whole or not at all: it is written beside and renamed. One that is damaged, or none of ours,
    is taken for missing and written anew. Where the folder can't be used, everything is missing and nothing is kept;
    that is said once.

    Args:
        folder: where; made when something is written.
        most_bytes: when there is more, the entries go that have not been read for longest.
    """

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES) -> None:
        self.folder, self.most_bytes = folder, most_bytes
        self._lock = threading.Lock()
        self._said: set[str] = set()
        self._written_bytes = most_bytes  # since the folder was looked through last: the first write looks

    def read(self, name: str) -> bytes | None:
        """The bytes of an entry; None where there is none that is whole."""
        path = self._path(name)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._say("read", f"can't be read ({error.strerror or error}); planning goes on without it")
            return None
        body = data[_HEAD:]
        if data[:_HEAD] != _MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n":
            self.drop(name, "is damaged, or of another program")
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # the last to go
        return body

    def drop(self, name: str, why: str) -> None:
        """Remove an entry that is of no use; it is written anew when it is needed.

        Args:
            name: of the entry.
            why: what is wrong with it, to go on after "an entry".
        """
        self._say("damaged", f"has an entry that {why}: {name}{SUFFIX}; it is ignored and written anew")
        with contextlib.suppress(OSError):
            self._path(name).unlink()

    def write(self, name: str, body: bytes) -> None:
        """Keep an entry; an older one of that name is replaced."""
        data = _MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n" + body
        if len(data) > self.most_bytes:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, part = tempfile.mkstemp(suffix=PART, dir=self.folder)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                os.replace(part, self._path(name))
            except BaseException:  # an interrupt too: no half entry stays
                with contextlib.suppress(OSError):
                    os.unlink(part)
                raise
        except OSError as error:
            self._say(
                "written", f"can't be written ({error.strerror or error}); plans are not kept for the next process"
            )
            return
        with self._lock:
            self._written_bytes += len(data)
            due = self._written_bytes > (1 - KEPT_SHARE) * self.most_bytes
        if due:
            self._evict()

    def names(self, prefix: str) -> list[str]:
        """The entries whose names begin so, in order."""
        try:
            return sorted(path.name.removesuffix(SUFFIX) for path in self.folder.glob(f"{prefix}*{SUFFIX}"))
        except OSError:
            return []

    def info(self) -> Info:
        """What lies there."""
        sizes = [stat.st_size for _, stat in self._files()]
        return Info(self.folder, len(sizes), sum(sizes), self.most_bytes)

    def clear(self) -> int:
        """Remove all entries; gives how many there were.

        Raises:
            OSError: one can't be removed.
        """
        files = [path for path, _ in self._files()]
        for path in (*files, *self.folder.glob(f"*{PART}")):
            path.unlink(missing_ok=True)
        return len(files)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}{SUFFIX}"

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        with contextlib.suppress(OSError):
            for path in list(self.folder.glob(f"*{SUFFIX}")):
                with contextlib.suppress(OSError):  # another process has removed it
                    yield path, path.stat()

    def _evict(self) -> None:
        """Remove the entries that have not been read for longest, where there are too many bytes."""
        files = sorted(self._files(), key=lambda row: row[1].st_mtime, reverse=True)
        kept_bytes = 0
        total_bytes = sum(stat.st_size for _, stat in files)
        limit = self.most_bytes if total_bytes <= self.most_bytes else int(KEPT_SHARE * self.most_bytes)
        for path, stat in files:
            kept_bytes += stat.st_size
            if kept_bytes > limit:
                with contextlib.suppress(OSError):
                    path.unlink()
                kept_bytes -= stat.st_size
        with contextlib.suppress(OSError):
            for part in self.folder.glob(f"*{PART}"):  # of processes that were killed
                if time.time() - part.stat().st_mtime > STALE_SECONDS:
                    part.unlink()
        with self._lock:
            self._written_bytes = 0

    def _say(self, kind: str, what: str) -> None:
        with self._lock:
            new = kind not in self._said
            self._said.add(kind)
        if new:
            log.warning("the cache in %s %s", self.folder, what)


def default_store() -> Store | None:
    """The cache that the environment names, or that of the user; None where it is switched off."""
    said = os.environ.get(VARIABLE, "").strip()
    if said.lower() in OFF:
        return None
    try:
        folder = Path(said).expanduser().absolute() if said else user_cache_path("sicompiler")
    except (OSError, RuntimeError) as error:  # no such user, or the working folder is gone
        log.warning("there is no cache: %s", error)
        return None
    try:
        most_bytes = int(os.environ.get(SIZE_VARIABLE, "") or MOST_BYTES)
    except ValueError:
        log.warning("%s is not a number of bytes: %r", SIZE_VARIABLE, os.environ[SIZE_VARIABLE])
        most_bytes = MOST_BYTES
    known = _stores.get(folder)
    if known is None or known.most_bytes != most_bytes:
        known = _stores[folder] = Store(folder, most_bytes)
    return known


_stores: dict[Path, Store] = {}  # one a folder, so that what is wrong with it is said once
