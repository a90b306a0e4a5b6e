"""Which component of a pipeline plays which phase, and what is refused before anything is touched."""

from __future__ import annotations

import functools
import re
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch

from sicompiler.capture.entry import entry_label
from sicompiler.capture.quantised import CASTING_HOOKS, modules_in, refusal, scheme_of, weights_in
from sicompiler.capture.tiling import SWITCH, runs_only_tiled
from sicompiler.capture.unchanged import Structure
from sicompiler.errors import BadInput
from sicompiler.guards.identity import version
from sicompiler.pipelines.components import modules_of


class Phase(StrEnum):
    """The parts of a generation, in order."""

    ENCODE = "encode"
    DENOISE = "denoise"
    DECODE = "decode"


@dataclass(frozen=True)
class Role:
    """One method of one component, and the phase it runs in.

    Attributes:
        component: its name in the pipeline.
        method: what the pipeline calls.
        phase: when.
    """

    component: str
    method: str
    phase: Phase

    @property
    def label(self) -> str:
        """For people: `unet`, `vae.decode`."""
        return entry_label(self.component, self.method)

    @property
    def optional(self) -> bool:
        """Whether it may run untouched where it can't be captured: encoders run once and are small; the others rule."""
        return self.phase is Phase.ENCODE


_HOOKS = "_diffusers_hook"  # where diffusers keeps those of a module
_RESET = "_reset_stateful_cache"  # the method of a module by which pipelines of diffusers end a call
# diffusers names components by what they do, in every pipeline alike.
_ROWS = (
    (re.compile(r"text_encoder(_\d+)?|image_encoder|prompt_encoder"), "forward", Phase.ENCODE),
    (re.compile(r"vae|vqvae|movq"), "encode", Phase.ENCODE),
    (re.compile(r"(unet|transformer|prior)(_\d+)?|controlnet"), "forward", Phase.DENOISE),
    (re.compile(r"vae|vqvae|movq"), "decode", Phase.DECODE),
)


class _Passed:
    """A component that had nothing to refuse, as it was then; nothing of it is kept alive.

    Args:
        part: the component.
        planned: whether as one that is planned.
    """

    def __init__(self, part: torch.nn.Module, *, planned: bool) -> None:
        self.planned, self._structure = planned, Structure(part, attributes=True)
        registries = [child.__dict__[_HOOKS] for child in modules_in(part) if _HOOKS in child.__dict__]
        self._registries, self._versions = list(map(weakref.ref, registries)), _versions_of(registries)

    def holds(self) -> bool:
        """Whether nothing was set in a module of it since, and no hook of diffusers put there."""
        return self._structure.holds() and _versions_of([known() for known in self._registries]) == self._versions


def _versions_of(registries: Iterable[Any]) -> list[int]:
    return [version(held) for registry in registries for held in (registry.__dict__, registry.hooks)]


_passed: weakref.WeakKeyDictionary[torch.nn.Module, _Passed] = weakref.WeakKeyDictionary()


def as_after_a_call(part: torch.nn.Module) -> None:
    """Have diffusers put its registry of hooks on a component, as it does where a pipeline ends its first call.

    A plan of that call is guarded by what the component holds: were the registry new, the second call would plan again.
    """
    reset = getattr(part, _RESET, None)
    if reset is not None and _HOOKS not in vars(part):
        reset()


@functools.cache
def _roles_named(component: str) -> tuple[tuple[int, Role], ...]:
    """What a component of a name may do, each with its place in the order of the phases."""
    return tuple(
        (place, Role(component, method, phase))
        for place, (pattern, method, phase) in enumerate(_ROWS)
        if pattern.fullmatch(component)
    )


def roles_of(pipe: Any) -> tuple[Role, ...]:
    """What the components of a pipeline do, in the order of the phases."""
    parts = modules_of(pipe)
    rows = sorted((place, name, role) for name in parts for place, role in _roles_named(name))
    return tuple(role for _, name, role in rows if callable(getattr(type(parts[name]), role.method, None)))


def check_pipeline(pipe: Any) -> tuple[Role, ...]:
    """Find the roles of a pipeline, or say why it can't be taken over.

    Raises:
        BadInput: it has nothing that denoises, its weights are not there, or a switch is on that would be undone.
    """
    name, roles = type(pipe).__name__, roles_of(pipe)
    if not any(role.phase is Phase.DENOISE for role in roles):
        raise BadInput(
            f"{name} has no unet, transformer or prior to compile, only {', '.join(modules_of(pipe)) or 'nothing'}; "
            "compile_for_budget also takes a single module"
        )
    planned = {role.component for role in roles if not role.optional}
    for component, part in modules_of(pipe).items():
        check_component(f"{name}.{component}", part, planned=component in planned)
    return roles


def check_component(label: str, part: torch.nn.Module, *, planned: bool) -> None:
    """Refuse by name what can't be honoured.

    Args:
        label: the component, for people.
        part: the component.
        planned: whether it has to run by a plan; what may run untouched may have quantised weights.

    Raises:
        BadInput: with advice.
    """
    known = _passed.get(part)
    if known is not None and (known.planned or not planned) and known.holds():
        return
    _check_all(label, part, planned=planned)
    _passed[part] = _Passed(part, planned=planned)


def _check_all(label: str, part: torch.nn.Module, *, planned: bool) -> None:
    if any(tensor.is_meta for tensor in weights_in(part)):
        raise BadInput(
            f"the weights of {label} are on the meta device, as enable_sequential_cpu_offload() leaves them; call "
            "pipe.remove_all_hooks() and load the weights again, or use enable_model_cpu_offload(), which is followed"
        )
    if isinstance(part, torch.jit.ScriptModule):
        raise BadInput(f"{label} is a module of torch.jit, which runs past Python; give the module it was made from")
    if hasattr(part, "_orig_mod"):
        raise BadInput(f"{label} is wrapped by torch.compile; compile_for_budget takes the model itself (._orig_mod)")
    if getattr(part, SWITCH, False) and not any(runs_only_tiled(part, method) for method in ("decode", "encode")):
        raise BadInput(
            f"tiling is on in {label}, which blends tiles and so changes the output; "
            "call disable_tiling() on it: the budget is kept without"
        )
    scheme = scheme_of(part) if planned else ""
    if scheme:
        raise BadInput(refusal(label, scheme))
    for child in modules_in(part):
        hooks = getattr(child.__dict__.get(_HOOKS), "hooks", {}).keys() - CASTING_HOOKS
        if hooks:
            path = next(path for path, module in part.named_modules() if module is child)
            where = f"{label}.{path}" if path else label
            raise BadInput(
                f"diffusers hooks are registered on {where} ({', '.join(sorted(hooks))}): caches and group offloading "
                "keep state between calls or move weights inside one; disable them before compile_for_budget"
            )
