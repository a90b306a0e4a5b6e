"""Pipelines whose text encoder is a language model: frames and peaks of whole calls at three budgets each.

    python -m benchmarks.encoders [--only NAME] [--latents] [--json FILE]

Tiny pipelines of diffusers with random weights (`tests/pipelines_llm.py`), on the CPU, in float64 where the pipeline
runs in it. Budgets: what the first report predicts as the peak, its floor, and half way between. For each: the largest
difference of the frames from those of the untouched pipeline, and the measured peak of the whole call. Most of the time
goes into planning the VAE; `--latents` leaves the decoding out.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

import sicompiler
from sicompiler.units import format_bytes
from tests.pipelines import run
from tests.pipelines_llm import LANGUAGE_PIPELINES


def measure(name: str, *, latents: bool) -> list[dict[str, Any]]:
    """One row a budget."""
    make, inputs = LANGUAGE_PIPELINES[name]
    pipe, call = make(torch.float64), inputs(torch.float64) | ({"output_type": "latent"} if latents else {})
    untouched = torch.as_tensor(run(pipe, call))
    began = time.perf_counter()
    sicompiler.compile_for_budget(pipe, 1)
    run(pipe, call)
    report = sicompiler.report(pipe)
    low, high = report.floor_bytes or 0, report.predicted_peak_bytes or 0
    rows = []
    for budget in (high, (low + high) // 2, low):
        sicompiler.compile_for_budget(pipe, f"{budget}B")
        verification = sicompiler.verify(pipe, ((), {**call, "generator": torch.Generator().manual_seed(0)}))
        encoder = [row for row in verification.phases if row.component == "text_encoder"]
        rows.append(
            {
                "pipeline": name,
                "budget_bytes": budget,
                "measured_bytes": verification.measured_peak_bytes,
                "untouched_bytes": verification.untouched_peak_bytes,
                "fits": verification.fits,
                "max_abs_error": verification.max_abs_error,
                "bitwise": verification.bitwise,
                "encoder_planned": all(row.predicted_peak_bytes is not None for row in encoder),
                "encoder_bytes": max(row.measured_peak_bytes or 0 for row in encoder),
                "seconds": time.perf_counter() - began,
            }
        )
    sicompiler.release(pipe)
    assert torch.equal(torch.as_tensor(run(pipe, call)), untouched)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=[*LANGUAGE_PIPELINES], help="one pipeline")
    parser.add_argument("--latents", action="store_true", help="without decoding")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in [options.only] if options.only else LANGUAGE_PIPELINES:
        for row in measure(name, latents=options.latents):
            rows.append(row)
            print(
                f"{name:34} budget {format_bytes(row['budget_bytes']):>9} measured "
                f"{format_bytes(row['measured_bytes']):>9} untouched {format_bytes(row['untouched_bytes']):>9} "
                f"{'fits' if row['fits'] else 'DOES NOT FIT'}, frames differ by {row['max_abs_error']:.1e}, "
                f"encoder {'planned' if row['encoder_planned'] else 'untouched'}, {row['seconds']:.0f} s",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
