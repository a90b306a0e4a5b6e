"""The timeline picture: memory over time, before and after, against the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sicompiler.units import MIB, format_bytes, format_seconds

COLOURS = {"untouched": "#9aa5b1", "compiled": "#2f7fc1", "budget": "#c2410c", "resident": "#33404d"}


@dataclass(frozen=True)
class Trace:
    """Memory over one run.

    Attributes:
        label: what ran.
        points: (seconds, bytes beyond `resident_bytes`), a step function, as `Peak.timeline()` gives it.
        resident_bytes: weights and inputs, there all the time.
        seconds: length of the run.
    """

    label: str
    points: Sequence[tuple[float, int]]
    resident_bytes: int
    seconds: float

    @property
    def peak_bytes(self) -> int:
        """The highest level, what is resident included."""
        return self.resident_bytes + max((level for _, level in self.points), default=0)


def timeline_picture(path: str | Path, title: str, before: Trace, after: Sequence[tuple[Trace, int]]) -> Path:
    """Draw the untouched run and, below it, compiled ones with their budgets, all on the same scales.

    Args:
        path: of the PNG to write.
        title: of the figure.
        before: the untouched run.
        after: compiled runs, each with its budget in bytes.
    """
    import matplotlib

    matplotlib.use("Agg", force=False)
    from matplotlib import pyplot as plt

    rows = [(before, None), *after]
    longest = max(trace.seconds for trace, _ in rows)
    highest = max(trace.peak_bytes for trace, _ in rows) / MIB
    figure, axes = plt.subplots(
        len(rows), 1, figsize=(10, 1.2 + 2.0 * len(rows)), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    figure.suptitle(title, x=0.01, ha="left", fontsize=14, fontweight="bold")
    for axis, (trace, budget_bytes) in zip(axes[:, 0], rows, strict=True):
        colour = COLOURS["untouched" if budget_bytes is None else "compiled"]
        seconds = [s for s, _ in trace.points] + [trace.seconds]
        levels = [(trace.resident_bytes + level) / MIB for _, level in trace.points]
        levels.append(levels[-1] if levels else trace.resident_bytes / MIB)
        axis.fill_between(seconds, levels, step="post", color=colour, alpha=0.35, linewidth=0)
        axis.step(seconds, levels, where="post", color=colour, linewidth=0.9)
        axis.fill_between(
            [0, trace.seconds], trace.resident_bytes / MIB, color=COLOURS["resident"], alpha=0.25, linewidth=0
        )
        peak = f"peak {format_bytes(trace.peak_bytes)}, {format_seconds(trace.seconds)}"
        axis.set_title(f"{trace.label}: {peak}", loc="left", fontsize=10.5, color="#1d2733")
        if budget_bytes is not None:
            axis.axhline(budget_bytes / MIB, color=COLOURS["budget"], linestyle=(0, (5, 3)), linewidth=1.3)
            axis.annotate(
                f"budget {format_bytes(budget_bytes)}",
                (longest, budget_bytes / MIB),
                xytext=(0, 3),
                textcoords="offset points",
                ha="right",
                va="bottom",
                fontsize=9,
                color=COLOURS["budget"],
            )
        axis.set_ylabel("MiB")
        axis.grid(axis="y", color="#e3e8ed", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(length=3, color="#9aa5b1")
    first = axes[0, 0]
    first.set_xlim(0, longest)
    first.set_ylim(0, highest * 1.08)
    first.annotate(
        f"weights and inputs {format_bytes(before.resident_bytes)}",
        (longest * 0.006, before.resident_bytes / MIB / 2),
        ha="left",
        va="center",
        fontsize=8.5,
        color=COLOURS["resident"],
    )
    axes[-1, 0].set_xlabel("seconds")
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=150)
    plt.close(figure)
    return target
