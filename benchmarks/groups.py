"""Measure how long it takes to find the dependency groups of graphs of ten thousand nodes.

    python benchmarks/groups.py

Three graphs: a residual network, a transformer in all forms of attention that exporters write, and a chain of grouped
convolutions with channel shuffles. Processor seconds of the faster of two runs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the generators of the tests

from onnxcomp.graph.groups import dependency_groups
from onnxcomp.runtime import shapes
from tests import forms
from tests.generate import Net


class _Zeros:
    """Draws weights, fast."""

    def standard_normal(self, shape: Any) -> Any:
        return np.zeros(shape, np.float32)

    def uniform(self, low: float, high: float, size: Any) -> Any:  # noqa: ARG002
        return np.zeros(size, np.float32)


def residual() -> tuple[Net, str]:
    """Blocks of two convolutions."""
    net = _net(16, 4, 4)
    x = net.conv("x", 64, kernel=1)
    for _ in range(2000):
        x = net.activation(net.add(x, net.conv(net.activation(net.conv(x, 64, kernel=1)), 64, kernel=1)))
    return net, net.conv(x, 8)


def transformer() -> tuple[Net, str]:
    """Layers of four heads and an MLP."""
    net = _net(16, 64)
    x = net.matmul("x", 64)
    for layer in range(340):
        form = forms.ATTENTION_FORMS[layer % len(forms.ATTENTION_FORMS)]
        x = net.add(x, forms.attention(net, x, 64, 4, form))
        x = net.add(x, net.matmul(net.gelu(net.matmul(x, 128)), 64))
    return net, net.matmul(x, 8)


def shuffles() -> tuple[Net, str]:
    """Grouped convolutions."""
    net = _net(16, 4, 4)
    x = net.conv("x", 64, kernel=1)
    for _ in range(2000):
        x = net.activation(forms.shuffle(net, net.conv(x, 64, kernel=1, groups=4), 4, 4, 4))
    return net, net.conv(x, 8)


def _net(*shape: int) -> Net:
    net = Net(shape=shape)
    net.channels["x"] = shape[-1] if len(shape) == 2 else shape[0]
    net.rng = _Zeros()  # type: ignore[assignment]
    return net


def measure(build: Callable[[], tuple[Net, str]]) -> str:
    net, result = build()
    model = net.model(result)
    observed = shapes.observed(model, net.feeds(samples=1))
    seconds = []
    for _ in range(2):
        start = time.process_time()
        groups = dependency_groups(model, observed)
        seconds.append(time.process_time() - start)
    units = sum(group.size for group in groups)
    nodes = len(model.graph.nodes)
    return f"{build.__name__:12} {nodes:6} nodes {len(groups):5} groups {units:7} units {min(seconds):6.2f} s"


if __name__ == "__main__":
    for build in (residual, transformer, shuffles):
        print(measure(build))
