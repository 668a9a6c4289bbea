"""Results on a CPU without VNNI, whose 8-bit kernels add two products in 16 bits: with and without those kernels."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.bench import HERE, Bench, python, say
from harness.entries import onnxcomp_program
from harness.process import Limits, Outcome, run
from harness.quant_results import Saturation, SaturationRow
from harness.zoo import MODELS
from onnxcomp.fidelity import FidelitySums
from onnxcomp.runtime.target import Target

__all__ = ["TOOLS", "WORST_CASE", "emulator", "measure_saturation", "saturation_row"]

WORST_CASE = "worst case"
IMAGES = 300  # of a real model: the emulator takes about a tenth of a second for each
SLOW = Limits(seconds=1200, bytes=8e9)
# A CPU with AVX2 and without VNNI, less what the emulator would warn that it lacks.
_CPU = "Haswell,-pcid,-x2apic,-tsc-deadline,-hle,-invpcid,-rtm"
_PROGRAM = "qemu-x86_64"

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class _Tool:
    """A tool with a setting; ``safe`` when it is told not to saturate."""

    tool: str
    setting: str
    safe: bool
    pipeline_target: str = ""
    peer: str = ""

    def command(self, model: Path, data: Path, output: Path) -> list[str]:
        if self.peer:
            return [sys.executable, "-m", "harness.peers", self.peer, str(model), str(data), str(output)]
        return [
            onnxcomp_program(),
            str(model),
            "-p",
            "quant",
            "--data",
            str(data),
            "--target",
            self.pipeline_target,
            "-o",
            str(output),
        ]


TOOLS = (
    _Tool("onnxcomp", "-p quant --target x86-avx2", True, pipeline_target="x86-avx2"),
    _Tool("onnxcomp", "-p quant --target x86-vnni (not this CPU)", False, pipeline_target="x86-vnni"),
    _Tool("onnxruntime", "quantize_static, MinMax, per channel, 8 bits", False, peer="ort-minmax"),
    _Tool("onnxruntime", "quantize_static, MinMax, per channel, reduce_range", True, peer="ort-minmax-7bit"),
)


def emulator() -> list[str] | None:
    """What to start programs with so that they see a CPU whose kernels saturate.

    Nothing where this machine is one, and None where it is not and there is no emulator.
    """
    if Target.host().int8_saturates:
        return []
    program = shutil.which(_PROGRAM)
    return None if program is None else [program, "-cpu", _CPU]


def measure_saturation(bench: Bench, prefix: list[str]) -> Saturation:
    """The constructed worst case, and the ResNet of the zoo when it is there."""
    work = bench.work / "saturation"
    work.mkdir()
    made = python(["harness.worst_case", str(work)], work / "worst_case.log")
    if made.failure is not None:
        raise SystemExit(f"the worst case cannot be made: {made.failure}")
    with np.load(work / "test.npz") as stored:
        samples = {WORST_CASE: len(stored["labels"])}
    rows = _rows(WORST_CASE, work / "model.onnx", work / "calibration.npz", work / "test.npz", samples, prefix)
    fashion = MODELS["fashion"]
    if fashion.path.is_file():
        samples["fashion"] = IMAGES
        test = fashion.folder / fashion.figures[0].samples
        folder = work / "fashion"
        folder.mkdir()
        shutil.copyfile(fashion.path, folder / "model.onnx")
        rows += _rows("fashion", folder / "model.onnx", fashion.data, test, samples, prefix)
    return Saturation(
        date=time.strftime("%Y-%m-%d"),
        command=bench.command,
        environment=bench.environment,
        machine="emulated" if prefix else "this machine",
        samples=samples,
        rows=rows,
    )


def saturation_row(row: SaturationRow, original: Array, fused: Array, unfused: Array) -> SaturationRow:
    """Fill in what the outputs [samples, classes] of the original and of the result in both ways tell."""
    sums = FidelitySums()
    sums.update({"output": unfused}, {"output": fused})
    sqnr = sums.result().sqnr_db
    classes, with_kernels, without = (values.argmax(axis=-1) for values in (original, fused, unfused))
    row.fused, row.unfused = float((with_kernels == classes).mean()), float((without == classes).mean())
    row.equal = float((with_kernels == without).mean())
    row.sqnr_db = sqnr if np.isfinite(sqnr) else None
    return row


def _rows(
    name: str, model: Path, data: Path, test: Path, samples: dict[str, int], prefix: list[str]
) -> list[SaturationRow]:
    count = samples[name]
    original = _outputs([], model, test, model.with_suffix(".fp32.npy"), count)
    if isinstance(original, str):
        raise SystemExit(f"{name}: the original does not run: {original}")
    rows = []
    for index, tool in enumerate(TOOLS):
        row = SaturationRow(model=name, tool=tool.tool, setting=tool.setting, safe=tool.safe)
        output = model.with_name(f"result{index}") / "model.onnx"
        output.parent.mkdir()
        row.failure = run(tool.command(model, data, output), output.with_suffix(".log"), SLOW, cwd=HERE).failure
        if row.failure is None:
            fused = _outputs(prefix, output, test, output.with_suffix(".fused.npy"), count)
            unfused = _outputs([], output, test, output.with_suffix(".unfused.npy"), count, "--plain")
            if isinstance(fused, str) or isinstance(unfused, str):
                row.failure = next(text for text in (fused, unfused) if isinstance(text, str))
            else:
                saturation_row(row, original, fused, unfused)
        rows.append(row)
        say(f"{name}: {row.tool} {row.setting}: {row.failure or f'{row.equal:.4f} equal, {row.fused:.4f} like fp32'}")
    return rows


def _outputs(prefix: list[str], model: Path, test: Path, output: Path, count: int, *flags: str) -> Array | str:
    """The outputs of a model, or why there are none."""
    command = [sys.executable, "-m", "harness.outputs", str(model), str(test), str(output), str(count), *flags]
    outcome: Outcome = run([*prefix, *command], output.with_suffix(".log"), SLOW, cwd=HERE)
    if outcome.failure is not None:
        return outcome.failure
    found: Array = np.load(output)
    return found
