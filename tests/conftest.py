from __future__ import annotations

import gc
import os

if "PYTEST_XDIST_WORKER" in os.environ:
    # Every worker has a core. Threads of NumPy's products wait for each other by spinning: with two for each of two
    # workers the tests took two and a half times as long. To be said before NumPy is loaded.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, settings

from onnxcomp.runtime import latency
from onnxcomp.runtime.target import Target
from tests.command import Command
from tests.generate import Net

# A loaded machine is no reason to fail.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# Every check of one commit tries the same examples; elsewhere each run tries new ones.
settings.register_profile("repeatable", settings.get_profile("patient"), derandomize=True)
settings.load_profile("repeatable" if os.environ.get("CI") else "patient")


def _hurried(compare: Callable[..., latency.LatencyComparison]) -> Callable[..., latency.LatencyComparison]:
    """The same measurement, of as few runs as it makes."""

    def compare_quickly(a: bytes, b: bytes, feeds: Any, threads: int = 1, *_: float, **__: float) -> Any:
        return compare(a, b, feeds, threads, seconds=0.0, warmup=0.0)

    return compare_quickly


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """The command in a folder of its own with ``net.onnx`` (input x, 5 classes) and ``data.npz`` (16 samples)."""
    net = Net(0, (3, 8, 8))
    x = net.activation(net.conv("x", 16))
    x = net.activation(net.batch_norm(net.conv(x, 32)))
    net.gemm(net.flatten(net.node("GlobalAveragePool", x), positions=1), 5)
    onnx.save(net.proto(), tmp_path / "net.onnx")
    labels = np.random.default_rng(0).integers(0, 5, 16)
    np.savez(tmp_path / "data.npz", **net.feeds(16), labels=labels)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(latency, "compare", _hurried(latency.compare))
    gc.freeze()  # the manager collects garbage after every pass, which takes long where tests have left much
    yield Command(tmp_path, capfd)
    gc.unfreeze()


# Their figures are those of integer kernels whose sums do not saturate.
_EXACT_INTEGERS = {
    f"test_{name}"
    for name in ("bodies", "functions", "generality", "integer_preparation", "placement", "quant", "quant_bodies")
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On a host whose 8-bit products saturate, what tests say of targets that do not may fail."""
    if Target.host().int8_saturates:
        reason = "8-bit sums saturate on this host"
        for item in items:
            if item.path.stem in _EXACT_INTEGERS:
                item.add_marker(pytest.mark.xfail(reason=reason, strict=False))
