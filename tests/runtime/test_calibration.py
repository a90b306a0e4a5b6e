"""Figures of a machine: measured, kept in a file, taken by the cost model, and never a reason to fail."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sicompiler import SicompilerError, machines
from sicompiler.calibration import kernels
from sicompiler.calibration.copies import copy_bandwidth
from sicompiler.calibration.kernels import Saturation
from sicompiler.calibration.loops import TimedPlan, loops_doubt
from sicompiler.calibration.timing import seconds_of
from sicompiler.cli import calibrate
from sicompiler.device import Kernel, Machine, device_kind
from sicompiler.machines import MachineFile, calibration_path, machine_of, save_machine

CPU = torch.device("cpu")
ROW = device_kind("cpu").machine
MEASURED = replace(ROW, flops={8: 1e10, 4: 3e10, 2: 5e10}, conv_flops={4: 2e10}, doubt=1.2, offload_overlaps=True)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of figures that is empty."""
    monkeypatch.setenv("SICOMPILER_CALIBRATION", str(tmp_path))
    monkeypatch.setattr(machines, "_read", {})
    return tmp_path


def test_what_was_measured_is_taken_from_then_on_and_says_so(folder: Path) -> None:
    assert machine_of("cpu") is ROW
    path = save_machine("cpu", MEASURED, "2026-11-29")
    assert path == folder / "cpu.json"
    assert machine_of("cpu") == replace(MEASURED, source="measured 2026-11-29")


def test_figures_of_a_device_that_is_not_here_are_the_round_ones(folder: Path) -> None:
    save_machine("cuda", replace(device_kind("cuda").machine, flops={4: 1.0}), "2026-11-29")
    if not torch.cuda.is_available():
        assert machine_of("cuda") is device_kind("cuda").machine


def test_switched_off_nothing_is_read_nor_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SICOMPILER_CALIBRATION", "off")
    assert calibration_path("cpu") is None
    assert save_machine("cpu", MEASURED, "2026-11-29") is None
    assert machine_of("cpu") is ROW


def _other_device(values: dict[str, Any]) -> None:
    values["description"] = "a processor of long ago"


def _negative(values: dict[str, Any]) -> None:
    values["figures"]["memory_bandwidth"] = -1.0


def _unknown(values: dict[str, Any]) -> None:
    values["figures"]["colour"] = 3.0


def _no_rates(values: dict[str, Any]) -> None:
    values["rates"] = {}


def _text(values: dict[str, Any]) -> None:
    values["figures"]["launch_seconds"] = "quick"


DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "of another device": (_other_device, "is of another device (a processor of long ago; this is"),
    "a negative figure": (_negative, "figures.memory_bandwidth is -1.0"),
    "an unknown figure": (_unknown, "figures.colour is 3.0"),
    "no rates": (_no_rates, "rates holds nothing"),
    "a text for a number": (_text, "launch_seconds"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_file_that_cannot_be_used_is_ignored_and_that_is_said_once(
    name: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = save_machine("cpu", MEASURED, "2026-11-29")
    assert path is not None
    damage, says = DAMAGES[name]
    values = json.loads(path.read_text())
    damage(values)
    path.write_text(json.dumps(values))
    with caplog.at_level(logging.WARNING, logger="sicompiler"):
        assert machine_of("cpu") is ROW
        assert machine_of("cpu") is ROW
    assert len(caplog.records) == 1
    assert says in caplog.text


def test_half_a_file_is_ignored_and_a_new_one_is_read(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = save_machine("cpu", MEASURED, "2026-11-29")
    assert path is not None
    path.write_text(path.read_text()[:100])
    os.utime(path, (1, 1))
    assert machine_of("cpu") is ROW
    assert "`sicompiler calibrate` writes it anew" in caplog.text
    save_machine("cpu", MEASURED, "2026-11-30")
    assert machine_of("cpu").source == "measured 2026-11-30"


def test_a_file_holds_every_figure() -> None:
    file = MachineFile.of("cpu", MEASURED, "2026-11-29")
    assert asdict(file.machine()) == asdict(replace(MEASURED, source="measured 2026-11-29"))


def test_rates_are_by_kind_of_kernel_and_fall_back_to_products_and_to_float32() -> None:
    assert MEASURED.rate(Kernel.PRODUCT, 2) == 5e10
    assert MEASURED.rate(Kernel.CONVOLUTION, 4) == 2e10
    assert MEASURED.rate(Kernel.CONVOLUTION, 2) == 5e10
    assert MEASURED.rate(Kernel.TEMPORAL, 4) == 2e10, "as other convolutions, where nobody has measured it"
    assert replace(MEASURED, temporal_flops={4: 1e10}).rate(Kernel.TEMPORAL, 4) == 1e10
    assert MEASURED.rate(Kernel.ATTENTION, 1) == 3e10


@pytest.mark.parametrize(("best", "half"), [(1e11, 64.0), (3e9, 1.0), (5e12, 900.0)])
def test_how_a_rate_saturates_is_found_again(best: float, half: float) -> None:
    lengths = (8, 32, 128, 512, 2048)
    found = Saturation.fit(lengths, [best * n / (n + half) for n in lengths])
    assert found.best == pytest.approx(best, rel=1e-6)
    assert found.half == pytest.approx(max(half, 1.0), rel=1e-4)


def test_a_rate_that_grows_to_the_end_is_at_least_what_was_seen() -> None:
    assert Saturation.fit((8, 32, 128), [1e3, 2e4, 9e5]).best == 9e5


def test_doubt_is_the_largest_factor_by_which_a_loop_took_longer_than_thought() -> None:
    rows = [TimedPlan("a", 1.0, 1.0, 2.0), TimedPlan("a", 0.5, 1.1, 2.64), TimedPlan("a", 0.0, 2.0, 3.0)]
    assert loops_doubt(rows) == pytest.approx(1.2)
    assert loops_doubt(rows[:1]) == 1.0
    assert loops_doubt([*rows, TimedPlan("a", 0.0, 1.0, 99.0)]) == 3.0


def test_kernels_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """That the numbers are what the machine does is seen on an idle one only; here, that each is there."""
    monkeypatch.setattr(kernels, "LENGTHS", (2, 8))
    monkeypatch.setattr(kernels, "LONG", 32)
    with torch.no_grad():
        rows, columns = kernels.products(CPU, torch.float32, size=32)
        found = [
            rows.best,
            columns.half,
            kernels.launch_seconds(CPU),
            kernels.convolutions(CPU, torch.float32, channels=2),
            kernels.temporal_convolutions(CPU, torch.float32, channels=2),
            kernels.attention(CPU, torch.float32, heads=1, tokens=16, width=8),
            kernels.elementwise(CPU, 1e-6),
            *kernels.bandwidths(CPU, 1e-6, 2**21),
            copy_bandwidth(CPU, 2**16),
        ]
    assert all(0 < value < float("inf") for value in found)


def test_the_first_run_is_not_timed() -> None:
    runs: list[int] = []
    assert seconds_of(lambda: runs.append(0), CPU, repeats=2) < 1e-3
    assert len(runs) > 3


def test_the_command_keeps_the_figures_and_shows_them_beside_the_round_ones(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(calibrate, "measure_machine", lambda device, progress: MEASURED)
    assert calibrate.run(None, as_json=False) == 0
    printed = capsys.readouterr().out
    assert "memory_bandwidth" in printed
    assert f"kept in {folder / 'cpu.json'}" in printed
    assert machine_of("cpu").flops == MEASURED.flops
    assert calibrate.run(None, as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["conv_flops"] == {"4": 2e10}


def test_figures_that_cannot_be_kept_are_an_error_after_they_were_shown(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SICOMPILER_CALIBRATION", str(folder / "file" / "below"))
    (folder / "file").write_text("")
    monkeypatch.setattr(calibrate, "measure_machine", lambda device, progress: MEASURED)
    with pytest.raises(SicompilerError, match="the figures can't be kept in"):
        calibrate.run(None, as_json=False)
    assert "memory_bandwidth" in capsys.readouterr().out


@pytest.mark.slow
def test_a_whole_calibration_takes_less_than_a_minute_on_an_idle_machine(folder: Path) -> None:
    assert calibrate.run(None, as_json=True) == 0
    measured = machine_of("cpu")
    assert isinstance(measured, Machine)
    assert 1.0 <= measured.doubt <= 3.0
    assert set(measured.flops) == set(measured.conv_flops) == set(measured.attention_flops) == {2, 4, 8}
