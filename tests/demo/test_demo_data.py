"""The demo's data and its detector: what is drawn is what the caption says, and the detector sees it."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.nn import functional

from sicompiler.demo.detect import AREAS, detect
from sicompiler.demo.quality import held_out_cases, judge
from sicompiler.demo.shapes import FRAMES, SIZE, clip, coverage
from sicompiler.demo.words import COLOURS, DIRECTIONS, SHAPES, Scene, all_scenes, held_out_scenes, training_scenes

pytestmark = pytest.mark.pure


def _numbers(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_clip_is_its_seed() -> None:
    scene = Scene("red", "circle", "left")
    assert scene.caption == "a red circle moving left"
    first = clip(scene, _numbers(1))
    assert first.shape == (FRAMES, 3, SIZE, SIZE)
    assert float(first.min()) >= -1
    assert float(first.max()) <= 1
    assert torch.equal(first, clip(scene, _numbers(1)))
    assert not torch.equal(first, clip(scene, _numbers(2)))


def test_held_out_scenes_cover_everything_and_are_not_trained_on() -> None:
    held_out = held_out_scenes()
    assert len(set(held_out)) == 16
    assert not set(held_out) & set(training_scenes())
    assert set(held_out) | set(training_scenes()) == set(all_scenes())
    assert Counter(scene.shape for scene in held_out) == dict.fromkeys(SHAPES, 4)
    assert Counter(scene.direction for scene in held_out) == dict.fromkeys(DIRECTIONS, 4)
    assert {scene.colour for scene in held_out} == set(COLOURS)


def test_held_out_cases_differ_in_seed() -> None:
    cases = held_out_cases(64)
    assert len({case.seed for case in cases}) == 64
    assert Counter(case.scene for case in cases) == dict.fromkeys(held_out_scenes(), 4)


@pytest.mark.parametrize("shape", SHAPES)
def test_areas_and_centres_are_those_of_what_is_drawn(shape: str) -> None:
    radius = 30.0
    drawn = coverage(shape, torch.tensor(50.0), torch.tensor(60.0), torch.tensor(radius), 120)
    middles = torch.arange(120) + 0.5
    assert float(drawn.sum()) == pytest.approx(AREAS[shape] * radius**2, rel=0.01)
    assert float((drawn.sum(0) * middles).sum() / drawn.sum()) == pytest.approx(50, abs=0.1)
    assert float((drawn.sum(1) * middles).sum() / drawn.sum()) == pytest.approx(60, abs=0.1)


def test_shapes_stay_in_the_picture() -> None:
    """The tip of a triangle may touch the border, where it is drawn a little thick; no edge is cut off."""
    numbers = _numbers(3)
    for scene in all_scenes():
        frames = clip(scene, numbers)
        chroma = frames.amax(1) - frames.amin(1)
        border = torch.cat([chroma[:, 0], chroma[:, -1], chroma[:, :, 0], chroma[:, :, -1]], -1)
        assert float(border.max()) < 0.8 * float(chroma.max()), scene
        assert int((border > 0.1 * chroma.max()).sum(1).max()) <= 2, scene


def test_a_picture_that_is_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="leave no room"):
        clip(Scene("red", "circle", "left"), _numbers(0), frames=40)


def test_the_detector_is_right_about_drawn_clips() -> None:
    numbers = _numbers(4)
    wrong = [
        (scene, found)
        for scene in all_scenes()
        if not (found := detect(clip(scene, numbers) / 2 + 0.5)).matches(scene) or found.misfit > 0.1
    ]
    assert not wrong


def test_the_detector_is_right_about_blurred_and_noisy_clips() -> None:
    numbers = _numbers(5)
    right = 0
    for scene in all_scenes():
        frames = clip(scene, numbers) / 2 + 0.5
        soft = functional.interpolate(functional.avg_pool2d(frames, 2), scale_factor=2, mode="bilinear")
        noisy = soft + 0.05 * torch.randn(soft.shape, generator=numbers)
        right += detect(noisy.clamp(0, 1)).matches(scene)
    assert right >= 0.97 * len(all_scenes())


def test_the_detector_sees_nothing_where_nothing_is() -> None:
    for frames in (torch.full((FRAMES, 3, SIZE, SIZE), 0.2), torch.rand(FRAMES, 3, SIZE, SIZE, generator=_numbers(6))):
        found = detect(frames)
        assert found.shape is None
        assert found.direction is None


def test_the_detector_refuses_what_does_not_hold_for_the_clip() -> None:
    red = clip(Scene("red", "circle", "left"), _numbers(7)) / 2 + 0.5
    green = clip(Scene("green", "ring", "left"), _numbers(7)) / 2 + 0.5
    changing = torch.cat([red[: FRAMES // 2], green[FRAMES // 2 :]])
    assert (detect(changing).colour, detect(changing).shape) == (None, None)
    standing = red[:1].expand(FRAMES, -1, -1, -1)
    assert detect(standing).direction is None
    assert detect(standing).colour == "red"
    assert detect(red.flip(0)).direction == "right"


def test_judging_compares_with_what_was_asked_for() -> None:
    cases = held_out_cases(4)
    drawn = torch.stack([clip(case.scene, _numbers(case.seed)) for case in cases]) / 2 + 0.5
    assert [one.right for one in judge(cases, drawn)] == [True] * 4
    assert [one.right for one in judge(cases, drawn.flip(0))] == [False] * 4
