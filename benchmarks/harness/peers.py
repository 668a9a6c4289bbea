"""Other tools, each with a setting; as a command, makes one compressed model.

    python -m harness.peers NAME MODEL CALIBRATION OUTPUT

Every tool gets the model after its documented pre-processing and the same calibration samples, one at a time.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

Feeds = dict[str, Any]

CALIBRATION_SAMPLES = 256  # at most
HISTOGRAM_SAMPLES = 128  # ONNX Runtime's histograms hold every activation of every sample until the end
PER_CHANNEL_OPSET = 13  # DequantizeLinear has an axis since
PRUNED = 0.25  # share of the channels: the size of what onnxcomp prunes by default


@dataclass(frozen=True)
class Peer:
    """A tool with a setting.

    Attributes:
        tool: name of its package.
        setting: what the table says.
        make: called with the model, the calibration samples and the file to write.
    """

    tool: str
    setting: str
    make: Callable[[Path, Path, Path], None]


def samples(source: Path, model: Path, most: int = CALIBRATION_SAMPLES) -> Iterator[Feeds]:
    """The first calibration samples as feeds of one sample, labels left out."""
    import numpy as np
    import onnx

    graph = onnx.load(model, load_external_data=False).graph
    names = {value.name for value in graph.input} - {value.name for value in graph.initializer}
    if source.is_dir():
        for path in sorted(source.glob("*.npz"))[:most]:
            with np.load(path) as stored:
                yield {name: stored[name] for name in names}
        return
    with np.load(source) as stored:
        columns = {name: stored[name] for name in names}
    for index in range(min(most, *(len(column) for column in columns.values()))):
        yield {name: column[index : index + 1] for name, column in columns.items()}


# -- onnxruntime.quantization --------------------------------------------------------------------------------


def preprocessed(model: Path, folder: Path) -> Path:
    """What ONNX Runtime's documentation asks for: an opset with scales per channel, then shapes and fusions."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    upgraded, ready = folder / "upgraded.onnx", folder / "ready.onnx"
    proto = onnx.load(model)
    if max(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")) < PER_CHANNEL_OPSET:
        proto = onnx.version_converter.convert_version(proto, PER_CHANNEL_OPSET)
    onnx.save(proto, upgraded)
    try:
        quant_pre_process(str(upgraded), str(ready))
    except Exception as error:  # symbolic shape inference gives up on some graphs; the documentation says to skip it
        print(f"without symbolic shape inference: {error}", file=sys.stderr)
        quant_pre_process(str(upgraded), str(ready), skip_symbolic_shape=True)
    return ready


def ort_static(model: Path, data: Path, output: Path, method: str, reduce_range: bool, weighted_only: bool) -> None:
    """QDQ, int8 weights per channel, uint8 activations."""
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.feeds = samples(data, model, CALIBRATION_SAMPLES if method == "MinMax" else HISTOGRAM_SAMPLES)

        def get_next(self) -> Feeds | None:
            return next(self.feeds, None)

    with tempfile.TemporaryDirectory() as scratch:
        quantization.quantize_static(
            str(preprocessed(model, Path(scratch))),
            str(output),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "MatMul", "Gemm"] if weighted_only else None,
            per_channel=True,
            reduce_range=reduce_range,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod[method],
        )


def ort_dynamic(model: Path, data: Path, output: Path) -> None:  # noqa: ARG001 - needs no data
    """Int8 weights per channel, ranges of the activations found in every run."""
    from onnxruntime import quantization

    with tempfile.TemporaryDirectory() as scratch:
        ready = preprocessed(model, Path(scratch))
        # ConvInteger takes no signed weights; convolutions stay in float, as the documentation recommends.
        kinds = ["MatMul", "Gemm", "Gather", "Attention", "LSTM"]
        quantization.quantize_dynamic(str(ready), str(output), op_types_to_quantize=kinds, per_channel=True)


# -- onnxsim -------------------------------------------------------------------------------------------------


def onnxsim_quantized(model: Path, data: Path, output: Path, full_graph: bool, pruned: bool) -> None:
    """Simplified, pruned by Wanda with its two recoveries perhaps, and quantized to QDQ int8."""
    import onnx
    import onnxsim

    feeds = list(samples(data, model))
    original = _simplified(model)
    proto = original
    if pruned:
        proto = onnxsim.apply_structured_wanda_pruning(original, calibration_data=feeds, sparsity=PRUNED)
        proto = onnxsim.apply_pruning_finetune(original, proto, calibration_data=feeds)
        proto, _ = onnxsim.apply_block_finetune_all_blocks(
            original, proto, calibration_data=feeds[:64], num_iterations=100, learning_rate=1e-3
        )
    proto = onnxsim.quantize_static(proto, calibration_data=feeds, full_graph=full_graph)
    onnx.save(_without_unused(proto), output)


