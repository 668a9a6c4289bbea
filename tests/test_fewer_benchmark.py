"""What codebooks and low-rank products have to show: targets and tables of the benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from harness.fewer_targets import check_fewer
from harness.render_fewer import fewer_sections
from harness.results import Environment, Ratio, Row, Section
from harness.size_results import SizeResults
from harness.weights import onnxz_bytes

import onnxcomp
from tests import models

MACHINE = Environment(cpu="a CPU", isa=["avx2"], cores=2, platform="Linux", versions={"onnx": "1.2"})


def row(name: str, top1: float, **more: Any) -> Row:
    speed = Ratio(median=1.0, low=0.9, high=1.1)
    return Row(name=name, tool="onnxcomp", setting=f"-p {name}", figures={"top-1": top1}, latency=speed, **more)


def section(*rows: Row) -> Section:
    original = Row(
        name="fp32", tool="fp32", setting="", figures={"top-1": 0.939}, bytes=2_600_000, onnxz_bytes=2_400_000
    )
    return Section(
        model="fashion",
        file="net.onnx",
        date="2025-01-01",
        command="c",
        environment=MACHINE,
        figures=["top-1"],
        samples={"top-1": 10_000},
        calibration_samples=512,
        rounds=3,
        threads=1,
        original=original,
        rows=list(rows),
    )


def test_nothing_is_aimed_at_where_nothing_was_measured() -> None:
    assert check_fewer(SizeResults()) == []
    assert fewer_sections(SizeResults()) == []


def test_codebooks_are_judged_by_accuracy_size_and_speed() -> None:
    rows = (
        row("onnxcomp-share", 0.935, restored_share=0.13),
        row("onnxcomp-sparse-shared-80", 0.92, onnxz_bytes=200_000),
    )
    found = check_fewer(SizeResults(share={"fashion": section(*rows)}))
    assert [target.measured for target in found] == ["0.40 points", "13.00 %", "1.00 x", "1.90 points", "13.00 x"]
    assert [target.met for target in found] == [True, True, True, False, True]


def test_low_rank_is_judged_beside_products_of_the_weights_alone() -> None:
    rows = row("onnxcomp-factorize-30", 0.934), row("onnxcomp-factorize-30-plain", 0.929)
    found = check_fewer(SizeResults(factorize={"fashion": section(*rows)}))
    assert [(target.measured, target.met) for target in found] == [
        ("0.50 points", True),
        ("1.00 x", False),
        ("50.00 %", True),
    ]


def test_the_table_tells_how_small_the_packed_model_is() -> None:
    found = SizeResults(share={"fashion": section(row("onnxcomp-share", 0.935, bytes=400_000, onnxz_bytes=200_000))})
    (text,) = fewer_sections(found)
    assert "| 0.400 MB | 6.50x | - | 0.200 MB | 13.00x |" in text


def test_a_model_is_packed_to_be_measured(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(models.constant_nodes(), path)
    assert 0 < onnxz_bytes(path) == onnxcomp.pack(path, tmp_path / "net.onnxz")
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / "net.onnxz"]
