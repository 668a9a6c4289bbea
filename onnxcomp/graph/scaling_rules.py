"""What each operator does to the scales of the channels it reads: one rule for each kind of operator."""

from __future__ import annotations

from onnxcomp.graph.scaling import Rule
from onnxcomp.graph.scaling_elementwise import cast, clip, nothing, product, same, sum_like, where
from onnxcomp.graph.scaling_layers import (
    batch_norm,
    convolution,
    gather,
    gemm,
    matmul,
    normalization,
    pooling,
    reduction,
)
from onnxcomp.graph.scaling_moves import concat, other_axes, reshape, slice_, split, transpose

__all__ = ["SCALING_RULES"]


def _table(names: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


SCALING_RULES: dict[str, Rule] = {
    **_table("Shape Size Constant ConstantOfShape RandomNormalLike RandomUniformLike EyeLike", nothing),
    **_table("Abs Dropout Identity LeakyRelu Neg PRelu Relu", same),
    "Cast": cast,
    **_table("Add Sub Sum Mean Max Min", sum_like),
    **_table("Mul Div", product),
    "Where": where,
    "Clip": clip,
    **_table("AveragePool GlobalAveragePool GlobalLpPool GlobalMaxPool LpPool MaxPool", pooling),
    **_table("ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSum", reduction),
    "BatchNormalization": batch_norm,
    **_table("InstanceNormalization LayerNormalization RMSNormalization", normalization),
    **_table("Conv ConvTranspose", convolution),
    "Gemm": gemm,
    "MatMul": matmul,
    "Gather": gather,
    "Transpose": transpose,
    **_table("Reshape Flatten Squeeze Unsqueeze", reshape),
    "Concat": concat,
    "Split": split,
    "Slice": slice_,
    **_table("Pad Resize Upsample Tile Expand", other_axes),
}
