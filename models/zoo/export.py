"""Export of torch modules to single-file ONNX models with legible names."""

import io
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import onnx
import torch

OPSET = 17


def export(
    module: torch.nn.Module,
    arguments: tuple[torch.Tensor, ...],
    inputs: Sequence[str],
    output: str,
    dynamic: dict[str, dict[int, str]],
    fold_batchnorm: bool = True,
) -> onnx.ModelProto:
    """Return the module in inference mode as an ONNX model; ``dynamic`` names the axes of free size.

    The TorchScript exporter is used on purpose: it is the origin of most models in circulation, it keeps
    GlobalAveragePool and Flatten whole, and it can leave BatchNormalization nodes in place.
    """
    mode = torch.onnx.TrainingMode.EVAL if fold_batchnorm else torch.onnx.TrainingMode.PRESERVE
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter announces its own retirement on every call
        torch.onnx.export(
            module.eval(),
            arguments,
            stream,  # type: ignore[arg-type]  # any stream will do, says the documentation
            input_names=list(inputs),
            output_names=[output],
            dynamic_axes=dynamic,
            opset_version=OPSET,
            training=mode,
            do_constant_folding=fold_batchnorm,
            dynamo=False,
        )
    model = onnx.load_from_string(stream.getvalue())
    _restore_equal_weights(model)
    _name_folded_weights(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def export_pair(
    module: torch.nn.Module, argument: torch.Tensor, names: tuple[str, str], folded: Path, kept: Path
) -> None:
    """Write an image classifier twice: with BatchNormalization folded into Conv, and with its nodes kept.

    ``names`` are the names of the input and of the output, whose first axes become ``batch``.
    """
    dynamic = {name: {0: "batch"} for name in names}
    for path, fold in ((folded, True), (kept, False)):
        save(export(module, (argument,), names[:1], names[1], dynamic, fold_batchnorm=fold), path)


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a model so that no reader ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    onnx.save(model, partial)
    partial.replace(path)


def set_metadata(path: Path, **entries: str) -> None:
    """Replace the metadata_props of a model file."""
    model = onnx.load(path)
    onnx.helper.set_model_props(model, entries)
    save(model, path)


def _restore_equal_weights(model: onnx.ModelProto) -> None:
    """Give every parameter its own initializer; the exporter stores equal ones once, behind Identity."""
    initializers = {initializer.name: initializer for initializer in model.graph.initializer}
    identities = [node for node in model.graph.node if node.op_type == "Identity"]
    for node in identities:
        if node.input[0] not in initializers:
            continue
        copy = model.graph.initializer.add()
        copy.CopyFrom(initializers[node.input[0]])
        copy.name = node.output[0]
        model.graph.node.remove(node)


def _name_folded_weights(model: onnx.ModelProto) -> None:
    """Rename weights that the exporter numbered, such as ``onnx::Conv_108``, after their node."""
    numbered = {item.name for item in model.graph.initializer if item.name.startswith("onnx::")}
    renamed: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        scopes = node.name.strip("/").split("/")[:-1]
        # A container comes before its member, layer1/layer1.0/conv1, and only the member is in the path.
        pairs = zip(scopes, [*scopes[1:], ""], strict=False)
        module = ".".join(scope for scope, following in pairs if not following.startswith(scope + "."))
        for name, role in zip(node.input[1:], ("weight", "bias"), strict=False):
            if name in numbered:
                renamed.setdefault(name, f"{module}.{role}")
    for initializer in model.graph.initializer:
        initializer.name = renamed.get(initializer.name, initializer.name)
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
