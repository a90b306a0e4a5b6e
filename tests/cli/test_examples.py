"""The lessons run, and show what they say they show."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from tests.source_tree import ROOT

# The training script is no lesson: tests/demo/test_demo_training.py runs it.
EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.py") if path.name != "train_demo.py")


Run = Callable[[str], str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs an example as a script, in this process, where torch and diffusers are there already; gives its output."""

    def here(name: str) -> str:
        with torch.random.fork_rng():
            runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
        return capsys.readouterr().out

    return here


def _run_apart(name: str) -> str:
    """Output of an example in a process of its own: what it registers would stay."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{name} exited with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def _is_exact(text: str) -> bool:
    """Whether the line `output: ...` of a verification reports rounding at most."""
    found = re.search(r"^output: (?:bit for bit|max abs \S+, max rel (\S+))$", text, re.MULTILINE)
    assert found is not None, text
    return found[1] is None or float(found[1]) < 1e-4


def _fits(text: str) -> bool:
    """Whether the line `peak: ...` of a verification says measured <= predicted <= budget."""
    found = re.search(r"^peak: .* budget: (yes|NO) ", text, re.MULTILINE)
    assert found is not None, text
    return found[1] == "yes"


def test_the_lessons_are_numbered_and_all_tested() -> None:
    tested = {number for number in range(1, 8) if f"test_lesson_{number}" in globals()}
    found = [re.fullmatch(r"lesson_(\d+)_\w+\.py", path.name) for path in EXAMPLES]
    assert all(found), [path.name for path in EXAMPLES]
    assert sorted(int(match[1]) for match in found if match) == sorted(tested)


def test_lesson_1(run: Run) -> None:
    out = run("lesson_1_dump_a_graph.py")
    assert "stages: captured, clean, legal, rewritten" in out
    stages = dict(re.findall(r"^# stage (\w+)\n(.*?)\n\n", out, re.MULTILINE | re.DOTALL))
    assert "aten.dropout" not in stages["captured"]
    assert "aten.div" in stages["captured"]
    assert "aten.div" not in stages["clean"]
    assert "aten.group_norm" in stages["clean"]
    assert "aten.group_norm" not in stages["legal"]
    assert "sicompiler.group_stats" in stages["legal"]
    assert "sicompiler.group_apply" in stages["legal"]
    assert "for start in range(" in stages["rewritten"]
    assert "sicompiler.write_slice_" in stages["rewritten"]
    whole, sliced = map(int, re.findall(r"(\d+) bytes", out.splitlines()[-1]))
    assert 2 * sliced < whole


def test_lesson_2(run: Run) -> None:
    out = run("lesson_2_read_axis_rules.py")
    assert "([a, b, i], [o, i], [o]) -> ([a, b, o]) reduce={i}" in out
    assert "([b, h, q, d], [b, h, k, d], [b, h, k, e]) -> ([b, h, q, e]) whole={k, d}" in out
    tokens, heads, channels, across = out.split("\nslice linear along ")[1:]
    assert re.search(r"^  mean +ends the region: factor b is whole", tokens, re.MULTILINE)
    assert re.search(r"^  layer_norm +ends the region: factor c is whole", heads, re.MULTILINE)
    assert "the body reads p_query_weight slice by slice along dim 0 (1x[4]x8)" in heads
    assert re.search(r"^  scaled_dot_product_attention +ends the region: factor d is whole", channels, re.MULTILINE)
    assert "runs across the factors [c d]" in across


def test_lesson_3(run: Run) -> None:
    out = run("lesson_3_a_first_plan.py")
    assert re.search(r"^refused: Block does not fit 1 MiB: the floor is .* set by ", out, re.MULTILINE)
    assert re.search(r"^ +fits +yes$", out, re.MULTILINE)
    assert re.search(r"^ axis +size +slices ", out, re.MULTILINE), "the plan has no regions to show"
    assert _is_exact(out)
    assert _fits(out)
    assert "read back equal: True" in out
    assert "same output from the plan read back: True" in out
    assert "bit for bit as before: True" in out


def test_lesson_4(run: Run) -> None:
    pytest.importorskip("diffusers")
    out = run("lesson_4_svd_under_a_budget.py")
    assert re.search(r"^ +fits +yes$", out, re.MULTILINE)
    assert _is_exact(out)
    assert _fits(out)
    found = re.search(r"^(\d+) loops, measured peak (\d+)% below", out, re.MULTILINE)
    assert found is not None
    assert int(found[1]) >= 1
    assert int(found[2]) >= 25
    assert "still UNetSpatioTemporalConditionModel with 1 layer a block" in out


def test_lesson_5() -> None:
    out = _run_apart("lesson_5_write_a_rule.py")
    before, after = out.split("\nafter:\n")
    assert "without a rule: lessons.soft_cap" in before
    assert "lessons.soft_cap.default has no axis rule" in before
    assert re.findall(r"largest difference (\S+)", before)
    assert all(float(difference) < 1e-12 for difference in re.findall(r"largest difference (\S+)", before))
    assert "without a rule: none" in after
    assert "dim 1: yes, needs linear along dim 1 (1024)" in after
    factor = re.search(r"the floor is (\S+) times lower", after)
    assert factor is not None
    assert float(factor[1]) > 2
    assert _is_exact(after)
    assert _fits(after)


def test_lesson_6(run: Run) -> None:
    out = run("lesson_6_how_much_memory.py")
    assert "unsliced peak: 576*F*H*W + 8512 bytes, at gelu" in out
    assert "the formula gives what a capture gives" in out
    for verdict in ("fits whole", "fits in slices", "does not fit"):
        assert verdict in out


def test_lesson_7() -> None:
    out = _run_apart("lesson_7_write_a_planner.py")
    regions = dict(re.findall(r"^(dp|few-regions): (\d+) regions", out, re.MULTILINE))
    assert int(regions["few-regions"]) >= 1
    assert _is_exact(out)
    assert _fits(out)
    assert "above_the_budget' returned a plan above the budget" in out
    assert "known planners: dp, exhaustive, greedy, few-regions" in out
