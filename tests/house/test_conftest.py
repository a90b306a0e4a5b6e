"""The shared fixtures are tested like everything else: golden files and the gpu marker."""

from __future__ import annotations

import gc
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from torch._logging._internal import trace_log

from tests.source_tree import ROOT

GOLDEN_TEST = """
def test_text(golden):
    golden("folder/name", "first\\nsecond")
"""
GPU_TEST = """
import pytest
from torch._logging._internal import trace_log

@pytest.mark.gpu
def test_device():
    raise AssertionError("runs without a device")
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of its own with our configuration and conftest."""
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_ADDOPTS", "HYPOTHESIS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (tmp_path / "tests").mkdir()
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path / "tests")
    return tmp_path


def _pytest(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_golden_files_are_written_compared_and_diffed(project: Path) -> None:
    (project / "tests" / "test_it.py").write_text(GOLDEN_TEST)
    file = project / "tests" / "golden" / "folder" / "name.txt"

    missing = _pytest(project)
    assert missing.returncode == 1
    assert "no golden file" in missing.stdout

    assert _pytest(project, "--update-golden").returncode == 0
    assert file.read_text() == "first\nsecond\n"
    assert _pytest(project).returncode == 0

    file.write_text("first\nthird\n")
    different = _pytest(project)
    assert different.returncode == 1
    assert "-third" in different.stdout
    assert "+second" in different.stdout


def test_gpu_tests_are_skipped_with_the_reason(project: Path) -> None:
    (project / "tests" / "test_it.py").write_text(GPU_TEST)
    result = _pytest(project)
    assert result.returncode == 0
    assert "no CUDA device" in result.stdout


def test_the_collector_does_not_look_at_what_the_imports_made() -> None:
    """A test that unfreezes it freezes it again."""
    assert gc.isenabled()
    assert gc.get_freeze_count() > 50_000
    assert gc.get_threshold() == (5000, 10, 20)


def test_torch_traces_for_nobody() -> None:
    """It does for any handler, which takes a tenth of the time of a small capture."""
    assert trace_log.handlers == []
