"""The suite ``container``: a model in several forms, each as a file of several kinds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from harness.bench import HERE, Bench, python, say
from harness.entries import onnxcomp_program
from harness.process import run
from harness.size_results import Archive, Codes, ContainerRow
from harness.zoo import ZooModel

__all__ = ["FORMS", "Form", "measure"]


@dataclass(frozen=True)
class Form:
    """What a model is before it is packed.

    Attributes:
        name: what the table says.
        pipeline: of onnxcomp; None for the fp32 original.
        only: names of the models that it is measured on; empty for all.
    """

    name: str
    pipeline: str | None
    only: tuple[str, ...] = ()

    def suits(self, model: ZooModel) -> bool:
        """Whether it is measured on the model."""
        return not self.only or model.name in self.only


FORMS = (
    Form("fp32", None),
    Form("-p quant", "quant"),
    Form("-p 'prune(granularity=\"element\"),quant'", 'prune(granularity="element"),quant', ("fashion",)),
    Form("-p 'prune(granularity=\"2:4\"),quant'", 'prune(granularity="2:4"),quant', ("fashion",)),
    Form("-p 'prune(granularity=\"block(8,8)\"),quant'", 'prune(granularity="block(8,8)"),quant', ("fashion",)),
)


def measure(bench: Bench, model: ZooModel, form: Form, nncodec: str | None) -> ContainerRow:
    """A form of a model, made and packed in every way.

    Args:
        nncodec: a Python that has it, or None.
    """
    folder = bench.work / "container" / model.name / str(FORMS.index(form))
    folder.mkdir(parents=True, exist_ok=True)
    plain = model.path if form.pipeline is None else folder / "model.onnx"
    row = ContainerRow(form=form.name, plain=0)
    if form.pipeline is not None and not (bench.reuse and plain.is_file()):
        made = ["-p", form.pipeline, "--data", str(model.data), "-o", str(plain), "-q"]
        row.failure = run([onnxcomp_program(), str(model.path), *made], folder / "made.log", bench.limits, HERE).failure
    if row.failure is None:
        row.plain = plain.stat().st_size
        _pack(bench, plain, folder, row)
    if row.failure is None and row.codes is not None and nncodec is not None:
        _code(bench, nncodec, folder, row.codes)
    say(f"container, {model.name} {form.name}: {row.failure or _told(row)}")
    return row


def _pack(bench: Bench, plain: Path, folder: Path, row: ContainerRow) -> None:
    arguments = ["harness.size_packing", str(plain), str(folder), str(bench.repeats)]
    outcome = python(arguments, folder / "pack.log", bench.limits)
    if outcome.failure is not None:
        row.failure = f"it cannot be packed: {outcome.failure}"
        return
    found = json.loads(outcome.output)
    row.onnxz, row.zstd, row.xz = (Archive(**found[name]) for name in ("onnxz", "zstd", "xz"))
    row.codes = Codes(**found["codes"]) if found["codes"] else None


def _code(bench: Bench, nncodec: str, folder: Path, codes: Codes) -> None:
    script = HERE / "harness" / "size_nncodec.py"  # as a file: its environment has none of the harness
    outcome = run([nncodec, str(script), str(folder / "codes.npz")], folder / "nncodec.log", bench.limits, folder)
    if outcome.failure is not None:
        say(f"nncodec failed: {outcome.failure}")
        return
    found = json.loads(outcome.output.splitlines()[-1])
    codes.nncodec, codes.nncodec_seconds = found["bytes"], found["seconds"]


def _told(row: ContainerRow) -> str:
    sizes = {name: getattr(row, name).bytes for name in ("onnxz", "zstd", "xz")}
    return ", ".join(f"{name} {size:,}" for name, size in {"plain": row.plain, **sizes}.items())
