"""Sizes of a video as a user says them (pixels, frames), and as a denoiser sees them (latents)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypedDict

from sicompiler.errors import BadInput


@dataclass(frozen=True)
class Sizes:
    """Sizes of one call.

    Attributes:
        batch: rows of the batch; 2 where the pipeline batches the two branches of classifier-free guidance.
        frames: video frames, or latent frames.
        height: pixels, or latent rows.
        width: pixels, or latent columns.
    """

    batch: int
    frames: int
    height: int
    width: int

    def replaced(self, **given: int | None) -> Sizes:
        """These sizes with the given ones in place of theirs; None keeps a size.

        Raises:
            BadInput: a given size is not a positive whole number.
        """
        for name, value in given.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise BadInput(f"{name} must be a positive whole number, got {value!r}")
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        return Sizes(**own | {name: value for name, value in given.items() if value is not None})


class GivenSizes(TypedDict, total=False):
    """Sizes as far as a user says them; None or missing leaves one to the model.

    Attributes:
        batch: rows of the batch.
        frames: video frames.
        height: pixels.
        width: pixels.
    """

    batch: int | None
    frames: int | None
    height: int | None
    width: int | None


@dataclass(frozen=True)
class Geometry:
    """How the VAE in front of a denoiser compresses a video.

    Attributes:
        spatial: pixels per latent row and column.
        temporal: frames per latent frame; above 1 the first frame stands alone, so frames are `temporal * k + 1`.
        multiple: what height and width must be a multiple of, in pixels (compression times patch size).
        max_frames_key: the configuration key of the most frames the model has positions for; None without a limit.
    """

    spatial: int
    temporal: int
    multiple: int
    max_frames_key: str | None = None

    def latent(self, sizes: Sizes, config: Mapping[str, Any], name: str) -> Sizes:
        """The latent sizes of a video.

        Args:
            sizes: in pixels and video frames.
            config: of the model, defaults filled in.
            name: of the model, for the error.

        Raises:
            BadInput: the model can't take these sizes; the message names the multiple and the nearest that works.
        """
        for side in ("height", "width"):
            pixels = getattr(sizes, side)
            if pixels % self.multiple:
                near = " or ".join(str(n) for n in _around(pixels, self.multiple, 0))
                raise BadInput(f"{name} takes a {side} that is a multiple of {self.multiple}, got {pixels}; try {near}")
        if (sizes.frames - 1) % self.temporal:
            near = " or ".join(str(n) for n in _around(sizes.frames, self.temporal, 1))
            raise BadInput(f"{name} takes frames = {self.temporal} * k + 1, got {sizes.frames}; try {near}")
        max_frames = None if self.max_frames_key is None else config.get(self.max_frames_key)
        if max_frames is not None and sizes.frames > max_frames:
            raise BadInput(f"{name} takes at most {max_frames} frames, got {sizes.frames}")
        frames = (sizes.frames - 1) // self.temporal + 1
        return Sizes(sizes.batch, frames, sizes.height // self.spatial, sizes.width // self.spatial)

    def pixels(self, latent: Sizes) -> Sizes:
        """The video of some latent sizes."""
        frames = (latent.frames - 1) * self.temporal + 1
        return Sizes(latent.batch, frames, latent.height * self.spatial, latent.width * self.spatial)


def _around(value: int, multiple: int, offset: int) -> list[int]:
    """The numbers `multiple * k + offset` just below and above a value, positive ones only."""
    below = (value - offset) // multiple * multiple + offset
    return [number for number in (below, below + multiple) if number > 0]
