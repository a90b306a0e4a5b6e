"""Words for axes, and what tells which one is meant: operators, the rank and name of an input, how dims are split."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

import sicompiler.ops  # noqa: F401  (registers group_stats)

aten = torch.ops.aten

BATCH, FRAMES, HEIGHT, WIDTH, TOKENS = "batch", "frames", "height", "width", "tokens"
CHANNELS, HEADS, TEXT = "channels", "heads", "text"
AND = " x "

PLACES = (FRAMES, HEIGHT, WIDTH, TOKENS, TEXT)
FEATURES = (CHANNELS, HEADS)
TEXT_NAMES = ("encoder", "text", "prompt", "caption")  # of inputs that tokens of a prompt come in, as all families do
LEAST_HEAD = 8  # features; a dim of fewer beside it is no head's: the two halves of a rotary embedding, say

RESULT = -1
Told = tuple[int, int, int, str]  # which operand, or RESULT; its rank; which of its dims; what that is


def _conv(*space: str) -> tuple[Told, ...]:
    rank = len(space) + 2
    words = (CHANNELS, *space)
    return tuple((which, rank, dim, word) for which in (0, RESULT) for dim, word in enumerate(words, start=1))


_LINEAR = tuple((which, rank, rank - 1, CHANNELS) for which in (0, RESULT) for rank in range(2, 6))
_IMAGE, _VIDEO = _conv(HEIGHT, WIDTH), _conv(FRAMES, HEIGHT, WIDTH)

TOLD: Mapping[object, tuple[Told, ...]] = {
    aten.conv2d.default: _IMAGE,
    aten.conv2d.padding: _IMAGE,
    aten.conv3d.default: _VIDEO,
    aten.conv3d.padding: _VIDEO,
    aten.linear.default: _LINEAR,
    torch.ops.sicompiler.group_stats.default: ((RESULT, 3, 1, CHANNELS),),  # groups of them
    aten.scaled_dot_product_attention.default: tuple((which, 4, 1, HEADS) for which in (0, 1, RESULT)),
}
"""What a call says of its tensors."""

MIDDLE = {1: 2, 2: 1}  # of the five dims of a video: channels and frames, in either order


def convention(name: str, rank: int, *, floating: bool) -> list[str]:
    """What the dims of an input are, as far as its name and rank say; empty where they don't.

    Args:
        name: of the argument.
        rank: how many dims it has.
        floating: whether it holds numbers rather than ids or a mask.
    """
    tokens = TEXT if any(word in name for word in TEXT_NAMES) and "image" not in name else TOKENS
    rows = {
        1: [BATCH],
        2: [BATCH, CHANNELS if floating and "mask" not in name else tokens],
        3: [BATCH, tokens, CHANNELS],
        5: [BATCH, "", "", HEIGHT, WIDTH],
    }
    return rows.get(rank, [BATCH, *[""] * (rank - 1)] if rank else [])


def piece(word: str, index: int, sizes: Sequence[int]) -> str:
    """What a piece of an axis is.

    Args:
        word: what the axis is.
        index: which of its pieces.
        sizes: of all pieces, major to minor.
    """
    if word == CHANNELS and len(sizes) == 2 and sizes[1] >= LEAST_HEAD:
        return (HEADS, CHANNELS)[index]
    if word == BATCH and len(sizes) == 2:
        return (BATCH, FRAMES)[index]
    if word == TOKENS and len(sizes) == 3:
        return (FRAMES, HEIGHT, WIDTH)[index]
    return word


def joined(words: Iterable[str]) -> str:
    """What a dim merged of several axes is, major to minor: frames, height and width together are tokens."""
    found = list(dict.fromkeys(part for word in words for part in word.split(AND)))
    rest = [word for word in found if word != BATCH]
    if not rest:
        return BATCH if found else ""
    if rest[0] in FEATURES:
        name = CHANNELS if CHANNELS in rest else HEADS
    else:
        places = [word for word in rest if word in PLACES]
        name = places[0] if len(places) == 1 else TOKENS
    return f"{BATCH}{AND}{name}" if BATCH in found else name
