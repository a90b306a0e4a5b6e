"""What the user names on the command line becomes a model and one call of it."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Unpack

from sicompiler.errors import BadInput, SicompilerError
from sicompiler.zoo.build import ModelCall, build_model, build_preset, preset_named, sizes_of
from sicompiler.zoo.folders import KnownClass, read_folder
from sicompiler.zoo.geometry import GivenSizes, Sizes
from sicompiler.zoo.inputs import FAMILIES
from sicompiler.zoo.presets import PRESETS

_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def resolve(
    spec: str, *, dtype: str | None = None, fake: bool = True, seed: int = 0, **sizes: Unpack[GivenSizes]
) -> ModelCall:
    """Find the model a user means, and the example inputs of one call.

    Args:
        spec: a preset (`svd`), a local diffusers folder (of a pipeline or of a component; its configuration is enough),
            or `package.module:function`, called with the sizes given here, that returns `(module, args, kwargs)`.
        dtype: of weights and inputs; float16 by default.
        fake: build presets and folders under fake tensors, which take no memory; else with random weights.
        seed: of the random weights and inputs.
        sizes: batch, frames, height and width; those of the model where they are not given.

    Raises:
        BadInput: there is no such preset, folder or function, or it can't be used; the message says what is wrong.
    """
    if not spec.strip():
        raise BadInput("no model is named; give a preset, a diffusers folder or package.module:function")
    path = Path(spec).expanduser()
    if spec not in PRESETS:
        if path.is_dir():
            known = read_folder(path)
            return build_model(
                spec,
                known.class_name,
                known.config,
                sizes,
                default_sizes=known.sizes,
                family=known.family,
                dtype=dtype or "float16",
                fake=fake,
                seed=seed,
            )
        if _FUNCTION.fullmatch(spec):
            Sizes(1, 1, 1, 1).replaced(**sizes)  # refuses what is no size
            given: dict[str, Any] = {
                name: value for name, value in {**sizes, "dtype": dtype}.items() if value is not None
            }
            return _checked(spec, call_function(spec, **given))
        if path.exists():
            raise BadInput(f"{spec} is a file; give the diffusers folder it is in, or package.module:function")
        if os.sep in spec or spec.startswith((".", "~")):
            raise BadInput(f"there is no folder {spec}; a model of the Hugging Face hub must be downloaded first")
    return build_preset(spec, **sizes, dtype=dtype or "float16", fake=fake, seed=seed)


def family_of(spec: str) -> KnownClass | None:
    """What is known of a preset or a folder; None for a function.

    Args:
        spec: as for `resolve`.

    Raises:
        BadInput: there is no such preset or folder.
    """
    if spec not in PRESETS:
        if Path(spec).expanduser().is_dir():
            return read_folder(Path(spec).expanduser())
        if _FUNCTION.fullmatch(spec):
            return None
    preset = preset_named(spec)
    return KnownClass(preset.class_name, preset.config, FAMILIES[preset.class_name], sizes_of(spec, {}))


def pixels_of(spec: str, given: GivenSizes) -> Sizes:
    """The sizes of a preset or a folder in pixels and video frames.

    Args:
        spec: names it.
        given: what the user says.

    Raises:
        BadInput: there is no such preset or folder, or it can't take these sizes.
    """
    known = family_of(spec)
    assert known is not None, "a function knows no sizes"
    pixels = known.sizes.replaced(**given)
    known.family.geometry_of(known.config).latent(pixels, known.config, spec)
    return pixels


def function_named(spec: str) -> Callable[..., Any]:
    """What `package.module:function` names, with the current folder importable.

    Raises:
        BadInput: there is no such function.
    """
    with _current_folder_importable():
        return _import_function(spec)


def call_function(spec: str, **given: Any) -> Any:
    """What `package.module:function` returns, with the current folder importable.

    Args:
        spec: names the function.
        given: its arguments.

    Raises:
        BadInput: there is no such function, it takes no such arguments, or it raised something.
    """
    with _current_folder_importable():
        function = _import_function(spec)
        refused = _refused(function, given)
        if refused:
            raise BadInput(f"{spec} takes no {' or '.join(refused)}; add the argument to the function, or leave it out")
        try:
            return function(**given)
        except SicompilerError:
            raise
        except Exception as error:
            raise BadInput(f"{spec} raised {_describe(error)}") from error


def _import_function(spec: str) -> Callable[..., Any]:
    module_name, _, path = spec.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise BadInput(f"there is no module {error.name!r}, looked in {Path.cwd()} and on sys.path") from error
        raise BadInput(f"importing {module_name} raised {_describe(error)}") from error
    except Exception as error:
        raise BadInput(f"importing {module_name} raised {_describe(error)}") from error
    for name in path.split("."):
        if not hasattr(found, name):
            raise BadInput(f"{module_name} has no {path!r}")
        found = getattr(found, name)
    if not callable(found):
        raise BadInput(f"{spec} is a {type(found).__name__}, not a function")
    function: Callable[..., Any] = found
    return function


def _refused(function: Callable[..., Any], given: dict[str, Any]) -> list[str]:
    """The given keywords that a function does not take."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature: the call itself will tell
        return []
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return []
    taken = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return [name for name in given if name not in taken]


def _checked(spec: str, result: Any) -> ModelCall:
    """The result of a user's function as a `ModelCall`."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensor

    if not isinstance(result, tuple) or len(result) != 3:
        what = f"a tuple of {len(result)}" if isinstance(result, tuple) else f"a {type(result).__name__}"
        raise BadInput(f"{spec} must return (module, args, kwargs), it returned {what}")
    module, args, kwargs = result
    if not isinstance(module, torch.nn.Module):
        raise BadInput(f"{spec} must return a torch.nn.Module first, it returned a {type(module).__name__}")
    if not isinstance(args, (tuple, list)):
        raise BadInput(f"{spec} must return a tuple of positional inputs second, it returned a {type(args).__name__}")
    if not isinstance(kwargs, dict) or not all(isinstance(key, str) for key in kwargs):
        raise BadInput(f"{spec} must return a dict of inputs by name third, it returned a {type(kwargs).__name__}")
    modes = (p.fake_mode for p in module.parameters() if isinstance(p, FakeTensor))
    return ModelCall(module, tuple(args), kwargs, spec, fake_mode=next(modes, None))


def _describe(error: Exception) -> str:
    """One line: the exception and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    lines = str(error).splitlines() or [""]  # torch puts its own stack below
    return f"{type(error).__name__}: {lines[0]}{where}"


@contextlib.contextmanager
def _current_folder_importable() -> Iterator[None]:
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)
