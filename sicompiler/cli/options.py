"""What every command understands: which model, at which sizes, on what device. Light: --help answers at once.

Options that belong together are the fields of a dataclass, annotated with how they are given. A command takes the
dataclass, and `expanded` makes options of its fields.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from sicompiler.cards import card_in
from sicompiler.device import PLANNED_FOR, Device
from sicompiler.errors import BadInput

if TYPE_CHECKING:
    from sicompiler.zoo.geometry import GivenSizes


class Offload(StrEnum):
    """Whether values may be spilled and weights streamed, where nothing else fits."""

    NONE = "none"
    AUTO = "auto"


class Stage(StrEnum):
    """The stages of a program, in order (the same as `sicompiler.passes.manager.stages`)."""

    CAPTURED = "captured"
    CLEAN = "clean"
    LEGAL = "legal"
    PLANNED = "planned"
    REWRITTEN = "rewritten"


class Format(StrEnum):
    """How a program is written."""

    TEXT = "text"
    DOT = "dot"
    JSON = "json"


def expanded(*without: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Put the fields of a dataclass in the place of the parameter that a command takes it by, as options of their own.

    Args:
        without: fields that the command does not offer; they keep their defaults.
    """

    def expand(command: Callable[..., int]) -> Callable[..., int]:
        hints = get_type_hints(command, include_extras=True)
        name = next(name for name, hint in hints.items() if is_dataclass(hint))
        kind: Callable[..., Any] = hints[name]
        offered = [field for field in fields(hints[name]) if field.name not in without]

        def run(**given: Any) -> int:
            values = {field.name: given.pop(field.name) for field in offered}
            return command(**given, **{name: kind(**values)})

        parameters: list[inspect.Parameter] = []
        known = get_type_hints(kind, include_extras=True)
        for own in inspect.signature(command).parameters.values():
            if own.name != name:
                parameters.append(_keyword(own.name, hints[own.name], own.default))
            else:
                defaults = ((f.name, inspect.Parameter.empty if f.default is MISSING else f.default) for f in offered)
                parameters += [_keyword(field, known[field], default) for field, default in defaults]
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__dict__["__signature__"] = inspect.Signature(parameters)
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return expand


def _keyword(name: str, hint: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=hint, default=default)


MODEL_HELP = (
    "A preset (svd, cogvideox-2b, ...; a wrong name lists them), a local diffusers folder (configurations are enough), "
    "or package.module:function returning (module, args, kwargs)."
)
GB_HELP = (
    "Memory budget, weights included: a number of GiB (8), a size with a unit (8GB, 7.5GiB, 900MiB), or a card "
    '("16GB card").'
)
CARD_HELP = "Budget: what a card really offers, by its name (rtx-4090, t4) or size (16GB); a wrong one lists them."
DEVICE_HELP = (
    "Plan for the allocator, the kernels and the speed of this kind of device; it need not be present. "
    f"Default: {PLANNED_FOR} for presets and folders; for a function, where its weights are."
)
OFFLOAD_HELP = "auto: where nothing else fits, spill values to host memory and stream weights from there."
PLANNER_HELP = (
    "What chooses among the regions that fit: dp (the fastest plan), greedy (a baseline), exhaustive (tiny graphs), or "
    "package.module:function for one of your own."
)


@dataclass(frozen=True)
class ModelOptions:
    """A model and one call of it, as the user says it; None leaves a choice to the model."""

    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False)]
    batch: Annotated[int | None, typer.Option("--batch", help="Rows of the batch.", show_default=False)] = None
    frames: Annotated[int | None, typer.Option("--frames", help="Video frames.", show_default=False)] = None
    height: Annotated[int | None, typer.Option("--height", help="Pixels.", show_default=False)] = None
    width: Annotated[int | None, typer.Option("--width", help="Pixels.", show_default=False)] = None
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="float16 (default), bfloat16, float32 or float64.", show_default=False)
    ] = None
    device: Annotated[Device | None, typer.Option("--device", help=DEVICE_HELP, show_default=False)] = None
    offload: Annotated[Offload, typer.Option("--offload", help=OFFLOAD_HELP)] = Offload.AUTO
    planner: Annotated[str, typer.Option("--planner", metavar="NAME", help=PLANNER_HELP)] = "dp"

    @property
    def planned_for(self) -> str:
        """The kind of device to plan for; where nobody says, that of most users."""
        return (self.device or PLANNED_FOR).value

    @property
    def offloading(self) -> Literal["none", "auto"]:
        """Whether values and weights may be offloaded, as the planner takes it."""
        return "auto" if self.offload is Offload.AUTO else "none"

    @property
    def sizes(self) -> GivenSizes:
        """What the user says about sizes."""
        return {"batch": self.batch, "frames": self.frames, "height": self.height, "width": self.width}


@dataclass(frozen=True)
class RunOptions(ModelOptions):
    """A model that is run here, where float32 on the CPU is the usual way."""

    dtype: Annotated[
        str | None, typer.Option("--dtype", help="float32 (default), float16, bfloat16 or float64.", show_default=False)
    ] = None
    device: Annotated[Device | None, typer.Option("--device", help="Run on this device.")] = Device.CPU


@dataclass(frozen=True)
class DiffOptions(ModelOptions):
    """The first of two plans, or a model of which two stages are compared."""

    model: Annotated[
        str, typer.Argument(metavar="A", help="A plan (JSON file), or with --stages a model.", show_default=False)
    ]


Gb = Annotated[str | None, typer.Option("--gb", metavar="SIZE", help=GB_HELP, show_default=False)]
CardOption = Annotated[str | None, typer.Option("--card", metavar="NAME", help=CARD_HELP, show_default=False)]
RequiredGb = Annotated[str, typer.Option("--gb", metavar="SIZE", help=GB_HELP, show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")]


def device_of(gb: str | None) -> Device | None:
    """The kind of device of a card that a budget names, where it has a row of its own."""
    card = None if gb is None else card_in(gb)
    return Device(card.device) if card is not None and card.device else None


def budget_option(gb: str | None, card: str | None) -> str | None:
    """The budget, given as a size or as a card.

    Raises:
        BadInput: both are given.
    """
    if gb is not None and card is not None:
        raise BadInput(f"--gb {gb} and --card {card} are two budgets: give one")
    return gb if card is None else f"{card} card"
