"""Measured time that steers decisions is recorded, and a stored table repeats a run to the byte."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxcomp import Dataset, Model, compress
from onnxcomp.errors import InputError
from onnxcomp.report.timings import open_timings
from onnxcomp.runtime import latency
from onnxcomp.runtime.timings import TimingTable
from tests.generate import Net


def network() -> Model:
    net = Net(seed=3, shape=(3, 12, 12))
    x = net.activation(net.conv("x", 32))
    x = net.activation(net.conv(x, 32))
    net.gemm(net.flatten(net.node("GlobalAveragePool", x), positions=1), 10)
    return net.model()


def samples() -> Dataset:
    rng = np.random.default_rng(0)
    return Dataset.from_feeds([{"x": rng.standard_normal((1, 3, 12, 12)).astype(np.float32)} for _ in range(24)])


def pretend(monkeypatch: pytest.MonkeyPatch, ratio: float) -> None:
    """Every measurement gives this ratio."""
    timed = latency.LatencyComparison(ratio, ratio, ratio, 1.0, 1.0 / ratio, 5, 1)
    monkeypatch.setattr(latency, "compare", lambda *_, **__: timed)


def test_known_comparisons_are_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, feeds = network(), samples().sample()
    pretend(monkeypatch, 2.0)
    first = TimingTable()
    entry = first.compare("a rewrite", model, model, feeds)
    assert entry is not None
    assert (entry.ratio, first.measured, first.used) == (2.0, 1, [entry])
    pretend(monkeypatch, 0.5)
    again = TimingTable(first.used, source="report.json")
    assert again.compare("a rewrite", model, model, feeds) == entry
    assert not again.incomplete
    other = again.compare("a rewrite", model, model, feeds, threads=2)  # more threads: another measurement
    assert other is not None
    assert other.ratio == 0.5
    assert again.incomplete


def test_nothing_is_measured_when_timings_are_off() -> None:
    table = open_timings("off")
    model = network()
    assert table.compare("a rewrite", model, model, samples().sample()) is None
    assert table.used == []


def test_a_report_repeats_the_decisions_that_its_timings_led_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend(monkeypatch, 0.5)  # as if integer kernels were slow here: their layers keep float kernels
    slow = compress(network(), "quant", data=samples(), output=tmp_path / "slow.onnx")
    assert "slower" in slow.report.passes[-1].decisions[0].reason
    assert [entry.ratio for entry in slow.report.timings] == [0.5]
    slow.report.write(tmp_path / "report.json")

    pretend(monkeypatch, 2.0)
    compress(network(), "quant", data=samples(), output=tmp_path / "fast.onnx")
    again = compress(
        network(), "quant", data=samples(), output=tmp_path / "again.onnx", timings=tmp_path / "report.json"
    )
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "slow.onnx").read_bytes()
    assert (tmp_path / "again.onnx").read_bytes() != (tmp_path / "fast.onnx").read_bytes()
    assert again.report.timings == slow.report.timings
    assert again.report.options.timings == str(tmp_path / "report.json")
    assert not any("timings" in warning for warning in again.report.warnings)


def test_timings_of_another_model_are_measured_and_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text('{"timings": []}')
    result = compress(network(), "quant", data=samples(), timings=tmp_path / "report.json")
    assert any("timings were not in" in warning for warning in result.report.warnings)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"timings": 1}', '{"timings": [{"ratio": 1}]}', "\udcff"])
def test_a_file_without_timings_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=r"report\.json: holds no timings"):
        open_timings(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        open_timings(tmp_path / "none.json")
