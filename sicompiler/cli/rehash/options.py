"""What the commands below `sicompiler rehash` are asked for, as values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "dpm++2m": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-a": "EulerAncestralDiscreteScheduler",
    "flow-euler": "FlowMatchEulerDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "unipc": "UniPCMultistepScheduler",
}


@dataclass(frozen=True)
class Calibration:
    """What `sicompiler rehash calibrate` was asked for.

    Attributes:
        pipeline: a folder, `demo` or a function.
        gb: memory budget, as written.
        speedup, psnr, rel_error: the target; one of them.
        prompts_file: one prompt a line.
        prompts: given one by one.
        steps: of the scheduler, in a run.
        runs: to learn from.
        held_out: runs that verify.
        seed: of the first run; each has the next one.
        scheduler: by its short name; the pipeline's own where there is none.
        settings: further arguments of the call, each `name=value`.
        device, dtype: where and in what the pipeline runs.
        output: file of the plan.
        lessons: file of what the runs show.
        strategy: "planned" or a rule to compare with.
        order: of the predictor at most.
        accept_worse: whether fewer steps that take the same time may be nearer to the full run.
    """

    pipeline: str
    gb: str
    speedup: float | None
    psnr: float | None
    rel_error: float | None
    prompts_file: Path | None
    prompts: tuple[str, ...]
    steps: int
    runs: int
    held_out: int
    seed: int
    scheduler: str | None
    settings: tuple[str, ...]
    device: str | None
    dtype: str | None
    output: Path
    lessons: Path | None
    strategy: str
    order: int
    accept_worse: bool = False
