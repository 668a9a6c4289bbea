"""Pictures of weights."""

from __future__ import annotations

import base64
import struct
import xml.etree.ElementTree as ElementTree
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxcomp import compress
from onnxcomp.errors import InputError
from onnxcomp.heatmap import HeatMap, drawn
from onnxcomp.passes.reorder import Reorder
from onnxcomp.pipeline import Pipeline
from tests.test_tile_pruning import residual

Array = np.ndarray[Any, Any]
SVG = "{http://www.w3.org/2000/svg}"


def pixels(image: ElementTree.Element) -> Array:
    """(rows, columns, 3) of an embedded PNG."""
    data = base64.b64decode(image.attrib["href"].split(",")[1])
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    size = struct.unpack(">I", data[33:37])[0]
    assert data[37:41] == b"IDAT"
    lines = np.frombuffer(zlib.decompress(data[41 : 41 + size]), np.uint8).reshape(height, 1 + 3 * width)
    return lines[:, 1:].reshape(height, width, 3)


def test_zeros_are_white_and_large_values_dark() -> None:
    before = np.array([[0.0, 1.0], [4.0, 4.0], [4.0, 4.0]])
    root = ElementTree.fromstring(drawn([HeatMap("<one>", before, before[:, :1], (1, 1))]))
    assert root.find(f"{SVG}text").text == "<one>"  # type: ignore[union-attr]
    first, second = (pixels(image) for image in root.iter(f"{SVG}image"))
    assert (first.shape, second.shape) == ((3, 2, 3), (3, 1, 3))
    assert first[0, 0].tolist() == [255, 255, 255]
    assert first[1, 0].tolist() == [20, 40, 120]
    assert first[0, 1].tolist() == [round((255 + ink) / 2) if ink != 20 else 138 for ink in (20, 40, 120)]


@pytest.mark.parametrize("shape", [(1, 1), (3, 2000), (1537, 1), (1025, 513)])
def test_large_matrices_are_averaged_and_zero_ones_drawn(shape: tuple[int, int]) -> None:
    root = ElementTree.fromstring(drawn([HeatMap("m", np.ones(shape), np.zeros(shape), (8, 8))]))
    one, none = (pixels(image) for image in root.iter(f"{SVG}image"))
    assert max(one.shape[:2]) <= 512
    assert (one == [20, 40, 120]).all()
    assert (none == 255).all()
    ElementTree.fromstring(drawn([HeatMap("m", np.zeros(shape), np.zeros(shape), (8, 8))]))


def test_the_pass_draws_what_it_did(tmp_path: Path) -> None:
    model, data = residual()
    file = tmp_path / "tiles.svg"
    compress(model, Pipeline([Reorder(density=0.5, picture=str(file))]), data=data, timings="off")
    root = ElementTree.parse(file).getroot()
    titles = [text.text for text in root.iter(f"{SVG}text") if text.get("class") == "title"]
    assert sorted(titles) == ["classes", "inner", "outer", "stem"]
    white = [float((pixels(image) == 255).all(axis=2).mean()) for image in root.iter(f"{SVG}image")]
    assert max(white[0::2]) < 0.1  # before
    assert max(white[1::2]) > 0.3


def test_a_picture_is_an_svg_file_in_a_folder_that_exists(tmp_path: Path) -> None:
    model, data = residual()
    result = compress(model, Pipeline([Reorder(picture="tiles.png")]), data=data)
    assert "names no SVG file" in str(result.report.passes[-1].verification.error)
    missing = tmp_path / "none" / "tiles.svg"
    with pytest.raises(InputError, match="does not exist"):
        compress(model, Pipeline([Reorder(picture=str(missing), density=1)]), data=data)
