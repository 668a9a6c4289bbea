"""onnxsim's ways to train a compressed network again: blocks against the original's, and its training loop."""

from __future__ import annotations

import math
import time
from functools import partial
from typing import Any

from harness.peers.common import Peer, Task, told_seconds, without_unused
from harness.peers.of_onnxsim import BLOCKS_OPSET, simplified
from harness.peers.of_onnxsim_pruning import SPARSE_TUNING, channels, elements, removed_channels

__all__ = ["RECOVERY"]

SECONDS = 540.0  # of the training loop: with the rest of the process, less than 600
RATE = 1e-3
# Rows of a mini-batch: with 16 images of 224x224, its loop holds 5 GB.
BATCHES = {"fashion": 64, "mobilenetv2": 16}
TEACHER_ROWS = 64
QAT: dict[str, Any] = {"num_iterations": 1000, "batch_size": 64, "learn_scales": True}

_FASHION, _MOBILENET = ("fashion",), ("mobilenetv2",)


def distilled_channels(task: Task, flops: float, batch: int) -> None:
    """Channels removed by norms, refit, then trained as a whole."""
    import onnxsim

    original, proto = removed_channels(task, flops)
    proto = onnxsim.apply_pruning_finetune(original, proto, calibration_data=list(task.feeds()))
    _save(_distilled(task, original, proto, batch), task)


def distilled_zeros(task: Task, sparsity: float, batch: int) -> None:
    """Zeros by SparseGPT; the others trained as a whole, the zeros multiplied by a mask of zeros."""
    import onnxsim

    original = simplified(task)
    proto = onnxsim.apply_sparsegpt_pruning(original, calibration_data=list(task.feeds()), sparsity=sparsity)
    _save(_distilled(task, original, proto, batch, keep_zeros=True), task)


def ternary(task: Task) -> None:
    """Every weight times a scale of its block -1, 0 or 1; no training of these comes with it."""
    import onnxsim

    _save(onnxsim.apply_gguf_ternary_quantization(simplified(task)), task)


def four_bits(task: Task) -> None:
    """The lowest number of bits that it trains, in the blocks that it finds: of these networks, the last layer."""
    import onnxsim

    original = simplified(task, BLOCKS_OPSET)
    proto = onnxsim.quantize_weight_only_int4(original)
    with told_seconds():
        proto, blocks = onnxsim.apply_qat_all_blocks(original, proto, calibration_data=list(task.feeds()), **QAT)
    if not any(block.trained for block in blocks):
        raise SystemExit("it trains no block")
    _save(onnxsim.workaround_ort_matmul_nbits_axis0_bug(proto), task)


def _distilled(task: Task, original: Any, proto: Any, batch: int, keep_zeros: bool = False) -> Any:
    """Train all weights on random mini-batches, for as long as there is time; the rate falls along a cosine."""
    import numpy as np
    from onnx import numpy_helper

    from harness.peers.onnxsim_training import TARGET, trainable, training_loop

    name, images = _samples(task)
    answers = _answers(original, name, images)
    trained = trainable(proto)
    arrays = {
        tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer if tensor.name in trained
    }
    masks = {key: value != 0 for key, value in arrays.items() if keep_zeros and value.ndim > 1}
    loop = training_loop(proto, trained, batch, masks=masks)
    random = np.random.default_rng(0)
    with told_seconds():
        start = time.perf_counter()
        while (done := (time.perf_counter() - start) / SECONDS) < 1:
            chosen = np.sort(random.choice(images.shape[0], batch, replace=False))
            feeds = {name: np.asarray(images[chosen]), TARGET: answers[chosen]}
            loop(feeds, lr=RATE * (1 + math.cos(math.pi * done)) / 2)
    found = loop.parameters()
    for tensor in proto.graph.initializer:
        if tensor.name in trained:
            value = found[tensor.name] * masks[tensor.name] if tensor.name in masks else found[tensor.name]
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(value, np.float32), tensor.name))
    return proto


def _samples(task: Task) -> tuple[str, Any]:
    """Name of the input, and all samples of the file where they lie in it, unread."""
    from onnxcomp.arrays import read_npz

    columns = read_npz(task.data)
    (name,) = [key for key in columns if key != "labels"]
    return name, columns[name]


def _answers(original: Any, name: str, images: Any) -> Any:
    """The original's probabilities, [samples, classes]."""
    import numpy as np
    import onnxruntime as ort

    session = ort.InferenceSession(original.SerializeToString(), providers=["CPUExecutionProvider"])
    count = images.shape[0]
    parts = [
        session.run(None, {name: np.asarray(images[np.arange(at, min(at + TEACHER_ROWS, count))])})[0]
        for at in range(0, count, TEACHER_ROWS)
    ]
    logits = np.concatenate(parts)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


def _save(proto: Any, task: Task) -> None:
    import onnx

    onnx.save(without_unused(proto), task.output)


def _channels(end: str, flops: float, only: tuple[str, ...]) -> dict[str, Peer]:
    about = f"-{100 * flops:.0f} % FLOPs"
    loop = partial(distilled_channels, flops=flops, batch=BATCHES[only[0]])
    make = partial(channels, flops=flops, recover=True)
    return {
        f"onnxsim-blocks-{end}": Peer(
            "onnxsim", f"{about}, norms, refit, blocks fine-tuned", partial(make, wanda=False), only
        ),
        f"onnxsim-loop-{end}": Peer("onnxsim", f"{about}, norms, refit, `compile_training_loop`", loop, only),
    }


RECOVERY: dict[str, Peer] = {
    **_channels("channels", 0.5, _FASHION),
    "onnxsim-ternary-bits": Peer("onnxsim", "ternary weights, not trained", ternary, _FASHION),
    "onnxsim-qat4-bits": Peer(
        "onnxsim", "int4 weights, the last layer trained by `apply_qat_all_blocks`", four_bits, _FASHION
    ),
    "onnxsim-blocks-zeros": Peer(
        "onnxsim",
        f"90 % zeros, SparseGPT, blocks fine-tuned, {SPARSE_TUNING['num_iterations']} iterations",
        partial(elements, algorithm="sparsegpt", pattern={"sparsity": 0.9}, recover=True),
        _FASHION,
    ),
    "onnxsim-loop-zeros": Peer(
        "onnxsim",
        "90 % zeros, SparseGPT, `compile_training_loop` with masks",
        partial(distilled_zeros, sparsity=0.9, batch=BATCHES["fashion"]),
        _FASHION,
    ),
    **_channels("channels30", 0.3, _MOBILENET),
}
