"""The folder of the cache: entries are whole or missing, bounded in size, and nothing about it stops a run."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from sicompiler.cache.store import MOST_BYTES, Store, default_store

pytestmark = pytest.mark.pure


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def test_an_entry_is_read_as_it_was_written(store: Store) -> None:
    assert store.read("a") is None
    store.write("a", b"some bytes")
    store.write("b", b"")
    assert (store.read("a"), store.read("b")) == (b"some bytes", b"")
    assert store.names("a") == ["a"]
    assert store.info().entries == 2
    assert store.clear() == 2
    assert store.read("a") is None


@pytest.mark.parametrize("damage", [b"", b"something else", b"sicompiler cache 1 " + b"0" * 64 + b"\nsome bytes"])
def test_a_damaged_entry_is_missing_and_said_once(
    store: Store, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "b"):
        store.write(name, b"some bytes")
        (store.folder / f"{name}.entry").write_bytes(damage)
    with caplog.at_level(logging.WARNING, "sicompiler"):
        assert store.read("a") is None
        assert store.read("b") is None
    assert len(caplog.records) == 1
    store.write("a", b"anew")
    assert store.read("a") == b"anew"


def test_a_shortened_entry_is_missing(store: Store) -> None:
    store.write("a", b"some bytes")
    path = store.folder / "a.entry"
    path.write_bytes(path.read_bytes()[:-1])
    assert store.read("a") is None


def test_a_folder_that_cannot_be_used_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    store = Store(tmp_path / "file" / "cache")
    with caplog.at_level(logging.WARNING, "sicompiler"):
        for _ in range(2):
            store.write("a", b"some bytes")
        assert store.info().entries == 0
    assert [record.getMessage().count("can't be written") for record in caplog.records] == [1]


def test_a_full_disk_leaves_no_half_entry(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    store.write("a", b"some bytes")
    monkeypatch.undo()
    assert list(store.folder.iterdir()) == []


def test_an_interrupt_leaves_no_half_entry(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.write("a", b"some bytes")
    assert list(store.folder.iterdir()) == []


def test_entries_that_were_not_read_for_longest_go_first(tmp_path: Path) -> None:
    store = Store(tmp_path, most_bytes=1000)
    (tmp_path / "killed.part").write_bytes(b"half of it")
    os.utime(tmp_path / "killed.part", (0, 0))
    for index in range(4):
        store.write(f"entry{index}", bytes(200 - 84))
        os.utime(tmp_path / f"entry{index}.entry", (index, index))
    assert store.read("entry0") is not None  # now it is the newest
    store.write("large", bytes(400))
    assert store.names("") == ["entry0", "large"]
    assert store.info().total_bytes <= 1000
    assert not list(tmp_path.glob("*.part"))
    store.write("huge", bytes(2000))
    assert store.read("huge") is None


@pytest.mark.parametrize("said", ["off", "none", "0", " OFF "])
def test_the_environment_switches_it_off(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SICOMPILER_CACHE", said)
    assert default_store() is None


def test_the_environment_names_folder_and_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SICOMPILER_CACHE", "~/plans")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SICOMPILER_CACHE_BYTES", "1000000")
    found = default_store()
    assert found is not None
    assert (found.folder, found.most_bytes) == (tmp_path / "plans", 10**6)
    monkeypatch.setenv("SICOMPILER_CACHE_BYTES", "a lot")
    found = default_store()
    assert found is not None
    assert found.most_bytes == MOST_BYTES
    monkeypatch.delenv("SICOMPILER_CACHE")
    found = default_store()
    assert found is not None
    assert found.folder.name == "sicompiler"
