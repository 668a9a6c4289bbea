"""Compare products fitted on data with the plain SVD of the weights, at equal forms and ranks.

    python benchmarks/factorize.py --models fashion,ppocr_rec,minilm --flops 0.3

Forms and ranks are chosen once for each model, by what its outputs lose for the operations saved (no times are
measured). Then the products are made in both ways, and the models judged on samples that neither saw. See README.md
beside this file for where the models come from.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from harness.zoo import MODELS, ZooModel

from onnxcomp.context import Context
from onnxcomp.data import Dataset
from onnxcomp.evaluate import metric_named, noise, outputs
from onnxcomp.graph.cost import cost
from onnxcomp.graph.factors import joined, unfactorizable
from onnxcomp.graph.layers import weighted_layers
from onnxcomp.model import Model
from onnxcomp.passes.fold import Fold
from onnxcomp.runtime.channels import affordable
from onnxcomp.runtime.factor_losses import measured_units
from onnxcomp.runtime.factor_plan import Choice, FactorPlan
from onnxcomp.runtime.factor_times import FactorTimes
from onnxcomp.runtime.factorizing import factorize, factorize_by_weights
from onnxcomp.runtime.fits import can_be_observed
from onnxcomp.runtime.sensitivity import output_moments
from onnxcomp.runtime.shapes import observed
from onnxcomp.runtime.target import Target
from onnxcomp.runtime.timings import TimingTable

_MACS, _PROBE_MACS, _GRADIENT_MACS = 1e11, 1e10, 3e10  # that samples may take to run once
Made = Callable[[Model, list[Choice]], object]


def main() -> int:
    """Parse the command line and run; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="fashion,ppocr_rec,minilm", help="of the zoo, with commas")
    parser.add_argument("--flops", type=float, default=0.3, help="share of the operations to remove")
    options = parser.parse_args()
    print("| model | factors | noise of the outputs | metric |\n|---|---|---|---|")
    for name in options.models.split(","):
        for row in _rows(MODELS[name], options.flops):
            print(f"| {name} | {row} |", flush=True)
    return 0


def _rows(zoo: ZooModel, share: float) -> list[str]:
    original = Model.load(zoo.path)
    Fold().run(original, Context(target=Target.host(), scope="fold"))
    data, test = Dataset.open(str(zoo.data), original), Dataset.open(str(zoo.test), original)
    metric = metric_named(zoo.figures[0].metric).of_outputs
    assert metric is not None
    reference = list(outputs(original, test))
    samples = affordable(original, observed(original, data.sample()), data, _MACS)
    ways: dict[str, Made] = {
        "plain SVD": factorize_by_weights,
        "fitted": lambda model, choices: factorize(model, choices, samples),
    }
    choices = _choices(original, data, share)
    rows = [f"none | 0 | {metric(reference, test.labels):.4f}"]
    for way, make in ways.items():
        model = original.copy()
        make(model, _in(model, choices))
        found = list(outputs(model, test))
        rows.append(f"{way} | {noise(reference, found):.4f} | {metric(found, test.labels):.4f}")
    return rows


def _in(model: Model, choices: list[Choice]) -> list[Choice]:
    """The same choices for a copy of the model that they were made for."""
    layers = {layer.name: layer for layer in weighted_layers(model)}
    return [
        replace(choice, unit=replace(choice.unit, layers=[layers[layer.name] for layer in choice.unit.layers]))
        for choice in choices
    ]


def _choices(model: Model, data: Dataset, share: float) -> list[Choice]:
    shapes = observed(model, data.sample())
    layers = [layer for layer in weighted_layers(model) if unfactorizable(layer) is None and can_be_observed(layer)]
    samples, probe, gradient = (
        affordable(model, shapes, data, macs, most)
        for macs, most in ((_MACS, 4096), (_PROBE_MACS, 64), (_GRADIENT_MACS, 256))
    )
    moments = output_moments(model, layers, gradient, np.random.default_rng(0))
    multiple = Target.host().channel_multiple
    units = measured_units(model, layers, joined(layers), shapes, multiple, samples, probe, moments)
    macs = cost(model, shapes).per_layer
    times = FactorTimes(shapes, TimingTable(measures=False))
    plan = FactorPlan(units, times, float(sum(macs[layer.name].macs for layer in layers)))
    plan.by_flops(share)
    return plan.choices


if __name__ == "__main__":
    sys.exit(main())
