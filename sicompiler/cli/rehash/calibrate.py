"""`sicompiler rehash calibrate`: full runs of a pipeline become a plan."""

from __future__ import annotations

import inspect
import json
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

import torch

from sicompiler.cli.files import check_file, save
from sicompiler.cli.output import Progress, note, quiet, show, show_json
from sicompiler.cli.rehash.options import Calibration
from sicompiler.cli.rehash.pipeline import load_pipeline, set_scheduler
from sicompiler.cli.rehash.show import read
from sicompiler.errors import BadInput, SicompilerError
from sicompiler.pipelines.pipeline import CompiledPipeline
from sicompiler.pipelines.rehash.calibrate import calibrate
from sicompiler.rehash.book import CalibrationFile
from sicompiler.rehash.plan import RehashPlan
from sicompiler.rehash.request import Rehash, Strategy
from sicompiler.reports.rehash_tables import plan_json, plan_tables, points_json, points_table
from sicompiler.units import parse_bytes

Call = dict[str, Any]


def run(wanted: Calibration, *, as_json: bool) -> int:
    """Calibrate, save and print.

    Raises:
        BadInput: something that was said makes no sense, the target can't be reached, or the pipeline refuses the call.
        OverBudget: the pipeline does not fit.
        StalePlan: the file of lessons holds none.
    """
    budget = parse_bytes(wanted.gb)
    _check_target(wanted)
    output = check_file(wanted.output, "the plan")
    wanted = replace(wanted, output=output or wanted.output, lessons=check_file(wanted.lessons, "the lessons"))
    prompts, settings = _prompts(wanted), dict(map(_setting, wanted.settings or ()))
    with Progress() as progress:
        progress("loading the pipeline", 0, 1)
        with quiet():
            pipe = load_pipeline(wanted.pipeline, wanted.dtype, wanted.device)
            set_scheduler(pipe, wanted.scheduler)
        request = Rehash(
            speedup=wanted.speedup,
            psnr=wanted.psnr,
            rel_error=wanted.rel_error,
            calls=_calls(wanted, pipe, prompts, settings),
            held_out=wanted.held_out,
            lessons=wanted.lessons,
            order=wanted.order,
            strategy=cast(Strategy, wanted.strategy),  # checked by `_check_target`
            accept_worse=wanted.accept_worse,
        )
        plan = _calibrated(wanted, pipe, budget, request, progress)
    for line in plan.verified.nearer if plan.verified else ():
        note(line)
    if as_json:
        show_json({"plan": str(wanted.output), **plan_json(plan), "points": points_json(plan)})
    else:
        show(*plan_tables(plan), points_table(plan))
    save(wanted.output, plan.to_json() + "\n", "the plan")
    if not as_json:
        note(
            f'saved {wanted.output}: compile_for_budget(pipe, gb={wanted.gb!r}, rehash=Rehash(plan="{wanted.output}"))'
        )
    return 0


def _calibrated(wanted: Calibration, pipe: Any, budget: int, request: Rehash, progress: Progress) -> RehashPlan:
    with quiet():
        state = CompiledPipeline.take_over(pipe, budget, progress, rehash=request)
        try:
            plan = calibrate(state)
            if plan is None:
                assert state.rehash is not None
                raise BadInput(f"no plan is saved: {'; '.join(state.rehash.unskippable.values())} (--accept-worse)")
            return plan
        except KeyboardInterrupt:
            if wanted.lessons is not None and wanted.lessons.exists():
                known = len(CalibrationFile.load(wanted.lessons).runs)
                progress.note(f"{known} runs are in {wanted.lessons}: the same command goes on from there")
            raise
        except SicompilerError:
            raise
        except (ValueError, TypeError) as error:
            if traceback.extract_tb(error.__traceback__)[-1].filename != inspect.getfile(type(pipe)):
                raise
            raise BadInput(f"{type(pipe).__name__} refuses the call: {error}") from error
        finally:
            state.release()


def _check_target(wanted: Calibration) -> None:
    targets = {"--speedup": wanted.speedup, "--psnr": wanted.psnr, "--rel-error": wanted.rel_error}
    given = [name for name, value in targets.items() if value is not None]
    if len(given) != 1:
        raise BadInput(f"give exactly one of {', '.join(targets)}; got {' and '.join(given) or 'none'}")
    if wanted.strategy not in get_args(Strategy):
        raise BadInput(f"--strategy is one of {', '.join(get_args(Strategy))}, got {wanted.strategy!r}")
    if wanted.psnr is not None and not wanted.held_out:
        raise BadInput("--psnr can only be met by measuring: give --held-out of at least 1")
    some: list[Call] = [{}, {}]  # a PSNR needs calls to be measured on
    Rehash(speedup=wanted.speedup, psnr=wanted.psnr, rel_error=wanted.rel_error, calls=some, held_out=1)


def _prompts(wanted: Calibration) -> tuple[str, ...]:
    if wanted.prompts_file is None:
        return tuple(wanted.prompts or ())
    lines = [line.strip() for line in read(wanted.prompts_file, "prompts").splitlines()]
    found = tuple(line for line in lines if line)
    if not found:
        raise BadInput(f"{wanted.prompts_file} has no prompts: write one a line")
    return (*(wanted.prompts or ()), *found)


def _setting(text: str) -> tuple[str, Any]:
    """Read `name=value`: numbers, true, false, null and lists as in JSON, `@file` as a picture, all else as text."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise BadInput(f"--set takes name=value, got {text!r}")
    if value.startswith("@"):
        return name, _picture(Path(value[1:]).expanduser())
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _picture(path: Path) -> Any:
    import PIL.Image

    try:
        with PIL.Image.open(path) as found:
            return found.convert("RGB")
    except OSError as error:
        raise BadInput(f"can't read the picture {path}: {error.strerror or error}") from error


def _calls(wanted: Calibration, pipe: Any, prompts: tuple[str, ...], settings: Mapping[str, Any]) -> list[Call]:
    """One call a run: prompts in turn, seeds counting up.

    Raises:
        BadInput: the pipeline takes no such argument, or needs a prompt.
    """
    parameters = inspect.signature(type(pipe).__call__).parameters
    common = {**({"output_type": "pt"} if "output_type" in parameters else {}), **settings}
    common["num_inference_steps"] = wanted.steps
    own = {"prompt", "generator"} if prompts else {"generator"}
    refused = [name for name in (*common, *own) if name not in parameters]
    if refused and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        known = ", ".join(name for name in parameters if name != "self")
        raise BadInput(f"the call of {type(pipe).__name__} takes no {' or '.join(refused)}; it takes {known}")
    if "prompt" in parameters and not prompts and not {"prompt", "prompt_embeds"} & settings.keys():
        raise BadInput(f"{type(pipe).__name__} needs prompts: give --prompts FILE or --prompt TEXT")
    calls = []
    for number in range(wanted.runs + wanted.held_out):
        generator = torch.Generator().manual_seed(wanted.seed + number)
        turn = {"prompt": prompts[number % len(prompts)]} if prompts else {}
        calls.append({**common, **turn, "generator": generator})
    return calls
