"""onnxsim: static and dynamic int8, structured pruning with its recoveries, and 4-bit weights."""

from __future__ import annotations

from functools import partial
from typing import Any

from harness.peers.common import PER_CHANNEL_OPSET, Peer, Task, without_unused

__all__ = ["CODEBOOKS", "EIGHT_BITS", "FOUR_BITS", "PRUNED"]

PRUNED_SHARE = 0.25  # share of the channels: the size of what onnxcomp prunes by default
PICKED_ON = 32  # samples to score calibration methods on
BLOCKS_OPSET = 21  # DequantizeLinear has blocks and 4-bit types since


def static(task: Task, full_graph: bool, pruned: bool = False) -> None:
    """Simplified, pruned by Wanda with its two recoveries perhaps, and quantized to QDQ int8."""
    import onnxsim

    feeds = list(task.feeds())
    original = simplified(task)
    proto = original
    if pruned:
        proto = onnxsim.apply_structured_wanda_pruning(original, calibration_data=feeds, sparsity=PRUNED_SHARE)
        proto = onnxsim.apply_pruning_finetune(original, proto, calibration_data=feeds)
        proto, _ = onnxsim.apply_block_finetune_all_blocks(
            original, proto, calibration_data=feeds[:64], num_iterations=100, learning_rate=1e-3
        )
    _save(onnxsim.quantize_static(proto, calibration_data=feeds, full_graph=full_graph), task)


def picked(task: Task, full_graph: bool) -> None:
    """The calibration method that serves best of all that it has."""
    import onnxsim

    feeds = list(task.feeds())
    pick = onnxsim.pick_calibration(
        simplified(task), calibration_data=feeds, eval_data=feeds[:PICKED_ON], full_graph=full_graph
    )
    _save(pick.model, task)


def smooth(task: Task) -> None:
    """SmoothQuant before the plain static quantization of the full graph."""
    import onnxsim

    feeds = list(task.feeds())
    proto = onnxsim.apply_smoothquant(simplified(task), calibration_data=feeds)
    _save(onnxsim.quantize_static(proto, calibration_data=feeds, full_graph=True), task)


def dynamic(task: Task) -> None:
    """Simplified, MatMul and Gemm in int8 with ranges found in every run."""
    import onnxsim

    _save(onnxsim.quantize_dynamic_matmul_integer_to_float(simplified(task)), task)


def four_bits(task: Task, algorithm: str) -> None:
    """Weights in blocks of 32 that a DequantizeLinear restores in every run."""
    import onnxsim

    feeds = list(task.feeds())
    original = simplified(task, BLOCKS_OPSET)
    if algorithm == "hqq":
        proto = onnxsim.quantize_weight_only_int4_hqq(original)
    elif algorithm == "nbits":
        proto = onnxsim.quantize_weight_only_matmul_nbits(original)
    elif algorithm == "auto":
        proto = onnxsim.auto_quantize_int4(original, calibration_data=feeds).quantized_model
    else:
        proto = onnxsim.quantize_weight_only_int4(original)
        if algorithm == "gptq":
            proto = onnxsim.apply_gptq(original, proto, calibration_data=feeds)
        elif algorithm == "adaround":
            proto = onnxsim.apply_adaround(original, proto, calibration_data=feeds)
    _save(onnxsim.workaround_ort_matmul_nbits_axis0_bug(proto), task)


def clustered(task: Task) -> None:
    """Weights of MatMul and Gemm as codes of 16 values that k-means finds, Deep Compression's trained quantization."""
    import onnxsim

    _save(onnxsim.quantize_weight_only_kmeans(simplified(task)), task)


def simplified(task: Task, least: int = PER_CHANNEL_OPSET) -> Any:
    """The model as onnxsim simplifies it, in an operator set of at least so much."""
    import onnx
    import onnxsim

    proto = onnx.load(task.model)
    old = max(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")) < least
    return onnxsim.simplify(proto, target_opset_version=least if old else None)[0]


def _save(proto: Any, task: Task) -> None:
    import onnx

    onnx.save(without_unused(proto), task.output)


def _peer(setting: str, make: Any, **options: Any) -> Peer:
    return Peer("onnxsim", setting, partial(make, **options))


def _transformers(setting: str, make: Any, **options: Any) -> Peer:
    return Peer("onnxsim", setting, partial(make, **options), only=("minilm",))


EIGHT_BITS = {
    "onnxsim-static": _peer("static, Conv/MatMul/Gemm only", static, full_graph=False),
    "onnxsim-full": _peer("static, full graph", static, full_graph=True),
    "onnxsim-picked": _peer("static, Conv/MatMul/Gemm only, best calibration", picked, full_graph=False),
    "onnxsim-picked-full": _peer("static, full graph, best calibration", picked, full_graph=True),
    "onnxsim-smooth": _transformers("static, full graph, SmoothQuant", smooth),
    "onnxsim-dynamic": _transformers("dynamic", dynamic),
}
PRUNED = {
    "onnxsim-pruned": _peer(
        "25 % of channels pruned (Wanda), refit, fine-tuned; static, full graph", static, full_graph=True, pruned=True
    ),
}
FOUR_BITS = {
    "onnxsim-int4": _peer("int4, blocks of 32", four_bits, algorithm="rtn"),
    "onnxsim-gptq4": _peer("int4, blocks of 32, GPTQ", four_bits, algorithm="gptq"),
    "onnxsim-adaround4": _peer("int4, blocks of 32, AdaRound", four_bits, algorithm="adaround"),
    "onnxsim-auto4": _peer("int4, blocks of 32, auto_quantize_int4", four_bits, algorithm="auto"),
    "onnxsim-hqq4": _peer("int4, blocks of 32, HQQ", four_bits, algorithm="hqq"),
    "onnxsim-nbits4": _peer("MatMulNBits, blocks of 32", four_bits, algorithm="nbits"),
}
CODEBOOKS = {"onnxsim-kmeans": _peer("k-means, 16 values, MatMul and Gemm only", clustered)}
