from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxcomp import recorder
from tests.command import Command
from tests.generate import Net


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """The command in a folder of its own with ``net.onnx`` (input x, 5 classes) and ``data.npz`` (16 samples)."""
    net = Net(0, (3, 8, 8))
    x = net.activation(net.conv("x", 16))
    x = net.activation(net.batch_norm(net.conv(x, 32)))
    net.gemm(net.flatten(net.node("GlobalAveragePool", x), positions=1), 5)
    onnx.save(net.proto(), tmp_path / "net.onnx")
    labels = np.random.default_rng(0).integers(0, 5, 16)
    np.savez(tmp_path / "data.npz", **net.feeds(16), labels=labels)
    monkeypatch.chdir(tmp_path)
    for name in ("_SECONDS_A_PASS", "_SECONDS_AT_END"):  # to measure for; five pairs of runs are enough here
        monkeypatch.setattr(recorder, name, 0.0)
    return Command(tmp_path, capfd)
