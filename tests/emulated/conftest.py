"""A session of its own: torch gives its spare device a name once a process, and then it is torch's accelerator.

`pytest tests/emulated` builds the device first (`build.py`). Where there is no compiler, or it fails, all tests here
are skipped with the reason, unless SICOMPILER_EMULATED=required.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
UNAVAILABLE = pytest.StashKey[str]()
FAILED = "SICOMPILER_EMULATED_FAILED"  # why, for the workers of a session that has seen the compiler fail


def pytest_configure(config: pytest.Config) -> None:
    """Build the device and start it in this process, with one thread: its kernels are small."""
    import torch

    from tests.emulated import accelerator, build

    torch.set_num_threads(1)
    reason = os.environ.get(FAILED)
    if reason is None:
        try:
            accelerator.start(build.extension())
            return
        except build.BuildError as error:
            reason = str(error)
    if os.environ.get("SICOMPILER_EMULATED") == "required":
        raise pytest.UsageError(f"the emulated accelerator is required: {reason}")
    os.environ[FAILED] = reason
    config.stash[UNAVAILABLE] = reason


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip tests where the device could not be built, and refuse tests that count on there being none."""
    strangers = {item.path.name for item in items if HERE not in item.path.parents}
    if strangers:
        raise pytest.UsageError(f"tests/emulated needs a session of its own, without {sorted(strangers)}")
    if reason := config.stash.get(UNAVAILABLE, None):
        for item in items:
            item.add_marker(pytest.mark.skip(reason=f"no emulated accelerator: {reason}"))


@pytest.fixture(autouse=True)
def fresh_device(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test begins with an empty device of 2 GiB in sync order that raises races."""
    import torch

    from tests.emulated import accelerator

    accelerator.configure()
    torch.accelerator.empty_cache()
    accelerator.empty_host_cache()
    torch.accelerator.reset_accumulated_memory_stats()
    torch.accelerator.reset_peak_memory_stats()
    yield
    gc.collect()
    accelerator.configure()
