"""How much each output of a layer counts for what the model says: the gradient, before anything is compressed.

An error e in a layer's outputs changes what the model says by about eᵀ G e, with G the second moment of the gradient of
the model's log-likelihood by these outputs (the Fisher information; for squared errors the Gauss-Newton matrix). No
labels: targets are drawn from what the model itself predicts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.data import Dataset
from onnxcomp.errors import PassError, SessionError
from onnxcomp.graph.edit import Names, output_ids
from onnxcomp.graph.layers import WeightedLayer, weighted_layers
from onnxcomp.graph.opset import upgrade_opset
from onnxcomp.model import Model
from onnxcomp.progress import Progress, silent
from onnxcomp.runtime.gradients import Gradients
from onnxcomp.runtime.heads import Head, heads
from onnxcomp.runtime.session import Feeds, create, run, with_outputs
from onnxcomp.runtime.shapes import observed

__all__ = ["Weighting", "output_moments"]

Array = np.ndarray[Any, Any]

_OPSET = 13  # that derivatives are written in
_DAMPING = 0.1  # of the mean of diag(G): what the samples do not show to count may count a little
_MOST_OUTPUTS = 4096
_LEAST_ROWS = 2  # positions for each output, for G to say anything


@dataclass(frozen=True)
class Weighting:
    """Outputs of a layer, transformed so that squared errors in them count as they count for the model.

    Attributes:
        root: symmetric square root of G, (outputs, outputs); None where all count alike.
        scale: by which they are multiplied besides.
    """

    root: Array | None = None
    scale: float = 1.0

    @classmethod
    def of(cls, G: Array | None, energy: Array | None = None) -> Weighting:
        """By G, which is damped.

        Args:
            G: (outputs, outputs), or None.
            energy: second moment of the outputs, whose sum of variances stays what it is.
        """
        if G is None or energy is None or not np.isfinite(G).all() or not np.trace(G) > 0.0:
            return cls()
        values, vectors = np.linalg.eigh(G)
        values = np.maximum(values, 0.0) + _DAMPING * float(values.mean())
        weighted = float(np.einsum("ij,j,kj,ik->", vectors, values, vectors, energy, optimize=True))
        if not weighted > 0.0:
            return cls()
        root = (vectors * np.sqrt(values * float(np.trace(energy)) / weighted)) @ vectors.T
        return cls(root)

    def scaled(self, scale: float) -> Weighting:
        """With this scale besides."""
        return Weighting(self.root, self.scale * scale)

    def applied(self, rows: Array) -> Array:
        """To a matrix with a row for each output."""
        return self.scale * (rows if self.root is None else self.root @ rows)

    def undone(self, rows: Array) -> Array:
        """The inverse of ``applied``."""
        result: Array = (rows if self.root is None else np.linalg.solve(self.root, rows)) / self.scale
        return result


def output_moments(
    model: Model,
    layers: Sequence[WeightedLayer],
    dataset: Dataset,
    rng: np.random.Generator,
    progress: Progress = silent,
) -> dict[str, Array]:
    """G of the outputs of layers, (outputs, outputs), over positions and samples, by name.

    Layers behind which there is an operator without a derivative are missing, and those of which too few positions were
    seen; so are all where the model cannot be differentiated.

    Args:
        model: left as it is.
        layers: of its main graph: Conv, Gemm and MatMul.
        dataset: samples; those of other shapes than the first are left out.
        rng: draws the targets.
        progress: shows the samples.

    Raises:
        InputError: the model does not run on the data.
    """
    samples = dataset.in_batches(1)
    first = samples.sample()
    names = {layer.name for layer in layers if layer.shape[layer.out_axis] <= _MOST_OUTPUTS}
    work = model.copy()
    try:
        upgrade_opset(work, _OPSET)
        shapes = observed(work, first)
        ends = heads(work, shapes, "auto")
    except PassError:  # an operator that cannot be upgraded, or no output to differentiate
        return {}
    probes = _with_probes(work, names, shapes)
    if not probes or work.graph.functions:
        return {}
    given = create(with_outputs(work.skeleton(), [head.output for head in ends]))
    gradients = Gradients(work, [probe.parameter for probe in probes], [head.term(1.0, 0.0) for head in ends])
    values = {probe.parameter: np.zeros(probe.shape, np.float32) for probe in probes}
    moments: dict[str, Array] = {}
    seen: dict[str, int] = {}
    try:
        for feeds in progress(samples.feeds(), "finding sensitivities", samples.batches):
            if not _alike(feeds, first):
                continue
            said = run(given, feeds)
            targets = {head.tensor: _drawn(head, said[head.output], rng) for head in ends}
            for name, gradient in gradients.step(values, feeds, targets).gradients.items():
                probe = next(probe for probe in probes if probe.parameter == name)
                rows = np.moveaxis(gradient, probe.axis, -1).reshape(-1, gradient.shape[probe.axis]).astype(np.float64)
                moments[probe.layer] = moments.get(probe.layer, 0.0) + rows.T @ rows
                seen[probe.layer] = seen.get(probe.layer, 0) + len(rows)
    except SessionError:  # a derivative that these shapes have not
        return {}
    return {name: G for name, G in moments.items() if seen[name] >= _LEAST_ROWS * len(G)}


@dataclass(frozen=True)
class _Probe:
    """Zeros that are added to the outputs of a layer: the gradient by them is that by the outputs."""

    layer: str
    parameter: str
    shape: tuple[int, ...]
    axis: int


def _with_probes(work: Model, wanted: set[str], shapes: Mapping[str, tuple[int, ...]]) -> list[_Probe]:
    names, given = Names(work.graph), output_ids(work.graph)
    probes = []
    for layer in weighted_layers(work):
        output = layer.node.outputs[0]
        if layer.name not in wanted or output.name not in shapes or id(output) in given:
            continue
        raw = gs.Variable(names.new(f"{output.name}/before"), dtype=output.dtype)
        zeros = gs.Constant(names.new(f"{output.name}/probe"), np.zeros(shapes[output.name], np.float32))
        layer.node.outputs[0] = raw
        place = next(index for index, node in enumerate(work.graph.nodes) if node is layer.node)
        add = gs.Node("Add", names.new(f"{layer.name}/probe"), inputs=[raw, zeros], outputs=[output])
        work.graph.nodes.insert(place + 1, add)
        axis = 1 if layer.kind in ("Conv", "ConvTranspose") else -1
        probes.append(_Probe(layer.name, zeros.name, shapes[output.name], axis))
    return probes


def _alike(feeds: Feeds, first: Feeds) -> bool:
    return all(np.shape(feeds[name]) == np.shape(value) for name, value in first.items())


def _drawn(head: Head, said: Array, rng: np.random.Generator) -> Array:
    """A target drawn from what the model predicts: a class, or values with noise as large as they are."""
    if head.kind == "mse":
        size = float(np.sqrt(np.mean(np.square(said)))) or 1.0
        return (said - size * rng.standard_normal(said.shape)).astype(np.float32)
    chances = head.target(said).astype(np.float64)
    if head.kind == "bernoulli":
        return (rng.random(chances.shape) < chances).astype(np.float32)
    upto = np.cumsum(np.moveaxis(chances, head.axis, -1), axis=-1)
    drawn = (rng.random((*upto.shape[:-1], 1)) * upto[..., -1:] > upto).sum(axis=-1)
    one_hot = np.eye(upto.shape[-1], dtype=np.float32)[np.minimum(drawn, upto.shape[-1] - 1)]
    return np.ascontiguousarray(np.moveaxis(one_hot, -1, head.axis))
