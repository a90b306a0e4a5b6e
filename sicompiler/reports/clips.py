"""Clips side by side, as GIF and MP4."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from sicompiler.errors import BadInput

SCALE = 4  # screen pixels for each pixel of a clip
CAPTION = 22  # screen pixels above it
RATE = 8  # frames a second


def save_clips(folder: Path, clips: Mapping[str, torch.Tensor]) -> list[Path]:
    """Write clips side by side, each with its name above it.

    Args:
        folder: where to; made if need be.
        clips: by name, [frames, 3, height, width] from 0 to 1, all of one size.

    Returns:
        The GIF, and the MP4 where PyAV is installed.

    Raises:
        BadInput: the clips are of several sizes.
    """
    if len({clip.shape for clip in clips.values()}) != 1:
        raise BadInput(f"clips side by side are of one size, got {[tuple(c.shape) for c in clips.values()]}")
    folder.mkdir(parents=True, exist_ok=True)
    frames = _frames(clips)
    from PIL import Image

    pictures = [Image.fromarray(frame) for frame in frames]
    gif = folder / "clips.gif"
    pictures[0].save(gif, save_all=True, append_images=pictures[1:], duration=1000 // RATE, loop=0)
    mp4 = folder / "clips.mp4"
    return [gif, mp4] if _write_mp4(mp4, frames) else [gif]


def _frames(clips: Mapping[str, torch.Tensor]) -> list[npt.NDArray[np.uint8]]:
    from PIL import Image, ImageDraw

    count, _, height, width = next(iter(clips.values())).shape
    wide, high = width * SCALE, height * SCALE + CAPTION
    found = []
    for number in range(count):
        canvas = Image.new("RGB", ((wide + 4) * len(clips) // 2 * 2, (high + 1) // 2 * 2), "white")
        for column, (name, clip) in enumerate(clips.items()):
            pixels = (clip[number].detach().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
            left = column * (wide + 4)
            canvas.paste(
                Image.fromarray(pixels).resize((wide, height * SCALE), Image.Resampling.NEAREST), (left, CAPTION)
            )
            ImageDraw.Draw(canvas).text((left + 4, 5), name, fill="black")
        found.append(np.asarray(canvas))
    return found


def _write_mp4(path: Path, frames: list[npt.NDArray[np.uint8]]) -> bool:
    try:
        import av
    except ImportError:
        return False
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return True
