"""Measure on this machine what docs/runtime.md says of ONNX Runtime's CPU kernels.

    python docs/measure_kernels.py

Each figure is the time of a float32 layer over the time of another form of it, the fastest of many runs in turn
on one thread: above 1, the other form is faster.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.report.environment import describe_environment
from onnxcomp.runtime import session
from onnxcomp.runtime.target import Target

Array = np.ndarray[Any, Any]

SECONDS = 2.0
SATURATION_INPUTS = 64


def model(nodes: list[onnx.NodeProto], constants: dict[str, Array], shape: tuple[int, ...]) -> bytes:
    """A model of one input ``x`` and one output ``y``."""
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "layer", [given], [result], initializers)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = made.SerializeToString()
    return data


def convolution(weight: Array, size: int) -> bytes:
    """Conv and Relu, with padding that keeps the size."""
    pads = [weight.shape[2] // 2] * 4
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], pads=pads), helper.make_node("Relu", ["c"], ["y"])]
    return model(nodes, {"w": weight}, (1, weight.shape[1], size, size))


def quantized_convolution(weight: Array, size: int, signed_input: bool, signed_weight: bool) -> bytes:
    """The same between pairs of QuantizeLinear and DequantizeLinear, with one weight scale for each output."""
    scales = (np.abs(weight).max(axis=(1, 2, 3)) / 63).astype(np.float32)  # 7 bits: no CPU saturates
    codes = np.rint(weight / scales[:, None, None, None]).astype(np.int8)
    zero = np.zeros(len(scales), np.int8)
    if not signed_weight:
        codes, zero = (codes.astype(np.int16) + 128).astype(np.uint8), np.full(len(scales), 128, np.uint8)
    kind = np.int8 if signed_input else np.uint8
    constants = {
        "w": codes,
        "ws": scales,
        "wz": zero,
        "xs": np.float32(6 / 255).reshape(()),
        "xz": np.array(0 if signed_input else 128, kind),
        "ys": np.float32(20 / 255).reshape(()),
        "yz": np.array(-128 if signed_input else 0, kind),
    }
    pads = [weight.shape[2] // 2] * 4
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xr"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wr"], axis=0),
        helper.make_node("Conv", ["xr", "wr"], ["c"], pads=pads),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("QuantizeLinear", ["r", "ys", "yz"], ["rq"]),
        helper.make_node("DequantizeLinear", ["rq", "ys", "yz"], ["y"]),
    ]
    return model(nodes, constants, (1, weight.shape[1], size, size))


def ratio(a: bytes, b: bytes, channels_a: int, channels_b: int, size: int) -> tuple[float, float, float]:
    """Fastest time of ``a`` over fastest time of ``b``, and both in milliseconds.

    The fastest of many runs in turn: on a machine that does other things too, it is what repeats best.
    """
    rng = np.random.default_rng(0)
    config = {"session.force_spinning_stop": "1"}
    sessions = [session.create(data, threads=1, config=config) for data in (a, b)]
    feeds = [
        {"x": rng.standard_normal((1, channels, size, size)).astype(np.float32)}
        for channels in (channels_a, channels_b)
    ]
    best = [float("inf"), float("inf")]
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        for index in (0, 1):
            start = time.perf_counter()
            sessions[index].run(None, feeds[index])
            best[index] = min(best[index], time.perf_counter() - start)
    return best[0] / best[1], best[0] * 1e3, best[1] * 1e3


def saturation(signed_input: bool) -> float:
    """Largest error of the integer kernel on 8-bit weights of the worst kind, relative to the largest output."""
    n = SATURATION_INPUTS
    codes = np.full((n, 16), 127, np.int8)
    kind = np.int8 if signed_input else np.uint8
    constants = {
        "w": codes,
        "ws": np.full(16, 0.01, np.float32),
        "xs": np.float32(1 / 255).reshape(()),
        "xz": np.array(-128 if signed_input else 0, kind),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xr"]),
        helper.make_node("DequantizeLinear", ["w", "ws"], ["wr"], axis=1),
        helper.make_node("MatMul", ["xr", "wr"], ["y"]),
    ]
    data = model(nodes, constants, (8, n))
    feeds = {"x": np.ones((8, n), np.float32)}
    fused, plain = (session.run(session.create(data, optimize=flag), feeds)["y"] for flag in (True, False))
    return float(np.abs(fused - plain).max() / np.abs(plain).max())


def show(what: str, found: tuple[float, float, float]) -> None:
    """One line of the table."""
    print(f"{what:40} {found[0]:5.2f}  ({found[1]:.2f} -> {found[2]:.2f} ms)")


def main() -> None:
    """Print everything that docs/runtime.md gives for the machine it was measured on."""
    environment = describe_environment(Target.host())
    print(f"{environment.cpu}, {', '.join(environment.isa)}; ONNX Runtime {ort.__version__}, one thread\n")
    rng = np.random.default_rng(0)
    whole = convolution(rng.standard_normal((64, 64, 3, 3)).astype(np.float32) / 24, 56)
    for channels in (63, 57, 56, 49, 48, 33, 32):
        weight = rng.standard_normal((64, channels, 3, 3)).astype(np.float32) / 24
        show(f"Conv 3x3 @56, inputs 64 -> {channels}", ratio(whole, convolution(weight, 56), 64, channels, 56))
    for channels in (63, 56, 48, 32):
        weight = rng.standard_normal((channels, 64, 3, 3)).astype(np.float32) / 24
        show(f"Conv 3x3 @56, outputs 64 -> {channels}", ratio(whole, convolution(weight, 56), 64, 64, 56))
    for out, ins, kernel, size in ((64, 64, 3, 56), (256, 256, 3, 14), (1024, 256, 1, 14), (512, 512, 3, 7)):
        weight = (rng.standard_normal((out, ins, kernel, kernel)) / np.sqrt(ins * kernel**2)).astype(np.float32)
        whole = convolution(weight, size)
        for name, signs in (("U8S8", (False, True)), ("S8S8", (True, True)), ("U8U8", (False, False))):
            other = quantized_convolution(weight, size, *signs)
            show(f"Conv {ins} -> {out} {kernel}x{kernel} @{size}, {name}", ratio(whole, other, ins, ins, size))
        sparse = np.where(rng.random(weight.shape) < 0.9, 0, weight).astype(np.float32)
        found = ratio(whole, convolution(sparse, size), ins, ins, size)
        show(f"Conv {ins} -> {out} {kernel}x{kernel} @{size}, 90 % zeros", found)
    for name, signed in (("U8S8", False), ("S8S8", True)):
        print(f"worst error by saturation, MatMul {name}: {saturation(signed):.1%}")


if __name__ == "__main__":
    main()
