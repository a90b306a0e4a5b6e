"""The calibration of Step Rehash that comes with the demo pipeline: `python -m benchmarks.demo_ready` makes it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

import sicompiler.demo
from sicompiler.errors import StalePlan
from sicompiler.guards.tensors import bytes_of
from sicompiler.rehash.plan import RehashPlan

READY = Path(sicompiler.demo.__file__).with_name("rehash.json")


def fingerprint(pipe: Any) -> str:
    """A digest of all weights of a pipeline: a calibration is for one checkpoint."""
    digest = hashlib.sha256()
    for name, part in sorted(pipe.components.items()):
        if isinstance(part, torch.nn.Module):
            for key, value in sorted(part.state_dict().items()):
                digest.update(f"{name}.{key} {value.dtype} {tuple(value.shape)}".encode())
                digest.update(bytes_of(value))
    return digest.hexdigest()


def ready_plan(pipe: Any, path: Path = READY) -> RehashPlan:
    """The plan that was calibrated on these very weights.

    Whether it is for the graph, scheduler, steps, guidance and size of a call is seen when that runs.

    Args:
        pipe: the demo pipeline, or another one.
        path: of the file that `save_ready` wrote.

    Raises:
        StalePlan: there is none that can be read, or it is for other weights.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        weights, plan = found["weights"], json.dumps(found["plan"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StalePlan(f"there is no ready calibration: {type(error).__name__}: {error}") from error
    if weights != fingerprint(pipe):
        raise StalePlan("the ready calibration is for other weights than these")
    return RehashPlan.from_json(plan)


def save_ready(pipe: Any, plan: RehashPlan, path: Path = READY) -> None:
    """Write a plan down with the weights it is for."""
    text = json.dumps({"weights": fingerprint(pipe), "plan": json.loads(plan.to_json())}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")
