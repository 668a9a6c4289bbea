"""NNCF on its ONNX backend: post-training quantization, and compression of weights."""

from __future__ import annotations

from functools import partial

from harness.peers.common import Peer, Task, preprocessed, raised

__all__ = ["EIGHT_BITS", "FOUR_BITS"]

BLOCKS_OPSET = 21


def static(task: Task, preset: str, fast: bool = True) -> None:
    """Post-training quantization with a bias correction; SmoothQuant where the model is a transformer."""
    import nncf
    import onnx

    proto = onnx.load(preprocessed(task.model))  # else it leaves weights of Constant nodes in float
    feeds = list(task.feeds())
    transformer = sum(node.op_type in ("Softmax", "LayerNormalization") for node in proto.graph.node) > 1
    quantized = nncf.quantize(
        proto,
        nncf.Dataset(feeds),
        preset=nncf.QuantizationPreset(preset),
        target_device=nncf.TargetDevice.CPU,
        subset_size=len(feeds),
        fast_bias_correction=fast,
        model_type=nncf.ModelType.TRANSFORMER if transformer else None,
    )
    onnx.save(quantized, task.output)


def four_bits(task: Task, symmetric: bool, calibrated: bool) -> None:
    """Weights of MatMul and Gather in int4 groups, all layers; AWQ and scale estimation where there are data."""
    import nncf
    import onnx

    mode = nncf.CompressWeightsMode.INT4_SYM if symmetric else nncf.CompressWeightsMode.INT4_ASYM
    options = {"dataset": nncf.Dataset(list(task.feeds())), "awq": True, "scale_estimation": True} if calibrated else {}
    proto = raised(task.model, BLOCKS_OPSET)
    onnx.save(
        nncf.compress_weights(proto, mode=mode, group_size=32, ratio=1.0, all_layers=True, **options), task.output
    )


def _static(setting: str, **options: object) -> Peer:
    return Peer("nncf", f"static, {setting}", partial(static, **options))  # type: ignore[arg-type]


EIGHT_BITS = {
    "nncf-performance": _static("performance", preset="performance"),
    "nncf-mixed": _static("mixed", preset="mixed"),
    "nncf-mixed-accurate": _static("mixed, accurate bias correction", preset="mixed", fast=False),
}
FOUR_BITS = {
    "nncf-int4": Peer("nncf", "INT4_ASYM, groups of 32", partial(four_bits, symmetric=False, calibrated=False)),
    "nncf-int4-data": Peer(
        "nncf", "INT4_ASYM, groups of 32, AWQ, scale estimation", partial(four_bits, symmetric=False, calibrated=True)
    ),
}
