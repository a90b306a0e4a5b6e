"""The pipeline a user names on the command line, with its weights, on its device, with the scheduler wanted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import sicompiler
from sicompiler.cli.rehash.options import SCHEDULERS
from sicompiler.device import check_available, default_device, device_kind
from sicompiler.errors import BadInput
from sicompiler.pipelines.pipeline import is_pipeline
from sicompiler.zoo.load import call_function

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def load_pipeline(spec: str, dtype: str | None, device: str | None) -> Any:
    """Load a pipeline; nothing is downloaded.

    Args:
        spec: a diffusers folder, `demo`, or `package.module:function` that returns a pipeline.
        dtype: of the weights; float32 by default. A function's pipeline keeps its own.
        device: to run on; the accelerator of this machine, where there is one, by default.

    Raises:
        BadInput: there is none, it can't be loaded, or there is no such device or dtype.
    """
    if dtype is not None and dtype not in DTYPES:
        raise BadInput(f"unknown dtype {dtype!r}; known: {', '.join(DTYPES)}")
    if device is not None:
        check_available(device, "calibrating runs the pipeline")
    path = Path(spec).expanduser()
    if spec == "demo":
        pipe = sicompiler.demo_pipeline(dtype=DTYPES[dtype or "float32"])
    elif ":" in spec and not path.exists():
        if dtype is not None:
            raise BadInput(f"{spec} is a function: its pipeline keeps its own dtype, leave --dtype out")
        pipe = call_function(spec)
        if not is_pipeline(pipe):
            raise BadInput(f"{spec} must return a diffusers pipeline, it returned a {type(pipe).__name__}")
    else:
        pipe = _from_folder(spec, path, DTYPES[dtype or "float32"])
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device_kind(device).torch_type if device is not None else default_device())


def _from_folder(spec: str, path: Path, dtype: torch.dtype) -> Any:
    if not (path / "model_index.json").is_file():
        what = f"{path} has no model_index.json, so it is no diffusers pipeline" if path.is_dir() else "no such folder"
        raise BadInput(
            f"can't load {spec}: {what}; give the folder of a pipeline with its weights, demo, or "
            "package.module:function"
        )
    try:
        from diffusers import DiffusionPipeline
    except ImportError as error:
        raise BadInput("pipelines need diffusers: pip install 'sicompiler[diffusers]'") from error
    try:
        return DiffusionPipeline.from_pretrained(path, local_files_only=True, torch_dtype=dtype)
    except Exception as error:  # whatever diffusers and transformers make of a broken folder
        raise BadInput(f"diffusers can't load {spec}: {type(error).__name__}: {error}") from error


def set_scheduler(pipe: Any, name: str | None) -> None:
    """Give a pipeline another scheduler, with the configuration of its own.

    Raises:
        BadInput: there is no such scheduler, or the pipeline's can't be turned into it.
    """
    if name is None:
        return
    if name not in SCHEDULERS:
        raise BadInput(f"unknown scheduler {name!r}; known: {', '.join(SCHEDULERS)}")
    import diffusers

    wanted, now = getattr(diffusers, SCHEDULERS[name]), pipe.scheduler
    if wanted not in (type(now), *now.compatibles):
        raise BadInput(
            f"{type(now).__name__}, which {type(pipe).__name__} was trained for, can't be turned into {wanted.__name__}"
        )
    pipe.scheduler = wanted.from_config(now.config)
