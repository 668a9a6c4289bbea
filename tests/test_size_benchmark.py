from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from harness.render_size import size_sections
from harness.results import Environment
from harness.size_results import Archive, Codes, ContainerRow, ContainerSection, SizeResults
from harness.size_targets import check_size
from harness.targets import Target

from tests import models

MACHINE = Environment(cpu="a CPU", isa=["avx2"], cores=2, platform="Linux", versions={"onnx": "1.2"})


def row(onnxz: int, **more: Any) -> ContainerRow:
    found = {"form": "-p quant", "plain": 2_000_000, "zstd": archive(1_700_000), "xz": archive(1_600_000)}
    return ContainerRow(**(found | {"onnxz": archive(onnxz, 0.015)} | more))


def archive(size: int, seconds: float = 1.0) -> Archive:
    return Archive(bytes=size, pack_seconds=seconds, restore_seconds=seconds)


def results(*rows: ContainerRow) -> SizeResults:
    section = ContainerSection(date="2025-01-01", command="c", environment=MACHINE, rows=list(rows))
    return SizeResults(container={"net": section})


def targets(found: SizeResults) -> list[Target]:
    return check_size(found)


def test_nothing_is_told_where_nothing_was_measured() -> None:
    assert size_sections(SizeResults()) == ""
    assert {target.met for target in targets(SizeResults())} == {None}


def test_targets_compare_with_the_best_archive_and_nncodec() -> None:
    codes = Codes(count=1_900_000, entropy=1.5e6, packed=1_400_000, nncodec=1_450_000, nncodec_seconds=2.0)
    small, coded, fast = targets(results(row(1_500_000, codes=codes), row(1_000, form="fp32")))
    assert (small.measured, small.miss) == ("0.94 x", "0.09 x")
    assert coded.met
    assert coded.measured == "0.97 x"
    assert fast.met
    assert fast.measured == "66.67 MB/s"


def test_tables_tell_sizes_speeds_and_what_failed() -> None:
    codes = Codes(count=1_900_000, entropy=1.5e6, packed=1_400_000)
    told = size_sections(results(row(1_500_000, codes=codes), ContainerRow(form="fp32", plain=0, failure="no | file")))
    assert "| net | -p quant | 2,000,000 | 1,500,000 | 1,700,000 | 1,600,000 | 0.938 | 133.3, 133.3 |" in told
    assert "| net | -p quant | 1,900,000 | 1,500,000 | 1,400,000 | 5.89 | - | - | - |" in told
    assert "fp32: no \\| file" in told


def test_files_are_packed_in_every_way(tmp_path: Any) -> None:
    pytest.importorskip("zstandard")
    from harness.size_packing import packed

    codes = np.random.default_rng(0).normal(0, 9, (100, 200)).astype(np.int8)
    onnx.save(models.initializers_of({"a": codes, "b": np.ones(9, np.float32)}), tmp_path / "net.onnx")
    found = packed(tmp_path / "net.onnx", tmp_path, 1)
    assert found["onnxz"]["bytes"] == (tmp_path / "packed.onnxz").stat().st_size < found["xz"]["bytes"]
    assert found["codes"]["count"] == codes.size
    assert found["codes"]["entropy"] < found["codes"]["packed"] < found["codes"]["entropy"] + 500
    assert np.array_equal(np.load(tmp_path / "codes.npz")["w0"], codes)
