"""docs/container.md tells all: a decoder written from it alone gives the files that were packed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import onnxcomp
from onnxcomp.container import arrays, encoding, segments
from onnxcomp.container.arrays import Form
from onnxcomp.container.plans import Mode
from tests import models, onnxz_reader
from tests.packing import codes, external, holding, quick

Array = np.ndarray[Any, Any]


def test_the_decoder_knows_the_page_alone() -> None:
    assert "onnxcomp" not in "".join(
        line for line in Path(onnxz_reader.__file__).read_text().splitlines() if "import " in line and '"""' not in line
    )


def read_again(path: Path, recipe: dict[str, Any] | None = None) -> None:
    onnxcomp.pack(path, path.with_suffix(".onnxz"), recipe)
    files, found = onnxz_reader.read(path.with_suffix(".onnxz").read_bytes())
    assert found == (recipe or {})
    for name, data in files.items():
        assert data == (path.parent / name if name else path).read_bytes()


def written(proto: Any, folder: Path) -> Path:
    (folder / "net.onnx").write_bytes(proto.SerializeToString())
    return folder / "net.onnx"


def every_form() -> dict[str, Array]:
    generator = np.random.default_rng(0)
    scales = generator.random(100).astype(np.float32)
    kernels = np.rint(generator.normal(0, 20, (20, 16, 1, 1)) + generator.normal(0, 9, (20, 16, 3, 4)))
    blocks = np.kron(generator.random((10, 8)) < 0.5, np.ones((4, 8)))
    groups = (np.argsort(generator.random((64, 9, 16, 4)), axis=3) < 2).reshape(64, 9, 64)
    return {
        "scaled": codes(48, 64), "predicted": np.clip(kernels, -127, 127).astype(np.int8),
        "sparse": np.where(generator.random((40, 64)) < 0.6, 0, codes(40, 64)).astype(np.int8),
        "blocks": (codes(40, 64, seed=1) * blocks).astype(np.int8),
        "groups of columns": codes(64, 64, 3, 3) * groups.transpose(0, 2, 1).reshape(64, 64, 3, 3).astype(np.int8),
        "groups of rows": codes(64, 64, 3, 3) * groups.transpose(2, 0, 1).reshape(64, 64, 3, 3).astype(np.int8),
        "odd": np.where(generator.random((41, 27)) < 0.6, 0, codes(41, 27)).astype(np.int8),
        "pruned": np.where(generator.random((30, 40)) < 0.5, 0, generator.normal(size=(30, 40))).astype(np.float32),
        "channels": codes(20, 24, 3, 3) * (generator.random((1, 24, 1, 1)) < 0.4).astype(np.int8),
        "scales": scales, "multiple": scales * np.float32(0.3), "same": scales, "wide": generator.normal(size=90),
        "weights": generator.normal(size=(20, 30)).astype(np.float32), "empty": np.zeros(900, np.int16),
        "half": generator.normal(size=(20, 30)).astype(np.float16), "unsigned": np.arange(500, dtype=np.uint32) // 9,
        "indices": generator.integers(-50, 50, 300), "whole": np.tile(generator.normal(size=64), 9).astype(np.float32),
    }  # fmt: skip


def test_arrays_of_every_form_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    described: list[arrays.Described] = []
    describe = arrays.describe

    def noted(*given: Any) -> list[arrays.Described]:
        described.extend(found := describe(*given))
        return found

    monkeypatch.setattr(encoding, "describe", noted)
    recipe = {"onnxcomp": "1.0", "pipeline": "quant", "seed": 7}
    read_again(written(models.initializers_of(every_form()), tmp_path), recipe)
    assert {array.form for array in described} == set(Form)
    assert {plan.mode for array in described for plan in array.plans} == set(Mode)
    assert {array.mask.mode for array in described if array.mask} >= {Mode.ONE}
    assert {array.order for array in described if array.mask} == {0, 1, 2}


def test_files_with_external_data_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_again(external(tmp_path))
    monkeypatch.setattr(segments, "BLOCK", 2**12)
    read_again(external(tmp_path))


def test_zeros_at_the_end_are_read(tmp_path: Path) -> None:
    proto = holding(codes(9, 9))
    proto.doc_string = 8_000_000 * " "
    read_again(written(proto, tmp_path))
    assert (tmp_path / "net.onnxz").read_bytes().endswith(bytes(100))


@given(
    shape=st.tuples(st.integers(1, 30), st.integers(1, 30), st.integers(1, 9)),
    element=st.integers(0, 255) | st.integers(1, 30),
    spread=st.floats(0, 100),
    zeros=st.floats(0, 1),
    gap=st.integers(0, 50),
    seed=st.integers(0, 2**32 - 1),
)
@settings(quick, max_examples=60)
def test_any_array_is_read(
    shape: tuple[int, int, int], element: int, spread: float, zeros: float, gap: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    numbers = np.rint(generator.normal(0, spread, shape)).astype(f"<i{onnxz_reader.WIDTHS.get(element, 1)}")
    numbers[generator.random(shape) < zeros] = 0
    data = gap * b"a" + numbers.tobytes() + gap * b"b"
    body = encoding.encode(data, [segments.Segment(gap, numbers.nbytes, element, shape)])
    assert onnxz_reader.block(onnxz_reader.Bytes(body)) == data
