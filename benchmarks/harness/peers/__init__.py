"""Other tools, each with a setting.

Every tool gets the model after its documented pre-processing and the same calibration samples, one at a time.
"""

from __future__ import annotations

from harness.peers import of_nncf, of_onnxsim, of_onnxsim_pruning, of_onnxsim_recovery, of_ort, of_quark
from harness.peers.common import Peer, Task

__all__ = [
    "CHANNELS",
    "CODEBOOKS",
    "COMPRESSION",
    "EIGHT_BITS",
    "ELEMENTS",
    "FOUR_BITS",
    "PEERS",
    "RECOVERY",
    "Peer",
    "Task",
]

PEERS: dict[str, Peer] = {
    **of_ort.EIGHT_BITS,
    **of_onnxsim.EIGHT_BITS,
    **of_onnxsim.PRUNED,
    **of_nncf.EIGHT_BITS,
    **of_quark.EIGHT_BITS,
    **of_ort.FOUR_BITS,
    **of_onnxsim.FOUR_BITS,
    **of_nncf.FOUR_BITS,
    **of_onnxsim.CODEBOOKS,
    **of_onnxsim_pruning.CHANNELS,
    **of_onnxsim_pruning.ELEMENTS,
    **of_onnxsim_recovery.RECOVERY,
}
EIGHT_BITS = {**of_ort.EIGHT_BITS, **of_onnxsim.EIGHT_BITS, **of_nncf.EIGHT_BITS, **of_quark.EIGHT_BITS}
FOUR_BITS = {**of_ort.FOUR_BITS, **of_onnxsim.FOUR_BITS, **of_nncf.FOUR_BITS}
CODEBOOKS = of_onnxsim.CODEBOOKS
CHANNELS = of_onnxsim_pruning.CHANNELS
ELEMENTS = of_onnxsim_pruning.ELEMENTS
RECOVERY = of_onnxsim_recovery.RECOVERY
COMPRESSION = (  # what run.py compares whole pipelines with
    "ort-minmax",
    "ort-minmax-7bit",
    "ort-percentile",
    "ort-entropy",
    "ort-dynamic",
    "onnxsim-static",
    "onnxsim-full",
    "onnxsim-pruned",
    "onnxsim-dynamic",
    "nncf-performance",
    "nncf-mixed",
)
