"""Components that several compiled pipelines share: one budget each, the smallest holds for what is shared.

Pipelines are compiled, called, compiled again, released and dropped in any order, from one thread and from two.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import sicompiler
from sicompiler.pipelines import pipeline as pipeline_module
from sicompiler.pipelines.components import modules_of
from sicompiler.pipelines.pipeline import pipeline_state
from tests.mini_pipeline import MiniPipeline, MiniText, MiniUNet, MiniVae, close, mini, picture
from tests.threads import in_threads

pytestmark = pytest.mark.usefixtures("cached")

NAMES = ("text_encoder", "unet", "vae")
SMALL, ROOMY = "150KiB", "3MiB"


def second(one: Any, *own: str) -> Any:
    """A pipeline that shares all components but some with another one."""
    shared = {name: part for name, part in one.components.items() if name not in own and part is not None}
    made = mini(
        **({"unet": MiniUNet(gain=2.0)} if "unet" in own else {}),
        **({"vae": MiniVae()} if "vae" in own else {}),
        **({"text_encoder": MiniText()} if "text_encoder" in own else {}),
    )
    for name in own:
        for parameter in getattr(made, name, nn.Module()).parameters():
            parameter.data.mul_(1.5)
    pipe = MiniPipeline(**shared, **{name: getattr(made, name) for name in own})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def patches(*pipes: Any) -> list[str]:
    """Methods that instances have, where they should have none of their own."""
    parts = {id(part): part for pipe in pipes for part in pipe.components.values() if isinstance(part, nn.Module)}
    return [name for part in parts.values() for name in ("forward", "encode", "decode") if name in vars(part)]


SHARING: dict[str, tuple[str, ...]] = {
    "vae and text encoder": ("unet",),
    "denoiser and text encoder": ("vae",),
    "all but the text encoder": ("text_encoder",),
    "scheduler only": NAMES,
    "everything": (),
}


RARE = ("scheduler only", "all but the text encoder")


@pytest.mark.parametrize(
    "own",
    [pytest.param(own, id=name, marks=pytest.mark.slow if name in RARE else ()) for name, own in SHARING.items()],
)
def test_both_pipelines_work_and_let_go_in_any_order(own: tuple[str, ...]) -> None:
    for first_to_go in (0, 1) if own == ("unet",) else (0,):
        one = mini()
        pipes = (one, second(one, *own))
        wanted = [pipe(picture()) for pipe in pipes]
        sicompiler.compile_for_budget(pipes[0], SMALL)
        sicompiler.compile_for_budget(pipes[1], ROOMY)
        for _ in range(2):
            assert all(close(pipe(picture()), frames) for pipe, frames in zip(pipes, wanted, strict=True))
        for pipe, budget in zip(pipes, (SMALL, ROOMY), strict=True):
            report = sicompiler.report(pipe)
            assert report.budget_bytes == sicompiler.units.parse_bytes(budget)
            assert report.fits
            assert {row.component: row.calls for row in report.phases if row.component != "unet"} == {
                "text_encoder": 2, "vae.encode": 2, "vae.decode": 2,
            }  # fmt: skip
        sicompiler.release(pipes[first_to_go])
        assert close(pipes[1 - first_to_go](picture()), wanted[1 - first_to_go])
        assert close(pipes[first_to_go](picture()), wanted[first_to_go])
        sicompiler.release(pipes[1 - first_to_go])
        assert patches(*pipes) == []
        assert all(torch.equal(pipe(picture()), frames) for pipe, frames in zip(pipes, wanted, strict=True))


def test_the_smallest_budget_holds_for_what_is_shared_and_for_nothing_else() -> None:
    one = mini()
    two = second(one, "vae")
    sicompiler.compile_for_budget(one, SMALL)
    sicompiler.compile_for_budget(two, ROOMY)
    two(picture())
    rows = {row.component: row for row in sicompiler.report(two).phases}
    assert rows["unet"].budget_bytes == sicompiler.units.parse_bytes(SMALL)
    assert rows["unet"].predicted_peak_bytes is not None
    assert rows["unet"].predicted_peak_bytes <= rows["unet"].budget_bytes
    assert rows["vae.decode"].budget_bytes == sicompiler.units.parse_bytes(ROOMY)
    planned = sicompiler.report(two).components["unet"].plans
    one(picture())
    assert sicompiler.report(one).components["unet"].plans == planned  # nothing was planned again
    sicompiler.release(one)
    two(picture())
    (row,) = [row for row in sicompiler.report(two).phases if row.component == "unet"]
    assert row.budget_bytes == sicompiler.units.parse_bytes(ROOMY)
    assert row.predicted_peak_bytes == row.unsliced_peak_bytes  # what the small budget had cost is gone


def test_another_budget_for_one_holds_for_both() -> None:
    one = mini()
    two = second(one, "vae")
    wanted = one(picture()), two(picture())
    for budget in (ROOMY, SMALL, "1MiB"):
        sicompiler.compile_for_budget(one, budget)
        sicompiler.compile_for_budget(two, ROOMY)
        assert close(one(picture()), wanted[0])
        assert close(two(picture()), wanted[1])
        for pipe in (one, two):
            (row,) = [row for row in sicompiler.report(pipe).phases if row.component == "unet"]
            assert row.budget_bytes == sicompiler.units.parse_bytes(budget)
            assert row.fits


def test_a_pipeline_that_is_dropped_has_no_say_any_more() -> None:
    one = mini()
    two = second(one, "unet")
    wanted = two(picture())
    sicompiler.compile_for_budget(one, SMALL)
    one(picture())
    sicompiler.compile_for_budget(two, ROOMY)
    assert close(two(picture()), wanted)
    del one
    gc.collect()
    assert close(two(picture()), wanted)
    rows = {row.component: row.budget_bytes for row in sicompiler.report(two).phases}
    assert set(rows.values()) == {sicompiler.units.parse_bytes(ROOMY)}
    sicompiler.release(two)
    assert patches(two) == []
    assert torch.equal(two(picture()), wanted)


def test_a_pipeline_within_the_callback_of_another_has_its_own_budget() -> None:
    one = mini()
    two = second(one, "unet")
    inner: list[torch.Tensor] = []

    def run_the_other(pipe: Any, step: int, t: Any, kept: dict[str, Any]) -> dict[str, Any]:
        inner.append(two(picture()))
        return {}

    wanted = one(picture(), callback_on_step_end=run_the_other), two(picture())
    sicompiler.compile_for_budget(two, ROOMY)
    two(picture())
    alone = {row.component: row.held_bytes for row in sicompiler.report(two).phases}
    sicompiler.compile_for_budget(one, ROOMY)
    assert close(one(picture(), callback_on_step_end=run_the_other, ballast=2**16), wanted[0])
    assert all(close(frames, wanted[1]) for frames in inner)
    nested = {row.component: row.held_bytes for row in sicompiler.report(two).phases}
    assert nested["unet"] < alone["unet"] + 2**16  # the outer one's ballast is in the outer one's budget


def test_weights_that_one_pipeline_moved_away_are_there_for_the_other() -> None:
    """Far below the floor without moving: each moves what is idle in it, shared components among that."""
    one = mini()
    two = second(one, "unet")
    wanted = one(picture()), two(picture())
    before = {id(p): (p, p.detach().clone()) for pipe in (one, two) for p in parameters(pipe)}
    sicompiler.compile_for_budget(one, ROOMY)
    one(picture())
    floor_bytes = sicompiler.report(one).floor_bytes
    for pipe in (one, two):
        sicompiler.compile_for_budget(pipe, f"{floor_bytes - 2000}B")
    for _ in range(2):
        assert close(one(picture()), wanted[0])
        assert close(two(picture()), wanted[1])
    residency = pipeline_state(one, "look").residency
    assert any(residency.is_away(part) for part in (one.text_encoder, one.vae))
    sicompiler.release(one)
    assert close(two(picture()), wanted[1])
    sicompiler.release(two)
    assert not any(residency.is_away(getattr(pipe, name)) for pipe in (one, two) for name in NAMES)
    assert all(torch.equal(parameter, value) for parameter, value in before.values())
    assert torch.equal(one(picture()), wanted[0])


def parameters(pipe: Any) -> list[nn.Parameter]:
    return [p for part in pipe.components.values() if isinstance(part, nn.Module) for p in part.parameters()]


def test_verifying_one_runs_it_untouched_and_leaves_the_other_compiled() -> None:
    one = mini()
    two = second(one, "unet")
    wanted = two(picture())
    sicompiler.compile_for_budget(one, SMALL)
    sicompiler.compile_for_budget(two, SMALL)
    found = sicompiler.verify(one, ((picture(),), {}))
    assert found.fits, str(found)
    assert found.untouched_peak_bytes > found.measured_peak_bytes  # it did run untouched
    assert "decode" in patches(two)
    assert close(two(picture()), wanted)
    assert sicompiler.verify(two).fits


def test_a_component_of_a_pipeline_is_not_compiled_on_its_own() -> None:
    pipe = mini()
    reference = pipe(picture())
    sicompiler.compile_for_budget(pipe, ROOMY)
    with pytest.raises(sicompiler.BadInput, match="this MiniUNet is the unet of a compiled MiniPipeline"):
        sicompiler.compile_for_budget(pipe.unet, SMALL)
    with pytest.raises(sicompiler.NotCompiled, match="release the pipeline"):
        sicompiler.release(pipe.unet)
    assert close(pipe(picture()), reference)
    sicompiler.release(pipe)
    sicompiler.compile_for_budget(pipe.unet, SMALL)
    assert close(pipe(picture()), reference)


def test_what_was_compiled_on_its_own_before_is_so_again_after_the_pipeline() -> None:
    pipe = mini()
    reference = pipe(picture())
    sicompiler.compile_for_budget(pipe.unet, "500KiB")
    assert close(pipe(picture()), reference)
    sicompiler.compile_for_budget(pipe, ROOMY)
    assert close(pipe(picture()), reference)
    sicompiler.release(pipe)
    assert sicompiler.report(pipe.unet).budget_bytes == 500 * 2**10
    assert close(pipe(picture()), reference)
    sicompiler.release(pipe.unet)
    assert patches(pipe) == []


BUDGETS: dict[str, Callable[[int], str]] = {
    "sliced": lambda floor_bytes: f"{floor_bytes + 20000}B",
    "moving weights": lambda floor_bytes: f"{floor_bytes - 2000}B",
}


@pytest.mark.parametrize("untouched_encoder", [False, True], ids=["planned", "with an untouched encoder"])
@pytest.mark.parametrize("budget", BUDGETS.values(), ids=BUDGETS.keys())
def test_two_threads_plan_and_run_pipelines_that_share(budget: Callable[[int], str], untouched_encoder: bool) -> None:
    """Planning included: a trace patches torch for the whole process, and holds fakes in the place of weights."""
    one = mini(text_encoder=MiniText(untraceable=untouched_encoder))
    pipes = (one, second(one, "unet"))
    wanted = [pipe(picture()) for pipe in pipes]
    sicompiler.compile_for_budget(one, ROOMY)
    one(picture())
    floor_bytes = max(row.floor_bytes or 0 for row in sicompiler.report(one).phases)
    sicompiler.release(one)
    for number, pipe in enumerate(pipes):
        sicompiler.compile_for_budget(pipe, budget(floor_bytes + 1000 * number))
    both, wrong = threading.Barrier(2, timeout=100), []

    def run(number: int) -> None:
        for _ in range(3):
            both.wait()
            if not close(pipes[number](picture()), wanted[number]):
                wrong.append(number)

    in_threads(run)
    assert wrong == []
    for pipe in pipes:
        assert sicompiler.report(pipe).fits
        sicompiler.release(pipe)
    assert patches(*pipes) == []
    assert all(torch.equal(pipe(picture()), frames) for pipe, frames in zip(pipes, wanted, strict=True))


def test_one_thread_releases_and_compiles_while_another_one_runs() -> None:
    one = mini()
    two = second(one, "unet")
    wanted = one(picture()), two(picture())
    sicompiler.compile_for_budget(one, SMALL)
    one(picture())
    done, wrong = threading.Event(), []

    def run(number: int) -> None:
        if number == 0:
            try:
                for budget in (ROOMY, SMALL):
                    sicompiler.compile_for_budget(two, budget)
                    wrong.extend([] if close(two(picture()), wanted[1]) else ["two"])
                    sicompiler.release(two)
                    wrong.extend([] if close(two(picture()), wanted[1]) else ["two, released"])
            finally:
                done.set()
        while number == 1 and not done.is_set():
            wrong.extend([] if close(one(picture()), wanted[0]) else ["one"])

    in_threads(run)
    assert wrong == []
    sicompiler.release(one)
    assert patches(one, two) == []


def test_the_components_of_another_pipeline_are_not_looked_up_where_nothing_counts_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A CPU's allocator does not count; where it does, they are told from what the pipeline holds."""
    one, other = mini(), mini()
    for pipe in (one, other):
        sicompiler.compile_for_budget(pipe, ROOMY)
        pipe(picture())
    asked: list[Any] = []

    def noted(pipe: Any) -> dict[str, nn.Module]:
        asked.append(pipe)
        return modules_of(pipe)

    monkeypatch.setattr(pipeline_module, "modules_of", noted)
    one(picture())
    assert not any(pipe is other for pipe in asked)
    sicompiler.release(one)  # asks which of its components another one has a budget for
    assert any(pipe is other for pipe in asked)
