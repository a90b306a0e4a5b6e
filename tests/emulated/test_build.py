"""Building: once, whole or not at all, and tests are skipped with the reason where it can't be done."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.emulated import build
from tests.source_tree import ROOT


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sources of a library that is quickly built, and a cache of its own."""
    folder = tmp_path / "csrc"
    folder.mkdir()
    (folder / "one.cpp").write_text("int one() { return 1; }")
    monkeypatch.setattr(build, "SOURCES", folder)
    monkeypatch.setattr(build, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(build, "LIBRARIES", ())
    return folder


def test_a_library_is_built_once_for_its_sources(sources: Path) -> None:
    first = build.extension()
    built = first.stat().st_mtime_ns
    assert build.extension() == first
    assert first.stat().st_mtime_ns == built
    (sources / "two.cpp").write_text("int two() { return 2; }")
    assert build.extension() != first


def test_processes_that_ask_at_a_time_get_one_library(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builds = []

    def slowly(compiler: str, library: Path) -> None:
        builds.append(compiler)
        time.sleep(0.2)
        library.write_bytes(b"a library")

    monkeypatch.setattr(build, "_build", slowly)
    with ThreadPoolExecutor(3) as pool:  # a lock on a file holds between threads that open it each, too
        assert len(set(pool.map(lambda _: build.extension(), range(3)))) == 1
    assert len(builds) == 1


def test_a_compiler_that_fails_leaves_nothing_and_says_why(sources: Path) -> None:
    (sources / "two.cpp").write_text("int two( {")
    with pytest.raises(build.BuildError, match=r"(?s)two\.cpp.*failed:.*error:"):
        build.extension()
    assert [path.name for path in build.CACHE.rglob("*") if path.is_file()] == ["lock"]


def test_another_compiler_builds_anew(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build.extension()
    other = tmp_path / "another-compiler"
    other.write_text('#!/bin/sh\n[ "$1" = --version ] && echo another && exit\nexec c++ "$@"\n')
    other.chmod(0o755)
    monkeypatch.setenv("CXX", str(other))
    assert build.extension() != first


@pytest.mark.parametrize(("required", "status", "words"), [("", 0, "1 skipped"), ("required", 4, "is required")])
def test_without_a_compiler_tests_are_skipped_with_the_reason(required: str, status: int, words: str) -> None:
    environment = {"CXX": "no-such-compiler", "SICOMPILER_EMULATED": required}
    test = "tests/emulated/test_separation.py::test_it_is_torchs_accelerator"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", test]
    result = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == status
    assert words in result.stdout + result.stderr
    assert "no C++ compiler: no-such-compiler is not on the path" in result.stdout + result.stderr
