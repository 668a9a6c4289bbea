"""AMD Quark, its ONNX part."""

from __future__ import annotations

from functools import partial
from typing import Any

from harness.peers.common import Feeds, Peer, Task, preprocessed

__all__ = ["EIGHT_BITS"]


def static(task: Task, setting: str) -> None:
    """QDQ: Quark's A8W8 configuration, or uint8 activations with weights per channel; CLE or AdaRound on top."""
    from quark.onnx import ModelQuantizer

    feeds = task.feeds()

    class Reader:
        def get_next(self) -> Feeds | None:
            return next(feeds, None)

    quantizer = ModelQuantizer(_config(setting))
    quantizer.quantize_model(str(preprocessed(task.model)), str(task.output), Reader())


def _config(setting: str) -> Any:
    from quark.onnx import AdaRoundConfig, CLEConfig, QConfig, QLayerConfig
    from quark.onnx.quantization.config.custom_config import A8W8_QCONFIG
    from quark.onnx.quantization.config.spec import CalibMethod, Int8Spec, QuantGranularity, UInt8Spec

    if setting == "a8w8":
        return A8W8_QCONFIG
    method = CalibMethod.MinMax if setting == "minmax" else CalibMethod.Percentile
    layers = QLayerConfig(
        activation=UInt8Spec(calibration_method=method),
        weight=Int8Spec(calibration_method=CalibMethod.MinMax, quant_granularity=QuantGranularity.Channel),
    )
    algorithms = {"cle": [CLEConfig()], "adaround": [AdaRoundConfig(num_iterations=1000)]}.get(setting, [])
    return QConfig(global_config=layers, algo_config=algorithms)


def _peer(setting: str, name: str) -> Peer:
    return Peer("amd-quark", setting, partial(static, setting=name))


EIGHT_BITS = {
    "quark-a8w8": _peer("A8W8 (its default)", "a8w8"),
    "quark-minmax": _peer("U8S8 per channel, MinMax", "minmax"),
    "quark-percentile": _peer("U8S8 per channel, Percentile", "percentile"),
    "quark-adaround": _peer("U8S8 per channel, Percentile, AdaRound", "adaround"),
}
