"""onnxruntime.quantization with its calibration methods, dynamic, and 4-bit weights of MatMul."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from harness.peers.common import Feeds, Peer, Task, preprocessed, told_seconds

__all__ = ["EIGHT_BITS", "FOUR_BITS"]

WITH_MATMULS = ("minilm", "ppocr_rec")  # of the zoo; elsewhere these settings would change next to nothing
HISTOGRAM_SAMPLES = 128  # histograms hold every activation of every sample until the end
WEIGHTED = ["Conv", "MatMul", "Gemm"]


def static(
    task: Task,
    method: str,
    weighted_only: bool = False,
    reduce_range: bool = False,
    symmetric: bool = False,
) -> None:
    """QDQ, int8 weights per channel; activations uint8, or int8 around zero."""
    from onnxruntime import quantization

    kinds = quantization.QuantType
    options: dict[str, Any] = {"ActivationSymmetric": True} if symmetric else {}
    ready = preprocessed(task.model)
    with told_seconds():
        quantization.quantize_static(
            str(ready),
            str(task.output),
            _reader(task.feeds(None if method == "MinMax" else HISTOGRAM_SAMPLES)),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=WEIGHTED if weighted_only else None,
            per_channel=True,
            reduce_range=reduce_range,
            activation_type=kinds.QInt8 if symmetric else kinds.QUInt8,
            weight_type=kinds.QInt8,
            calibrate_method=quantization.CalibrationMethod[method],
            extra_options=options,
        )


def dynamic(task: Task) -> None:
    """Int8 weights per channel, ranges of the activations found in every run."""
    from onnxruntime import quantization

    # ConvInteger takes no signed weights; convolutions stay in float, as the documentation recommends.
    kinds = ["MatMul", "Gemm", "Gather", "Attention", "LSTM"]
    ready = preprocessed(task.model)
    quantization.quantize_dynamic(str(ready), str(task.output), op_types_to_quantize=kinds, per_channel=True)


def four_bits(task: Task, algorithm: str, accuracy_level: int | None = None) -> None:
    """The weights of MatMul in blocks of 32 as MatMulNBits; everything else stays in float."""
    from onnxruntime.quantization import matmul_nbits_quantizer as nbits

    level = {"accuracy_level": accuracy_level}
    config: Any
    if algorithm == "hqq":
        config = nbits.HQQWeightOnlyQuantConfig(block_size=32, bits=4)
    elif algorithm == "gptq":
        config = nbits.GPTQWeightOnlyQuantConfig(calibration_data_reader=_reader(task.feeds()), block_size=32)
    elif algorithm == "k_quant":
        config = nbits.KQuantWeightOnlyQuantConfig()
    else:
        config = nbits.DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=True, **level)
    quantizer = nbits.MatMulNBitsQuantizer(
        str(preprocessed(task.model)), bits=4, block_size=32, is_symmetric=True, algo_config=config, **level
    )
    quantizer.process()
    quantizer.model.save_model_to_file(str(task.output))


def _reader(feeds: Iterator[Feeds]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> Feeds | None:
            return next(feeds, None)

    return Reader()


def _static(setting: str, method: str, **options: bool) -> Peer:
    return Peer("onnxruntime", f"static, {setting}", partial(static, method=method, **options))


ONLY = "Conv/MatMul/Gemm only"
EIGHT_BITS = {
    "ort-minmax": _static("MinMax", "MinMax"),
    "ort-minmax-weighted": _static(f"MinMax, {ONLY}", "MinMax", weighted_only=True),
    "ort-minmax-symmetric": _static("MinMax, symmetric", "MinMax", symmetric=True),
    "ort-entropy": _static("Entropy", "Entropy"),
    "ort-percentile-full": _static("Percentile", "Percentile"),
    "ort-percentile": _static(f"Percentile, {ONLY}", "Percentile", weighted_only=True),
    "ort-minmax-7bit": replace(_static("MinMax, reduce_range", "MinMax", reduce_range=True), saturating=True),
    "ort-percentile-7bit": replace(
        _static(f"Percentile, {ONLY}, reduce_range", "Percentile", weighted_only=True, reduce_range=True),
        saturating=True,
    ),
    "ort-dynamic": Peer("onnxruntime", "dynamic", dynamic, only=WITH_MATMULS),
}


def _four_bits(setting: str, **options: Any) -> Peer:
    return Peer("onnxruntime", f"MatMulNBits, {setting}, blocks of 32", partial(four_bits, **options), WITH_MATMULS)


FOUR_BITS = {
    "ort-rtn4": _four_bits("RTN", algorithm="rtn"),
    "ort-rtn4-level4": _four_bits("RTN, accuracy_level 4", algorithm="rtn", accuracy_level=4),
    "ort-hqq4": _four_bits("HQQ", algorithm="hqq"),
    "ort-gptq4": _four_bits("GPTQ", algorithm="gptq"),
    "ort-kquant4": _four_bits("k-quant", algorithm="k_quant"),
}
