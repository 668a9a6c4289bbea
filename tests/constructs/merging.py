"""Models with several constructs in them."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

__all__ = ["merged"]


def merged(protos: Sequence[onnx.ModelProto]) -> onnx.ModelProto:
    """One model of several: the names of part ``i`` get the prefix ``i/``, and its functions and calls too."""
    result = onnx.ModelProto()
    for index, part in enumerate(protos):
        copied = onnx.ModelProto()
        copied.CopyFrom(part)
        prefix = f"{index}/"
        functions = {function.name for function in copied.functions}
        for function in copied.functions:
            function.name = prefix + function.name
            _rename_calls(function, functions, prefix)
        _rename_calls(copied.graph, functions, prefix)
        _rename_values(copied.graph, prefix)
        if result.HasField("ir_version"):
            known = {entry.domain for entry in result.opset_import}
            kept = [entry for entry in copied.opset_import if entry.domain not in known]
            del copied.opset_import[:]
            copied.opset_import.extend(kept)
            copied.ClearField("ir_version")
        result.MergeFrom(copied)  # lists are joined
    return result


def _rename_calls(graph: onnx.GraphProto | onnx.FunctionProto, functions: set[str], prefix: str) -> None:
    for node in graph.node:
        if node.op_type in functions:
            node.op_type = prefix + node.op_type
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename_calls(attribute.g, functions, prefix)


def _rename_values(graph: onnx.GraphProto, prefix: str) -> None:
    for message in (
        *graph.initializer,
        *(sparse.values for sparse in graph.sparse_initializer),
        *graph.input,
        *graph.output,
        *graph.value_info,
    ):
        message.name = prefix + message.name
    for mark in graph.quantization_annotation:
        mark.tensor_name = prefix + mark.tensor_name
        for entry in mark.quant_parameter_tensor_names:
            entry.value = prefix + entry.value
    for node in graph.node:
        node.name = prefix + node.name
        for names in (node.input, node.output):
            renamed = [prefix + name if name else "" for name in names]
            del names[:]
            names.extend(renamed)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename_values(attribute.g, prefix)
