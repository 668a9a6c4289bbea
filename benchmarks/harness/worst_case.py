"""A small convolutional classifier whose sums overflow 16 bits in pairs wherever products are added so.

python -m harness.worst_case FOLDER

Inputs lie in the upper half of their range, and neighbouring weights have the same sign and similar, large
magnitudes: two products of 8-bit numbers then come to some 2 x 190 x 105 = 40,000. What tells the classes
apart is the difference of positive and negative blocks of channels, which is lost when both are clipped.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

__all__ = ["write_worst_case"]

CLASSES, CHANNELS, HIDDEN, SIDE, BLOCK = 10, 16, 48, 6, 4
CALIBRATION, TEST = 256, 512
OPSET = 17

Array = np.ndarray[Any, Any]


def write_worst_case(folder: Path) -> None:
    """Write ``model.onnx``, ``calibration.npz`` and ``test.npz`` with labels, the same bytes every time."""
    rng = np.random.default_rng(0)
    levels = rng.uniform(0.5, 1.0, (CLASSES, CHANNELS, 1, 1))
    signs = np.repeat(rng.choice([-1.0, 1.0], (HIDDEN, CHANNELS // BLOCK)), BLOCK, axis=1)
    weight = (signs[:, :, None, None] * rng.uniform(0.65, 1.0, (HIDDEN, CHANNELS, 3, 3))).astype(np.float32)
    calibration, test = _images(levels, CALIBRATION, rng), _images(levels, TEST, rng)
    bias = -_run(_network(weight, np.zeros(HIDDEN, np.float32)), calibration[0]).mean(axis=(0, 2, 3))
    hidden = np.maximum(_run(_network(weight, bias), calibration[0]), 0).mean(axis=(2, 3))
    head, *_ = np.linalg.lstsq(np.c_[hidden, np.ones(len(hidden))], np.eye(CLASSES)[calibration[1]], rcond=None)
    onnx.save(_network(weight, bias, head.astype(np.float32)), folder / "model.onnx")
    for name, (images, labels) in {"calibration": calibration, "test": test}.items():
        np.savez(folder / f"{name}.npz", image=images, labels=labels)


def _images(levels: Array, count: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Images [count, channels, side, side] of the classes in turn, between 0.5 and 1, and their classes."""
    labels = np.arange(count) % CLASSES
    images = levels[labels] + rng.uniform(-0.05, 0.05, (count, CHANNELS, SIDE, SIDE))
    return np.clip(images, 0.5, 1.0).astype(np.float32), labels


def _network(weight: Array, bias: Array, head: Array | None = None) -> onnx.ModelProto:
    """The convolution alone, or with its activation, a mean over all places and the fully connected head."""
    constants = {"weight": weight, "bias": bias.astype(np.float32)}
    nodes = [helper.make_node("Conv", ["image", "weight", "bias"], ["features"], name="conv")]
    if head is not None:
        constants |= {"head": head[:-1], "head_bias": head[-1]}
        nodes += [
            helper.make_node("Relu", ["features"], ["active"], name="relu"),
            helper.make_node("GlobalAveragePool", ["active"], ["mean"], name="pool"),
            helper.make_node("Flatten", ["mean"], ["flat"], name="flatten"),
            helper.make_node("Gemm", ["flat", "head", "head_bias"], ["scores"], name="head"),
        ]
    output = "features" if head is None else "scores"
    shape = ["batch", HIDDEN, SIDE - 2, SIDE - 2] if head is None else ["batch", CLASSES]
    graph = helper.make_graph(
        nodes,
        "worst_case",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", CHANNELS, SIDE, SIDE])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)


def _run(model: onnx.ModelProto, images: Array) -> Array:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: Array = session.run(None, {"image": images})[0]
    return found


def main() -> None:
    """Parse the command line and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    write_worst_case(parser.parse_args().folder)


if __name__ == "__main__":
    main()
