"""What the user named, as models that can be had at any size, and which sizes to look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sicompiler.cli.options import ModelOptions
from sicompiler.cli.output import quiet
from sicompiler.cli.work import find
from sicompiler.compiler.search import Progress
from sicompiler.scaling.sized import SizedCall, SizedModel
from sicompiler.zoo.build import ModelCall
from sicompiler.zoo.family import Config, Family
from sicompiler.zoo.geometry import Sizes
from sicompiler.zoo.load import family_of
from sicompiler.zoo.pipelines import PartName, idle_weights, is_pipeline_name, part_specs, pipeline_named

if TYPE_CHECKING:
    from sicompiler.scaling.form import Point

FRAMES, SCALES = (0.5, 1.0, 1.5), (0.5, 0.75, 1.0, 1.25)  # of the default frames, and of the default height and width
ONCE = (1, 1, 1)  # the size of what does not depend on sizes

Video = tuple[int | None, int | None, int | None]  # frames, height and width as the user says them


@dataclass(frozen=True)
class Sized:
    """One model of a subject."""

    name: PartName
    model: SizedModel
    depends: bool  # on the sizes of the video
    frames: int | None = None  # the most it sees at once

    def at(self, point: Point) -> Point:
        """The size under which the model knows a size of the video."""
        if not self.depends:
            return ONCE
        return (point[0] if self.frames is None else min(point[0], self.frames), point[1], point[2])

    def steps(self, steps: Point) -> Point:
        """By what its sizes may change."""
        return (0, steps[1], steps[2]) if self.frames == 1 else steps

    @property
    def label(self) -> str:
        """What its formula is of, in a pipeline."""
        most = "" if self.frames in (None, 1) else f" (F at most {self.frames})"
        return f"{self.name.label}{most}"


@dataclass(frozen=True)
class SizeScale:
    """How sizes of a video become the numbers that forms are about, and back.

    Attributes:
        family: of the denoiser or the single model; None for a function, whose arguments are the numbers.
        config: its configuration.
        default: its sizes when the user says none.
        name: for errors.
    """

    family: Family | None
    config: Config
    default: Sizes
    name: str

    def point(self, video: Video) -> Point:
        """Latent frames, rows and columns.

        Raises:
            BadInput: the model can't take these sizes.
        """
        if self.family is None:
            return (video[0] or 1, video[1] or 1, video[2] or 1)
        frames, height, width = video
        pixels = self.default.replaced(frames=frames, height=height, width=width)
        latent = self.family.geometry_of(self.config).latent(pixels, self.config, self.name)
        return (latent.frames, latent.height, latent.width)

    def pixels(self, point: Point) -> Sizes:
        """The video of a point."""
        assert self.family is not None
        return self.family.geometry_of(self.config).pixels(Sizes(self.default.batch, *point))

    def steps(self, videos: Sequence[Video]) -> Point:
        """By what the numbers may change within the same operators; 0 for those a function does not take."""
        if self.family is None:
            frames, height, width = (int(all(v[axis] is not None for v in videos)) for axis in range(3))
            return (frames, height, width)
        step = self.family.period(self.config) // self.family.geometry_of(self.config).spatial
        return (1, step, step)

    def grid(self, frames: Sequence[int], sizes: Sequence[tuple[int, int]]) -> list[Video]:
        """Every frames by every size; around the defaults of the model where the user gives none."""
        if self.family is None:
            lengths: Sequence[int | None] = frames or [None]
            pairs: Sequence[tuple[int | None, int | None]] = sizes or [(None, None)]
            return [(f, h, w) for h, w in pairs for f in lengths]
        return [(f, h, w) for h, w in sizes or self._sizes() for f in frames or self._frames()]

    def units(self) -> str:
        """What the letters of a form mean."""
        if self.family is None:
            return "F frames, H height, W width, as the function takes them"
        geometry = self.family.geometry_of(self.config)
        frames = "F frames"
        if geometry.temporal > 1:
            frames = f"F latent frames ({geometry.temporal} F - {geometry.temporal - 1} frames)"
        return f"{frames}, H rows and W columns of latents ({geometry.spatial} pixels each)"

    def _frames(self) -> list[int]:
        assert self.family is not None
        geometry = self.family.geometry_of(self.config)
        latent = (self.default.frames - 1) // geometry.temporal + 1
        most = self.config.get(geometry.max_frames_key or "") or 2**31
        chosen = {(max(2, round(latent * share)) - 1) * geometry.temporal + 1 for share in FRAMES}
        return sorted(n for n in chosen if n <= most)

    def _sizes(self) -> list[tuple[int, int]]:
        assert self.family is not None
        period = self.family.period(self.config)

        def scaled(pixels: int, scale: float) -> int:
            return pixels if scale == 1 else max(2, int(pixels * scale) // period) * period

        found = [(scaled(self.default.height, s), scaled(self.default.width, s)) for s in SCALES]
        return list(dict.fromkeys(found))


@dataclass(frozen=True)
class NamedModel:
    """What the user named.

    Attributes:
        name: as the user says it.
        device, dtype: what to plan for.
        models: the calls of a pipeline in order, or a single one.
        idle: bytes of the components of a pipeline that never run.
        scale: sizes of a video, and the numbers that forms are about.
        pipeline: whether it is one.
    """

    name: str
    device: str
    dtype: str
    models: tuple[Sized, ...]
    idle: Mapping[str, int]
    scale: SizeScale
    pipeline: bool


def subject(options: ModelOptions, progress: Progress, video: Video) -> NamedModel:
    """Find what the user named.

    Args:
        options: what the user said.
        progress: told about long work.
        video: a size that will be asked for: it tells which sizes a function takes.

    Raises:
        BadInput: it does not exist.
    """
    if is_pipeline_name(options.model):
        return _pipeline(options, progress)
    found = family_of(options.model)
    if found is None:
        scale = SizeScale(None, {}, Sizes(1, 1, 1, 1), options.model)
        frames, height, width = video
        device = find(replace(options, frames=frames, height=height, width=width)).device
        given = [n is not None for n in (frames, height, width)]
    else:
        scale = SizeScale(found.family, found.config, found.sizes.replaced(batch=options.batch), options.model)
        device, given = options.planned_for, [True] * 3

    def make(point: Point) -> SizedCall:
        pixels = Sizes(1, *point) if scale.family is None else scale.pixels(point)
        numbers = (pixels.frames, pixels.height, pixels.width)
        chosen = [n if wanted else None for n, wanted in zip(numbers, given, strict=True)]
        return _call(find(replace(options, frames=chosen[0], height=chosen[1], width=chosen[2])).call)

    model = SizedModel(options.model, make, device, progress)
    single = (Sized(PartName("", "", "forward"), model, True),)
    return NamedModel(options.model, device, options.dtype or "float16", single, {}, scale, False)


def _pipeline(options: ModelOptions, progress: Progress) -> NamedModel:
    preset, dtype, device = pipeline_named(options.model), options.dtype or "float16", options.planned_for
    found = family_of(preset.denoiser)
    assert found is not None
    scale = SizeScale(found.family, found.config, found.sizes.replaced(batch=options.batch), options.model)
    models = []
    for spec in part_specs(options.model, dtype):

        def make(point: Point, build: Callable[[Sizes], ModelCall] = spec.make) -> SizedCall:
            with quiet():
                return _call(build(scale.pixels(point)))

        models.append(Sized(spec, SizedModel(spec.label, make, device, progress), spec.sized, spec.frames))
    return NamedModel(
        options.model, device, dtype, tuple(models), idle_weights(options.model, dtype, device), scale, True
    )


def _call(call: ModelCall) -> SizedCall:
    return SizedCall(call.module, call.args, call.kwargs, call.method)