def onnxsim_dynamic(model: Path, data: Path, output: Path) -> None:  # noqa: ARG001 - needs no data
    """Simplified, MatMul and Gemm in int8 with ranges found in every run."""
    import onnx
    import onnxsim

    proto = onnxsim.quantize_dynamic_matmul_integer_to_float(_simplified(model))
    onnx.save(_without_unused(proto), output)


def _simplified(model: Path) -> Any:
    import onnx
    import onnxsim

    proto = onnx.load(model)
    old = max(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")) < PER_CHANNEL_OPSET
    simplified, _ = onnxsim.simplify(proto, target_opset_version=PER_CHANNEL_OPSET if old else None)
    return simplified


def _without_unused(proto: Any) -> Any:
    """The model less the float weights that nothing reads any more; onnxsim leaves them in the file."""
    used = {name for node in proto.graph.node for name in node.input} | {value.name for value in proto.graph.output}
    if any(attribute.g.node or attribute.graphs for node in proto.graph.node for attribute in node.attribute):
        return proto  # bodies may read them
    kept = [tensor for tensor in proto.graph.initializer if tensor.name in used]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    return proto


# -- NNCF ----------------------------------------------------------------------------------------------------


def nncf_quantized(model: Path, data: Path, output: Path, preset: str) -> None:
    """Post-training quantization of the ONNX backend, with fast bias correction."""
    import nncf
    import onnx

    with tempfile.TemporaryDirectory() as scratch:
        proto = onnx.load(preprocessed(model, Path(scratch)))
    feeds = list(samples(data, model))
    transformer = sum(node.op_type in ("Softmax", "LayerNormalization") for node in proto.graph.node) > 1
    quantized = nncf.quantize(
        proto,
        nncf.Dataset(feeds),
        preset=nncf.QuantizationPreset(preset),
        target_device=nncf.TargetDevice.CPU,
        subset_size=len(feeds),
        model_type=nncf.ModelType.TRANSFORMER if transformer else None,
    )
    onnx.save(quantized, output)


def _ort(setting: str, method: str, reduce_range: bool = False, weighted_only: bool = False) -> Peer:
    make = partial(ort_static, method=method, reduce_range=reduce_range, weighted_only=weighted_only)
    return Peer("onnxruntime", setting, make)


PEERS = {
    "ort-minmax": _ort("static, MinMax", "MinMax"),
    "ort-minmax-7bit": _ort("static, MinMax, reduce_range", "MinMax", reduce_range=True),
    "ort-percentile": _ort("static, Percentile, Conv/MatMul/Gemm only", "Percentile", weighted_only=True),
    "ort-entropy": _ort("static, Entropy", "Entropy"),
    "ort-dynamic": Peer("onnxruntime", "dynamic", ort_dynamic),
    "onnxsim-static": Peer(
        "onnxsim", "static, Conv/MatMul/Gemm only", partial(onnxsim_quantized, full_graph=False, pruned=False)
    ),
    "onnxsim-full": Peer("onnxsim", "static, full graph", partial(onnxsim_quantized, full_graph=True, pruned=False)),
    "onnxsim-pruned": Peer(
        "onnxsim",
        "25 % of channels pruned (Wanda), refit, fine-tuned; static, full graph",
        partial(onnxsim_quantized, full_graph=True, pruned=True),
    ),
    "onnxsim-dynamic": Peer("onnxsim", "dynamic", onnxsim_dynamic),
    "nncf-performance": Peer("nncf", "static, performance", partial(nncf_quantized, preset="performance")),
    "nncf-mixed": Peer("nncf", "static, mixed", partial(nncf_quantized, preset="mixed")),
}


def main() -> None:
    """Parse the command line and make one model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=PEERS)
    parser.add_argument("model", type=Path)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    output = options.output.resolve()
    scratch = output.parent.with_suffix(".scratch")  # outside of the output's folder, whose size is the model's
    scratch.mkdir(exist_ok=True)
    tempfile.tempdir = str(scratch)
    with contextlib.chdir(scratch):  # some tools leave files in the current folder
        PEERS[options.name].make(options.model.resolve(), options.calibration.resolve(), output)


if __name__ == "__main__":
    main()
