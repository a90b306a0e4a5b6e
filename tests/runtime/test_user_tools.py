"""A user's own tools around calls: profilers, tracers, modes and switches of torch. Planning happens inside, too."""

from __future__ import annotations

import contextlib
import cProfile
import json
import sys
import threading
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import sicompiler
from tests.mini_pipeline import MiniText, close, mini, picture
from tests.threads import in_threads

pytestmark = pytest.mark.usefixtures("cached")

TIGHT = "150KiB"  # sliced
PROFILER = "a profiler of yours was running"


class Operators(TorchDispatchMode):
    """Sees every operator."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def switched(switch: Callable[..., object], on: object, off: object) -> Iterator[None]:
    switch(on)
    try:
        yield
    finally:
        switch(off)


@contextlib.contextmanager
def tracing_python_memory() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


@contextlib.contextmanager
def warnings_are_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@contextlib.contextmanager
def warming_up() -> Iterator[None]:
    """A profiler with a schedule, at the step before it records: nothing of torch tells that it is there."""
    with torch.profiler.profile(schedule=torch.profiler.schedule(wait=0, warmup=1, active=1)) as profiler:
        yield
        profiler.step()
        torch.ones(2) + 1
    assert any(event.name == "aten::add" for event in profiler.events())


Tool = Callable[[], AbstractContextManager[Any]]
PROFILERS: dict[str, Tool] = {
    "torch.profiler": lambda: torch.profiler.profile(profile_memory=True),
    "torch.autograd.profiler": torch.autograd.profiler.profile,
}
TOOLS: dict[str, Tool] = {
    "measure_peak": lambda: sicompiler.measure_peak("cpu"),
    "torch.profiler, warming up": warming_up,
    "record_function": lambda: torch.profiler.record_function("mine"),
    "cProfile": cProfile.Profile,
    "sys.setprofile": lambda: switched(sys.setprofile, lambda *event: None, None),
    "tracemalloc": tracing_python_memory,
    "an operator mode": Operators,
    "FlopCounterMode": lambda: FlopCounterMode(display=False),
    "inference_mode": torch.inference_mode,
    "enable_grad": torch.enable_grad,
    "a default device": lambda: switched(torch.set_default_device, "cpu", None),
    "deterministic algorithms": lambda: switched(torch.use_deterministic_algorithms, True, False),
    "anomaly mode": lambda: torch.autograd.set_detect_anomaly(True),
    "warnings as errors": warnings_are_errors,
}
MARKS = dict.fromkeys(
    ("tracemalloc", "sys.setprofile", "enable_grad", "a default device", "anomaly mode", "record_function"),
    pytest.mark.slow,
)


def undecided() -> Any:
    """A pipeline with an encoder that runs untouched; its weights are the same each time."""
    torch.manual_seed(3)
    return mini(text_encoder=MiniText(untraceable=True))


@pytest.fixture(scope="module")
def reference() -> torch.Tensor:
    found: torch.Tensor = undecided()(picture())
    return found


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize(
    "tool",
    [pytest.param(tool, id=name, marks=MARKS.get(name, ())) for name, tool in (PROFILERS | TOOLS).items()],
)
def test_calls_inside_of_a_tool_plan_and_run(tool: Tool, reference: torch.Tensor) -> None:
    """With an encoder that runs untouched, which is measured where that disturbs nobody."""
    pipe = undecided()
    sicompiler.compile_for_budget(pipe, TIGHT)
    with tool():
        first = pipe(picture())
    with tool():
        second = pipe(picture())
    assert close(first, reference)
    assert close(second, reference)
    row = sicompiler.report(pipe).phases[0]
    if tool in PROFILERS.values():
        assert (row.measured_peak_bytes, row.not_measured) == (None, PROFILER)
    else:
        assert row.measured_peak_bytes is not None
        assert row.not_measured == ""
    sicompiler.release(pipe)
    assert torch.equal(pipe(picture()), reference)


@pytest.mark.parametrize("profiler", PROFILERS.values(), ids=PROFILERS.keys())
def test_where_we_step_aside_reports_and_verifications_say_so(profiler: Tool, reference: torch.Tensor) -> None:
    pipe = undecided()
    sicompiler.compile_for_budget(pipe, "2MiB")
    with profiler():
        pipe(picture())
    report = sicompiler.report(pipe)
    assert f"text_encoder was not measured: {PROFILER}" in str(report)
    assert json.loads(report.to_json())["phases"][0]["not_measured"] == PROFILER
    with profiler():
        found = sicompiler.verify(pipe, ((picture(),), {}))
        on_its_own = sicompiler.verify(pipe)
    for verification in (found, on_its_own):
        assert verification.max_rel_error <= 1e-12
        assert verification.not_measured == PROFILER
        assert not verification.fits
        assert f"peak:   not measured: {PROFILER}" in str(verification)
    assert close(pipe(picture()), reference)
    report = sicompiler.report(pipe)
    assert report.phases[0].measured_peak_bytes is not None
    assert "text_encoder was not measured" not in str(report)  # by now it was, though nobody asked for it


def test_measuring_around_a_call_and_around_a_verification_agree_with_it() -> None:
    pipe = undecided()
    sicompiler.compile_for_budget(pipe, TIGHT)
    pipe(picture())
    with sicompiler.measure_peak("cpu") as plain:
        pipe(picture())
    with sicompiler.measure_peak("cpu") as around:
        found = sicompiler.verify(pipe, ((picture(),), {}))
    assert found.fits, str(found)
    assert 0 < plain.bytes < found.measured_peak_bytes
    assert around.bytes >= plain.bytes


def test_a_module_is_verified_inside_of_a_profiler() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), torch.nn.ReLU(), torch.nn.Conv2d(32, 3, 3)).eval()
    x = torch.randn(1, 3, 32, 32)
    sicompiler.compile_for_budget(model, "1MiB")
    with torch.profiler.profile(), torch.no_grad():
        model(x)
        found = sicompiler.verify(model, ((x,), {}))
    assert found.not_measured == PROFILER
    assert found.max_rel_error < 1e-5


def test_two_threads_with_two_pipelines_one_of_them_profiled(reference: torch.Tensor) -> None:
    """Each is measured or not by itself; a second session of torch.profiler would crash the process."""
    pipes = [undecided() for _ in range(2)]
    for pipe in pipes:
        sicompiler.compile_for_budget(pipe, "2MiB")
    both, right = threading.Barrier(2, timeout=100), []

    def run(number: int) -> None:
        both.wait()
        with torch.profiler.profile() if number else sicompiler.measure_peak("cpu"):
            right.append(close(pipes[number](picture()), reference))

    def start_together(number: int) -> None:
        with contextlib.suppress(sicompiler.SicompilerError):  # the profiler may be refused, never the call
            run(number)

    in_threads(start_together)
    assert all(right)
    assert right
    rows = [sicompiler.report(pipe).phases for pipe in pipes]
    assert rows[0][0].measured_peak_bytes is not None


class Doubling(TorchFunctionMode):
    """Replaces what a function computes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        return 2 * found if func is torch.nn.functional.silu else found


def test_a_mode_that_may_replace_functions_is_refused_by_name(reference: torch.Tensor) -> None:
    pipe = undecided()
    sicompiler.compile_for_budget(pipe, "2MiB")
    for _ in range(2):
        with Doubling(), pytest.raises(sicompiler.BadInput, match="called inside of Doubling, a TorchFunctionMode"):
            pipe(picture())
        assert close(pipe(picture()), reference)


def test_weights_that_were_streamed_in_inference_mode_can_be_trained_afterwards() -> None:
    pipe = mini()
    sicompiler.compile_for_budget(pipe, "2MiB")
    pipe(picture())
    floor_bytes = sicompiler.report(pipe).floor_bytes
    sicompiler.compile_for_budget(pipe, f"{floor_bytes - 2000}B")
    with torch.inference_mode():
        pipe(picture())
    sicompiler.release(pipe)
    assert not any(
        p.is_inference() for name in ("unet", "vae", "text_encoder") for p in getattr(pipe, name).parameters()
    )
    pipe.vae.decode(torch.ones(1, 4, 6, 6, dtype=torch.float64)).sample.sum().backward()
    assert pipe.vae.out.weight.grad is not None
