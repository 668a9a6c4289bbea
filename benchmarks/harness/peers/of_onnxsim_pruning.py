"""onnxsim's pruning: whole channels at a given share of the FLOPs, single weights and 2:4, each with its recoveries."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from harness.peers.common import Peer, Task, told_seconds, without_unused
from harness.peers.of_onnxsim import simplified

__all__ = ["CHANNELS", "ELEMENTS", "SPARSE_TUNING", "channels", "elements", "removed_channels"]

# What recovers most on fashion; its default rate of 1e-4 recovers less.
TUNING: dict[str, Any] = {"num_iterations": 1000, "learning_rate": 1e-3}
TUNING_SAMPLES = 64
# Of larger models an iteration on so many samples takes seconds; with large inputs a sample of SparseGPT does.
LARGE_MODEL = 3e8  # FLOPs
LARGE_INPUT = 10_000  # values
LARGE_TUNING: dict[str, Any] = {"num_iterations": 100, "learning_rate": 1e-3}
LARGE_SAMPLES = 16
# An iteration that keeps zeros takes seconds even on small models.
SPARSE_TUNING: dict[str, Any] = {"num_iterations": 100, "preserve_sparsity": True}
MOST_SPARSITY = 0.95
SEARCH_STEPS = 8
CLOSE = 0.005  # of the FLOPs: so much less than asked for still counts as reached

_SMALL = ("fashion", "mnist")
_LARGE = ("mobilenetv2", "ppocr_rec", "minilm", "ppocr_det")

Patterns = dict[str, Any]
HALF: Patterns = {"sparsity": 0.5}
TWO_OF_FOUR: Patterns = {"n": 2, "m": 4}


def channels(task: Task, flops: float, recover: bool, wanda: bool = True) -> None:
    """Remove so many of the FLOPs, by Wanda's scores or by norms; refit and fine-tune what is left perhaps.

    Raises:
        SystemExit: it finds too few channels that it can remove.
    """
    import onnxsim

    feeds = list(task.feeds())
    original = _followable(task)
    prune = onnxsim.apply_structured_pruning
    if wanda:
        prune = partial(onnxsim.apply_structured_wanda_pruning, calibration_data=feeds)
    # How many channels go does not depend on what the scores are taken from, so one sample serves for the search.
    search = partial(prune, calibration_data=feeds[:1]) if wanda else prune
    proto = prune(original, sparsity=_sparsity(task, original, search, flops))
    if recover:
        proto = onnxsim.apply_pruning_finetune(original, proto, calibration_data=feeds)
        proto = _tuned(task, original, proto)
    _save(proto, task)


def removed_channels(task: Task, flops: float) -> tuple[Any, Any]:
    """The model as it is pruned, and what is left when so many of the FLOPs are removed by norms."""
    import onnxsim

    original = _followable(task)
    prune = onnxsim.apply_structured_pruning
    return original, prune(original, sparsity=_sparsity(task, original, prune, flops))


def elements(task: Task, algorithm: str, pattern: Patterns, recover: bool = False) -> None:
    """Make single weights zero; fine-tune the others perhaps."""
    import onnxsim

    feeds = list(task.feeds(LARGE_SAMPLES if algorithm == "sparsegpt" and _has_large_input(task) else None))
    original = simplified(task)  # makes Gemm of MatMul, which SparseGPT needs
    if algorithm == "magnitude":
        proto = onnxsim.apply_magnitude_pruning(original, **pattern)
    else:
        prune = {"sparsegpt": onnxsim.apply_sparsegpt_pruning, "wanda": onnxsim.apply_wanda_pruning}[algorithm]
        proto = prune(original, calibration_data=feeds, **pattern)
    if recover:
        proto = _tuned(task, original, proto, **SPARSE_TUNING)
    _save(proto, task)


def _followable(task: Task) -> Any:
    """The model in the form in which it finds most channels.

    It does not follow channels through GELU as exporters write it, nor through the Reshape that its own ``simplify``
    puts around Gemm. So transformers go through ONNX Runtime's fusion of GELU instead.
    """
    import onnx

    if not any(node.op_type == "Erf" for node in onnx.load(task.model, load_external_data=False).graph.node):
        return simplified(task)
    from onnxruntime.transformers import optimizer
    from onnxruntime.transformers.fusion_options import FusionOptions

    options = FusionOptions("bert")
    options.enable_attention = options.enable_skip_layer_norm = options.enable_bias_gelu = False
    return optimizer.optimize_model(str(task.model), model_type="bert", opt_level=0, optimization_options=options).model


def _sparsity(task: Task, original: Any, prune: Callable[..., Any], flops: float) -> float:
    """The least share of the channels whose removal takes away so many of the FLOPs."""
    whole = _flops(task, original)

    def removed(sparsity: float) -> float:
        return 1.0 - _flops(task, prune(original, sparsity=sparsity)) / whole

    low, high = 0.0, MOST_SPARSITY
    if (most := removed(high)) < flops - CLOSE:
        raise SystemExit(f"removes {100 * most:.1f} % of the FLOPs at most")
    for _ in range(SEARCH_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if removed(middle) >= flops - CLOSE else (middle, high)
    return high


def _flops(task: Task, proto: Any) -> int:
    """As the table counts them."""
    import onnx

    from harness.weights import flops_of

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "candidate.onnx"
        onnx.save(proto, path)
        return flops_of(path, next(task.feeds(1)))


def _tuned(task: Task, original: Any, proto: Any, **options: Any) -> Any:
    """Block after block, against the outputs of the original's blocks.

    Raises:
        SystemExit: it can tune none.
    """
    import onnxsim

    large = _flops(task, original) >= LARGE_MODEL
    options = (LARGE_TUNING if large else TUNING) | options
    feeds = list(task.feeds(LARGE_SAMPLES if large else TUNING_SAMPLES))
    with told_seconds():
        tuned, blocks = onnxsim.apply_block_finetune_all_blocks(original, proto, calibration_data=feeds, **options)
    if not any(block.trained for block in blocks):
        reasons = {str(block.skipped_reason) for block in blocks}
        raise SystemExit(f"nothing is fine-tuned: {'; '.join(sorted(reasons)) or 'it finds no block'}")
    return tuned


def _has_large_input(task: Task) -> bool:
    return sum(int(values.size) for values in next(task.feeds(1)).values()) >= LARGE_INPUT


def _save(proto: Any, task: Task) -> None:
    import onnx

    onnx.save(without_unused(proto), task.output)


def _channels(percent: int, only: tuple[str, ...]) -> dict[str, Peer]:
    make = partial(channels, flops=percent / 100)
    about = f"-{percent} % FLOPs"
    return {
        f"onnxsim-wanda-{percent}": Peer("onnxsim", f"{about}, Wanda", partial(make, recover=False), only),
        f"onnxsim-wanda-tuned-{percent}": Peer(
            "onnxsim", f"{about}, Wanda, refit, fine-tuned", partial(make, recover=True), only
        ),
        f"onnxsim-norms-tuned-{percent}": Peer(
            "onnxsim", f"{about}, norms, refit, fine-tuned", partial(make, recover=True, wanda=False), only
        ),
    }


def _elements(name: str, about: str, pattern: Patterns) -> dict[str, Peer]:
    made = {}
    for algorithm, title in (("sparsegpt", "SparseGPT"), ("wanda", "Wanda"), ("magnitude", "magnitude")):
        make = partial(elements, algorithm=algorithm, pattern=pattern)
        made[f"onnxsim-{algorithm}-{name}"] = Peer("onnxsim", f"{about}, {title}", make)
        if algorithm != "magnitude":  # whose result it does not tune: it has renamed the weights
            made[f"onnxsim-{algorithm}-tuned-{name}"] = Peer(
                "onnxsim", f"{about}, {title}, fine-tuned", partial(make, recover=True), _SMALL
            )
    return made


CHANNELS = {**_channels(15, _LARGE), **_channels(30, _SMALL), **_channels(50, _SMALL)}
ELEMENTS = {**_elements("half", "50 % of the weights", HALF), **_elements("2of4", "2:4", TWO_OF_FOUR)}
