"""What every test shares: the golden files, the gpu marker, Hypothesis profiles, one thread per worker."""

from __future__ import annotations

import difflib
import gc
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

if TYPE_CHECKING:
    from sicompiler import RehashPlan

GOLDEN = Path(__file__).parent / "golden"
Golden = Callable[[str, str], None]

hypothesis.settings.register_profile("default", derandomize=True, deadline=None, max_examples=50)
hypothesis.settings.register_profile("deep", derandomize=False, deadline=None, max_examples=300, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--update-golden`."""
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden from what the code prints now")


def pytest_configure(config: pytest.Config) -> None:
    """Give each xdist worker one torch thread: workers that each take every core slow one another down.

    No test reads plans or figures of an earlier run; those of the cache have one of their own.
    """
    os.environ["SICOMPILER_CACHE"] = os.environ["SICOMPILER_CALIBRATION"] = "off"
    if "PYTEST_XDIST_WORKER" in os.environ:
        import torch

        torch.set_num_threads(1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each worker neighbouring tests, which share what they need, and in the end what others have left.

    Args:
        config: of the process that hands the tests out.
        log: of xdist.
    """
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getoption("dist") == "load" else None


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[None]:
    """Keep the collector from looking at what stays, again and again: a tenth of the time of all tests.

    What the imports make is half a million objects, never looked at. What tests keep for later ones (programs of the
    zoo, planners) is looked at after a million new objects, in place of 70,000.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.set_threshold(5000, 10, 20)
        gc.enable()
        _nobody_reads_traces()


def _nobody_reads_traces() -> None:
    """Keep pytest from collecting torch's trace log: torch tells stacks and prints graphs for whoever does."""
    if "torch" in sys.modules:
        trace = logging.getLogger("torch.__trace")
        trace.handlers.clear()
        trace.propagate = True  # pytest adds its handlers to the root, and to loggers that do not propagate


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Bring together what shares, and skip tests marked gpu where there is no CUDA device.

    Tests of planners read what tests of whole models have captured and analysed (`tests/zoo.py`), so they come next.
    """
    items.sort(key=lambda item: "exact, then planners" if _folder(item) == "planners" else _folder(item))
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def _folder(item: pytest.Item) -> str:
    return item.nodeid.split("/")[1] if "/" in item.nodeid else ""


@pytest.fixture(autouse=True)
def no_models(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hold tests marked pure to it: none of them makes a module of torch."""
    if request.node.get_closest_marker("pure") is None:
        return
    import torch

    def refused(self: torch.nn.Module, *args: object, **kwargs: object) -> None:
        pytest.fail(f"a pure test makes a {type(self).__name__}")

    monkeypatch.setattr(torch.nn.Module, "__init__", refused)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """Compare text with `tests/golden/NAME.txt`: `golden(name, text)`.

    Under `--update-golden` the file is rewritten; read the change in `git diff` before committing it.
    """

    def compare(name: str, text: str) -> None:
        path = GOLDEN / f"{name}.txt"
        text = text.rstrip("\n") + "\n"
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return
        if not path.exists():
            pytest.fail(f"no golden file {path}: run pytest --update-golden and read what it writes", pytrace=False)
        expected = path.read_text(encoding="utf-8")
        if text != expected:
            lines = difflib.unified_diff(
                expected.splitlines(), text.splitlines(), f"golden/{name}.txt", "now", lineterm=""
            )
            pytest.fail(
                "\n".join(["differs from the golden file (--update-golden accepts it):", *lines]), pytrace=False
            )

    return compare


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of all tests of a process that want a cache, and of no other run."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def cached(cache_folder: Path) -> Iterator[None]:
    """The cache on disk, as users have it: what was captured or planned once is read at further budgets and tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SICOMPILER_CACHE", str(cache_folder))
        yield


@pytest.fixture(scope="module")
def half(cached: None) -> RehashPlan:
    """A plan of the mini pipeline that skips half of its evaluations, made once for the tests that only run it."""
    from tests.mini_pipeline import mini
    from tests.mini_rehash import half_plan

    return half_plan(mini())


@pytest.fixture(scope="module")
def fast_skips() -> Iterator[None]:
    """Times that are told: skipped evaluations take a quarter of full ones, which no model of a test's size shows."""
    from tests.mini_rehash import skipping_is_fast, told_clock

    with pytest.MonkeyPatch.context() as patch:
        told_clock(patch, skipping_is_fast)
        yield
