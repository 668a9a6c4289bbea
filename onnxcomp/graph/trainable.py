"""A model in the form that is trained, and how what was learnt gets back into it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph.coded import CodedBias, CodedWeight, coded_biases, coded_weights
from onnxcomp.graph.constants import assign
from onnxcomp.graph.edit import detach, replace_uses
from onnxcomp.graph.layers import WeightedLayer, layer_name, weighted_layers
from onnxcomp.graph.opset import upgrade_opset
from onnxcomp.graph.parameters import Parameter, made_weights, parameters
from onnxcomp.graph.stored import has_codebook
from onnxcomp.linalg.code_grid import CodeGrid, deliberate_zeros
from onnxcomp.linalg.variables import Variables, stretch_of
from onnxcomp.model import Model

__all__ = ["Trainable", "made_layers", "name_of_weight"]

Array = np.ndarray[Any, Any]

OPSET = 13  # what the rules of differentiation write


@dataclass(frozen=True)
class Trainable:
    """What of a model can be trained.

    Attributes:
        student: a copy in which weights and biases that were made of codes are constants in float32.
        parameters: its constants that training may change.
        grids: of those that are made of codes, by name.
    """

    student: Model
    parameters: list[Parameter]
    grids: dict[str, CodeGrid]

    @classmethod
    def of(cls, model: Model, freeze: Collection[str] = ()) -> Trainable:
        """Copy a model.

        Args:
            freeze: names of layers to leave as they are.

        Raises:
            PassError: an operator changed until the operator set that gradients need.
        """
        student = model.copy()
        upgrade_opset(student, OPSET)
        weights, biases = coded_weights(student), coded_biases(student)
        masks: dict[str, Array | None] = {str(weight.tensor.name): deliberate_zeros(weight.codes) for weight in weights}
        masks |= {str(bias.tensor.name): None if bias.movable.all() else bias.movable for bias in biases}
        restored: list[CodedWeight | CodedBias] = [*weights, *biases]
        for coded in restored:
            _decode(coded.tensor, coded.value)
        student.graph.cleanup()
        left = {
            id(tensor)
            for layer in weighted_layers(student)
            if layer.name in freeze
            for tensor in (layer.weight, layer.bias)
        }
        for node, sources in made_weights(student):
            if layer_name(node) in freeze:
                left |= {id(tensor) for tensor in (*sources, *node.inputs[2:])}
        found = [
            replace(parameter, kept=masks[parameter.name]) if parameter.name in masks else parameter
            for parameter in parameters(student)
            if id(parameter.tensor) not in left
        ]
        names = {parameter.name for parameter in found}
        grids = {name: weight.grid for weight in weights if (name := str(weight.tensor.name)) in names}
        return cls(student, found, grids)

    @property
    def kept(self) -> dict[str, Array]:
        """Where parameters may change, of those whose zeros are to stay."""
        return {parameter.name: parameter.kept for parameter in self.parameters if parameter.kept is not None}

    def variables(self, names: Collection[str]) -> Variables:
        """Of which these parameters are made."""
        values = {parameter.name: parameter.value for parameter in self.parameters if parameter.name in names}
        return Variables(values, {name: grid for name, grid in self.grids.items() if name in values})

    def learn(self, learnt: Mapping[str, Array]) -> None:
        """Put variables that were learnt into the student."""
        values = self.variables(learnt.keys()).parameters(learnt)
        for parameter in self.parameters:
            if parameter.name in values:
                assign(parameter.tensor, values[parameter.name])

    def write(self, model: Model, learnt: Mapping[str, Array]) -> None:
        """Put variables that were learnt into the model that this is a copy of.

        Args:
            model: edited.
            learnt: by name, see ``onnxcomp.linalg.variables``; what is missing stays.
        """
        weights = {str(weight.tensor.name): weight for weight in coded_weights(model)}
        biases = {str(bias.tensor.name): bias for bias in coded_biases(model)}
        plain = {parameter.name: parameter for parameter in parameters(model)}
        stretches = {name: learnt[stretch_of(name)] for name in self.grids if name in learnt}
        for name, bias in biases.items():
            stretch = stretches.get(str(bias.weight.name), np.ones(1, np.float32))
            if name in learnt or not (stretch == 1).all():
                bias.write(learnt.get(name, bias.value), stretch)
        for name, stretch in stretches.items():
            grid = self.grids[name]
            weights[name].write(grid.codes(learnt[name], stretch), grid.stretched(stretch))
        for name in learnt.keys() & plain.keys() - biases.keys() - weights.keys():
            if not np.array_equal(learnt[name], plain[name].value):
                assign(plain[name].tensor, learnt[name])


def made_layers(model: Model) -> dict[str, list[str]]:
    """The layers whose weight is made of a codebook or of other constants, but for codes times scales.

    Returns:
        By name of the layer, the names of those constants.
    """
    known = {
        id(layer.node) for layer in weighted_layers(model) if not has_codebook(layer.node.inputs[layer.weight_index])
    }
    return {
        layer_name(node): [str(tensor.name) for tensor in sources]
        for node, sources in made_weights(model)
        if id(node) not in known
    }


def name_of_weight(layer: WeightedLayer) -> str:
    """Of the parameter that a layer's weight is, once its codes are decoded."""
    return str(layer.node.inputs[layer.weight_index].name)


def _decode(tensor: gs.Variable, value: Array) -> None:
    """Put the value in the place of what restores it."""
    detach(tensor.inputs[0])
    replace_uses(tensor, gs.Constant(str(tensor.name), value))
