"""What every command understands: which model, at which sizes, on what device. Light: --help answers at once."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sicompiler.device import PLANNED_FOR, Device

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


@dataclass(frozen=True)
class ModelOptions:
    """A model and one call of it, as the user says it; None leaves a choice to the model.

    Attributes:
        model: a preset, a diffusers folder or `package.module:function`.
        batch, frames, height, width: sizes in pixels and video frames.
        dtype: of weights and inputs.
        device: to plan for.
        offload: whether values may be spilled and weights streamed.
    """

    model: str
    batch: int | None = None
    frames: int | None = None
    height: int | None = None
    width: int | None = None
    dtype: str | None = None
    device: Device | None = None
    offload: Offload = Offload.AUTO

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


MODEL_HELP = (
    "A preset (svd, cogvideox-2b, ...; a wrong name lists them), a local diffusers folder (configurations are enough), "
    "or package.module:function returning (module, args, kwargs)."
)
GB_HELP = "Memory budget, weights included: a number of GiB (8), or a size with a unit (8GB, 7.5GiB, 900MiB)."
DEVICE_HELP = (
    "Plan for the allocator, the kernels and the speed of this kind of device; it need not be present. "
    f"Default: {PLANNED_FOR} for presets and folders; for a function, where its weights are."
)

Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False)]
Gb = Annotated[str | None, typer.Option("--gb", metavar="SIZE", help=GB_HELP, show_default=False)]
RequiredGb = Annotated[str, typer.Option("--gb", metavar="SIZE", help=GB_HELP, show_default=False)]
Frames = Annotated[int | None, typer.Option("--frames", help="Video frames.", show_default=False)]
Height = Annotated[int | None, typer.Option("--height", help="Pixels.", show_default=False)]
Width = Annotated[int | None, typer.Option("--width", help="Pixels.", show_default=False)]
Batch = Annotated[int | None, typer.Option("--batch", help="Rows of the batch.", show_default=False)]
Dtype = Annotated[
    str | None, typer.Option("--dtype", help="float16 (default), bfloat16, float32 or float64.", show_default=False)
]
DeviceOption = Annotated[Device | None, typer.Option("--device", help=DEVICE_HELP, show_default=False)]
OffloadOption = Annotated[
    Offload,
    typer.Option(
        "--offload",
        help="auto: where nothing else fits, spill values to host memory and stream weights from there.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")]
