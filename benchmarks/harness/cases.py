"""The backend test collection of the onnx package: models with inputs and the outputs expected of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test import loader

__all__ = ["KINDS", "Case", "bound", "load_cases", "variants"]

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator", "light")
"""``light`` are nine image classifiers whose weights are all one value, made by ConstantOfShape."""

_MOST_WEIGHTS = 2_000_000
_DATA = Path(loader.DATA_DIR)
Feeds = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One model of the collection.

    Attributes:
        name: ``kind/name``, and behind it which of its inputs have become constants.
        proto: the model.
        sets: feeds by input name, and the outputs expected for them in order (none when there are none).
        rtol, atol: how close outputs have to come.
    """

    name: str
    proto: onnx.ModelProto
    sets: list[tuple[Feeds, list[Any]]]
    rtol: float
    atol: float


def load_cases(kinds: Iterable[str] = KINDS) -> list[Case]:
    """All models of these kinds, in the order of their names, the classifiers last."""
    cases = [case for kind in kinds for case in _of_kind(kind)]
    return sorted(cases, key=lambda case: (case.name.startswith("light/"), case.name))


def variants(case: Case) -> list[Case]:
    """The case as it is; with all inputs but the first as constants; with all of them.

    Of a classifier: as it is, and with weights that are numbers of their own where they are few enough.
    """
    made = [case, _weighted(case)] if case.name.startswith("light/") else [case, bound(case, 1), bound(case, 0)]
    return [variant for variant in made if variant is not None]


def bound(case: Case, first: int) -> Case | None:
    """The case with its tensor inputs from the ``first``-th on as initializers, and one set of feeds.

    The models of single operators take their weights as inputs; this is how they stand in real models. None
    when no such input is there.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(case.proto)
    feeds, expected = case.sets[0]
    given = {tensor.name for tensor in proto.graph.initializer}
    names = [value.name for value in proto.graph.input if value.name not in given]
    fixed = [name for name in names[first:] if isinstance(feeds.get(name), np.ndarray)]
    if not fixed:
        return None
    kept = [value for value in proto.graph.input if value.name not in fixed]
    proto.graph.initializer.extend(numpy_helper.from_array(feeds[name], name) for name in fixed)
    if proto.ir_version >= 4:  # before it, initializers had to be inputs
        del proto.graph.input[:]
        proto.graph.input.extend(kept)
    left = {name: value for name, value in feeds.items() if name not in fixed}
    suffix = "constant weights" if first else "constant inputs"
    return Case(f"{case.name}+{suffix}", proto, [(left, expected)], case.rtol, case.atol)


def _weighted(case: Case) -> Case | None:
    """The case with random weights instead of those that ConstantOfShape makes, and what they make of the outputs."""
    proto = onnx.ModelProto()
    proto.CopyFrom(case.proto)
    shapes = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    makers = [node for node in proto.graph.node if node.op_type == "ConstantOfShape"]
    if sum(int(np.prod(shapes[node.input[0]])) for node in makers) > _MOST_WEIGHTS:
        return None
    rng = np.random.default_rng(0)
    for node in makers:
        shape = shapes[node.input[0]]
        # Vectors are scales, shifts and variances, which must be positive.
        values = rng.uniform(0.5, 1.5, shape) if len(shape) == 1 else rng.standard_normal(shape)
        scale = 1.0 if len(shape) == 1 else np.sqrt(2.0 / np.prod(shape[1:]))
        proto.graph.initializer.append(numpy_helper.from_array((scale * values).astype(np.float32), node.output[0]))
        proto.graph.node.remove(node)
    proto.ir_version = max(proto.ir_version, 4)
    feeds, _ = case.sets[0]
    return Case(f"{case.name}+random weights", proto, [(feeds, [])], case.rtol, case.atol)


def _of_kind(kind: str) -> Iterator[Case]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the collection computes infinities on purpose
        found = loader.load_model_tests(kind="real" if kind == "light" else kind)
    for test in found:
        if test.model is not None:
            sets = [_named(test.model, *pair) for pair in test.data_sets]
            yield Case(f"{kind}/{test.name}", test.model, sets, test.rtol, test.atol)
        elif test.model_dir is not None:
            folder = Path(test.model_dir)
            proto = onnx.load(folder / "model.onnx")
            sets = [_read_set(proto, place) for place in sorted(folder.glob("test_data_set*"))]
            yield Case(f"{kind}/{test.name}", proto, sets, test.rtol, test.atol)
        elif test.url is not None and test.url.startswith("onnx/backend/test/data/light/"):
            yield _light(kind, test)


def _named(proto: onnx.ModelProto, inputs: Iterable[Any], outputs: Iterable[Any]) -> tuple[Feeds, list[Any]]:
    names = [value.name for value in proto.graph.input]
    return dict(zip(names, map(_plain, inputs), strict=False)), [_plain(value) for value in outputs]


def _plain(value: Any) -> Any:
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, np.generic):
        return np.asarray(value)
    return value


def _read_set(proto: onnx.ModelProto, folder: Path) -> tuple[Feeds, list[Any]]:
    columns = []
    for kind, values in (("input", proto.graph.input), ("output", proto.graph.output)):
        files = [folder / f"{kind}_{index}.pb" for index in range(len(list(folder.glob(f"{kind}_*.pb"))))]
        columns.append([_read(path, value.type) for path, value in zip(files, values, strict=False)])
    return _named(proto, *columns)


def _read(path: Path, kind: onnx.TypeProto) -> Any:
    data = path.read_bytes()
    if kind.HasField("sequence_type"):
        return numpy_helper.to_list(onnx.SequenceProto.FromString(data))
    if kind.HasField("optional_type"):
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(data))
    return numpy_helper.to_array(onnx.TensorProto.FromString(data))


def _light(kind: str, test: Any) -> Case:
    """Feeds as the collection's own runner makes them: a ramp from 0 to 1."""
    path = _DATA / "light" / Path(test.url).name
    proto = onnx.load(path)
    given = {tensor.name for tensor in proto.graph.initializer}
    feeds: Feeds = {}
    for value in proto.graph.input:
        if value.name not in given:
            shape = [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
            size = int(np.prod(shape))
            feeds[value.name] = (np.arange(size).reshape(shape) / size).astype(np.float32)
    outputs = [path.with_name(f"{path.stem}_output_{index}.pb") for index in range(len(proto.graph.output))]
    expected = [_read(file, value.type) for file, value in zip(outputs, proto.graph.output, strict=True)]
    return Case(f"{kind}/{test.name}", proto, [(feeds, expected)], test.rtol, test.atol)
