"""What is left of a model's layers after units of dependency groups have gone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcomp.graph.affine import input_columns, output_rows
from onnxcomp.graph.groups import Group
from onnxcomp.graph.layers import WeightedLayer

__all__ = ["Kept", "compose", "remains", "whole"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Kept:
    """What is left of an original layer.

    Attributes:
        layer: in the compressed model.
        columns: of the original's ``matrix()``, (inputs,).
        rows: of the original's ``matrix()``, (groups, outputs of a group).
    """

    layer: WeightedLayer
    columns: Array
    rows: Array


def remains(groups: Sequence[Group], gone: Sequence[Array]) -> dict[int, tuple[Array, Array]]:
    """Columns and rows that stay of every layer's matrix when units go, by ``id`` of the node.

    To be asked before they are removed.

    Args:
        groups: of one model.
        gone: of each group, the units that go.

    Returns:
        of the layers that lose inputs or outputs alone.
    """
    lost_inputs: dict[int, Array] = {}
    lost_outputs: dict[int, Array] = {}
    layers: dict[int, WeightedLayer] = {}
    for group, units in zip(groups, gone, strict=True):
        for slot in group.slots if len(units) else ():
            layer, positions = slot.layer, slot.positions[units]
            if layer is None or slot.index != layer.weight_index or layer.kind == "other":
                continue
            if slot.role == "in":
                _add(lost_inputs, id(layer.node), input_columns(layer, positions).reshape(-1))
            elif slot.role == "out":
                _add(lost_outputs, id(layer.node), positions.reshape(-1))
            else:
                continue
            layers[id(layer.node)] = layer
    none = np.zeros(0, dtype=np.int64)
    left: dict[int, tuple[Array, Array]] = {}
    for key, layer in layers.items():
        mask = np.ones(layer.shape[layer.out_axis], dtype=bool)
        mask[lost_outputs.get(key, none)] = False
        columns = np.setdiff1d(np.arange(layer.matrix().shape[2]), lost_inputs.get(key, none))
        left[key] = columns, output_rows(layer, mask)
    return left


def _add(lost: dict[int, Array], key: int, places: Array) -> None:
    lost[key] = np.union1d(lost.get(key, places), places)


def compose(
    before: Mapping[str, Kept], layers: Sequence[WeightedLayer], left: Mapping[int, tuple[Array, Array]]
) -> dict[str, Kept]:
    """What is left of the layers of the very first model, after one removal more.

    Args:
        before: what was left of them.
        layers: of the model that loses.
        left: what ``remains`` gave for it.

    Returns:
        by name, of the layers that have lost anything.
    """
    result: dict[str, Kept] = {}
    for layer in layers:
        earlier, now = before.get(layer.name), left.get(id(layer.node))
        if now is None and earlier is not None:
            result[layer.name] = Kept(layer, earlier.columns, earlier.rows)
        elif now is not None:
            columns, rows = now
            if earlier is not None:
                columns, rows = earlier.columns[columns], np.take_along_axis(earlier.rows, rows, axis=1)
            result[layer.name] = Kept(layer, columns, rows)
    return result


def whole(layer: WeightedLayer) -> Kept:
    """Of a layer that has lost nothing."""
    groups, outputs, inputs = layer.matrix().shape
    return Kept(layer, np.arange(inputs), np.tile(np.arange(outputs), (groups, 1)))
