"""Derivatives of Conv and ConvTranspose, in forms that ONNX Runtime runs fast.

With Y = conv(X, W): the gradient by X is a transposed convolution of that of Y with W, which for stride 1 is a plain
convolution with the kernel turned around; that by W is, for each place of the kernel, one matrix product of the
gradient of Y with the inputs that the place has seen (Dumoulin and Visin 2016, arXiv:1603.07285, sections 4 and 5).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from onnxcomp.gradient.rules import register
from onnxcomp.gradient.tape import Operation, Tape

__all__ = ["Geometry", "padding", "spans"]

Shape = tuple[int, ...]

# A 1x1 kernel: from this many positions on, products sample by sample cost less than putting samples side by side.
_MANY_POSITIONS = 256


@dataclass(frozen=True)
class Geometry:
    """How a convolution of x (N, C, *spatial) with w (M, C / groups, *kernel) to y (N, M, *out) is laid out."""

    x: Shape
    w: Shape
    y: Shape
    groups: int
    kernel: Shape
    strides: Shape
    dilations: Shape
    before: Shape
    after: Shape

    @classmethod
    def of(cls, operation: Operation, x: Shape, y: Shape) -> Geometry:
        """Of a node; padding that it leaves to ``auto_pad`` follows from the shapes.

        Args:
            operation: a Conv, or a ConvTranspose, which is the gradient of a convolution of ``x`` to ``y``.
            x: of the side with the kernel around each position.
            y: of the other side.
        """
        w = operation.shape(1)
        rank = len(w) - 2
        kernel = tuple(w[2:])
        strides = tuple(operation.attr("strides", [1] * rank))
        dilations = tuple(operation.attr("dilations", [1] * rank))
        before, after = padding(operation, spans(kernel, dilations), strides, x, y)
        groups = int(operation.attr("group", 1))
        return cls(x, w, y, groups, kernel, strides, dilations, before, after)

    @property
    def rank(self) -> int:
        """Spatial axes."""
        return len(self.kernel)

    @property
    def spans(self) -> Shape:
        """Extent of the dilated kernel."""
        return spans(self.kernel, self.dilations)

    @property
    def depthwise(self) -> bool:
        """Whether every output is made of one input channel."""
        return self.groups > 1 and self.w[1] == 1 and self.w[0] == self.groups

    @property
    def pointwise(self) -> bool:
        """Whether it is a matrix product at each position."""
        plain = {*self.kernel, *self.strides} == {1}
        return plain and not any((*self.before, *self.after))

    @property
    def attributes(self) -> dict[str, object]:
        """For a node of the same geometry."""
        return {
            "kernel_shape": list(self.kernel),
            "strides": list(self.strides),
            "dilations": list(self.dilations),
            "pads": [*self.before, *self.after],
            "group": self.groups,
        }

    @property
    def leftover(self) -> Shape:
        """Input positions at the end of each axis that no output sees, the padding counted."""
        return tuple(
            dim + b + a - span - (out - 1) * s
            for dim, b, a, span, out, s in zip(
                self.x[2:], self.before, self.after, self.spans, self.y[2:], self.strides, strict=True
            )
        )

    def window(self, place: Sequence[int]) -> tuple[list[int], list[int]]:
        """First and one past the last padded input position that a place of the kernel sees."""
        starts = [p * d for p, d in zip(place, self.dilations, strict=True)]
        ends = [start + (out - 1) * s + 1 for start, out, s in zip(starts, self.y[2:], self.strides, strict=True)]
        return starts, ends

    def places(self) -> list[tuple[int, ...]]:
        """All places of the kernel."""
        return list(itertools.product(*(range(k) for k in self.kernel)))


def spans(kernel: Sequence[int], dilations: Sequence[int]) -> Shape:
    """Extents of a dilated kernel."""
    return tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))


def padding(
    operation: Operation, extents: Sequence[int], strides: Sequence[int], x: Shape, y: Shape
) -> tuple[Shape, Shape]:
    """Of windows of these extents that go from x to y, before and after; what ``auto_pad`` leaves open, shapes tell."""
    rank = len(extents)
    auto = operation.attr("auto_pad", "NOTSET")
    if auto == "VALID":
        return (0,) * rank, (0,) * rank
    if auto == "NOTSET" and operation.attr("output_shape") is None:
        pads = operation.attr("pads", [0] * (2 * rank))
        return tuple(pads[:rank]), tuple(pads[rank:])
    axes = zip(y[2:], strides, extents, x[2:], strict=True)
    totals = [max((out - 1) * stride + span - dim, 0) for out, stride, span, dim in axes]
    smaller_first = auto == "SAME_UPPER"
    before = tuple(total // 2 if smaller_first else total - total // 2 for total in totals)
    return before, tuple(total - first for total, first in zip(totals, before, strict=True))


@register("Conv")
def conv(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    geometry = Geometry.of(operation, operation.shape(), operation.out_shape())
    bias = tape.reduce_sum(grad, [0, *range(2, geometry.rank + 2)], keepdims=False)
    by_input = _by_input(tape, geometry, grad, operation.input(1)) if 0 in operation.wanted else None
    by_weight = _by_weight(tape, geometry, operation.input(), grad) if 1 in operation.wanted else None
    return [by_input, by_weight, bias]


@register("ConvTranspose")
def conv_transpose(tape: Tape, operation: Operation, grad: str) -> list[str | None]:
    """It is the gradient of a convolution by its input, so that convolution is its own gradient."""
    geometry = Geometry.of(operation, operation.out_shape(), operation.shape())
    bias = tape.reduce_sum(grad, [0, *range(2, geometry.rank + 2)], keepdims=False)
    by_input = _seen(tape, geometry, grad, operation.input(1))
    by_weight = _by_weight(tape, geometry, grad, operation.input()) if 1 in operation.wanted else None
    return [by_input, by_weight, bias]


def _seen(tape: Tape, geometry: Geometry, grad: str, weight: str) -> str:
    """The convolution, without positions at the end that no output sees: with them, there might be more outputs."""
    grad, _, ends = _without_leftover(tape, geometry, grad)
    return tape.emit("Conv", grad, weight, **geometry.attributes | {"pads": [*geometry.before, *ends]})


def _without_leftover(tape: Tape, geometry: Geometry, x: str) -> tuple[str, list[int], list[int]]:
    """x without positions at its end that no output sees, its extents, and the padding after it that is left."""
    ends = [a - over for a, over in zip(geometry.after, geometry.leftover, strict=True)]
    extents = [dim + min(end, 0) for dim, end in zip(geometry.x[2:], ends, strict=True)]
    if min(ends) < 0:
        axes, ones = range(2, geometry.rank + 2), [1] * geometry.rank
        x = tape.slice(x, [0] * geometry.rank, extents, axes, ones)
    return x, extents, [max(end, 0) for end in ends]


def _by_input(tape: Tape, geometry: Geometry, grad: str, weight: str) -> str:
    if set(geometry.strides) == {1}:
        before = [span - 1 - pad for span, pad in zip(geometry.spans, geometry.before, strict=True)]
        after = [span - 1 - pad for span, pad in zip(geometry.spans, geometry.after, strict=True)]
        if min(before) >= 0 and min(after) >= 0:
            attributes = geometry.attributes | {"pads": [*before, *after]}
            return tape.emit("Conv", grad, _turned(tape, geometry, weight), **attributes)
    return tape.emit(
        "ConvTranspose",
        grad,
        weight,
        **geometry.attributes,
        output_padding=[max(0, over) for over in geometry.leftover],
    )


def _turned(tape: Tape, geometry: Geometry, weight: str) -> str:
    """The weight with inputs and outputs exchanged and every kernel turned around."""
    outs, ins, groups = geometry.w[0], geometry.w[1], geometry.groups
    if groups == 1:
        turned = tape.transpose(weight, [1, 0, *range(2, geometry.rank + 2)])
    elif geometry.depthwise:
        turned = weight
    else:
        apart = tape.reshape(weight, [groups, outs // groups, ins, *geometry.kernel])
        apart = tape.transpose(apart, [0, 2, 1, *range(3, geometry.rank + 3)])
        turned = tape.reshape(apart, [groups * ins, outs // groups, *geometry.kernel])
    axes = [axis + 2 for axis, k in enumerate(geometry.kernel) if k > 1]
    if not axes:
        return turned
    return tape.slice(turned, [-1] * len(axes), [-(2**31)] * len(axes), axes, [-1] * len(axes))


def _by_weight(tape: Tape, geometry: Geometry, x: str, grad: str) -> str:
    """The gradient by the weight, of the shape of the weight.

    Args:
        x: the side with the kernel around each position.
        grad: of the other side.
    """
    if geometry.depthwise and math.prod(geometry.kernel) > 1:
        return _depthwise(tape, geometry, x, grad)
    positions = math.prod(geometry.y[2:])
    if geometry.groups == 1 and geometry.pointwise and positions >= _MANY_POSITIONS:
        return _pointwise(tape, geometry, x, grad, positions)
    return _by_places(tape, geometry, x, grad)


def _pointwise(tape: Tape, geometry: Geometry, x: str, grad: str, positions: int) -> str:
    """Sample by sample, (M, positions) times (positions, C)."""
    batch, outs, ins = geometry.x[0], geometry.w[0], geometry.w[1]
    left = tape.reshape(grad, [batch, outs, positions])
    right = tape.transpose(tape.reshape(x, [batch, ins, positions]), [0, 2, 1])
    product = tape.reduce_sum(tape.emit("MatMul", left, right), [0], keepdims=False)
    return tape.reshape(product, geometry.w)


def _by_places(tape: Tape, geometry: Geometry, x: str, grad: str) -> str:
    """For each place of the kernel, (groups, M, samples · positions) times (groups, samples · positions, C).

    The channels of x go last: then the input of one place is a part without a copy per channel.
    """
    batch, groups = geometry.x[0], geometry.groups
    outs, ins, axes = geometry.w[0] // groups, geometry.w[1], range(geometry.rank)
    rows = batch * math.prod(geometry.y[2:])
    apart = tape.reshape(x, [batch, groups, ins, *geometry.x[2:]]) if groups > 1 else x
    if groups > 1:
        last = tape.transpose(apart, [1, 0, *(axis + 3 for axis in axes), 2])
    else:
        last = tape.transpose(apart, [0, *(axis + 2 for axis in axes), 1])
    lead = [0] * (1 + (groups > 1))
    padded = tape.pad(last, [*lead, *geometry.before, 0], [*lead, *geometry.after, 0])
    left = _outputs_first(tape, geometry, grad, rows)
    spatial = [axis + len(lead) for axis in axes]
    products = []
    for place in geometry.places():
        seen = padded if geometry.pointwise else tape.slice(padded, *geometry.window(place), spatial, geometry.strides)
        right = tape.reshape(seen, [groups, rows, ins] if groups > 1 else [rows, ins])
        products.append(tape.emit("MatMul", left, right))
    if len(products) == 1:
        return tape.reshape(products[0], geometry.w)
    joined = tape.emit("Concat", *products, axis=-1)
    split = tape.reshape(joined, [groups * outs, len(products), ins])
    return tape.reshape(tape.transpose(split, [0, 2, 1]), geometry.w)


def _outputs_first(tape: Tape, geometry: Geometry, grad: str, rows: int) -> str:
    groups, outs, rank = geometry.groups, geometry.w[0] // geometry.groups, geometry.rank
    first = tape.transpose(grad, [1, 0, *range(2, rank + 2)])
    return tape.reshape(first, [groups, outs, rows] if groups > 1 else [outs, rows])


def _depthwise(tape: Tape, geometry: Geometry, x: str, grad: str) -> str:
    """Every plane of x, convolved with its plane of the gradient as the kernel: strides and dilations change places.

    As a convolution of samples · channels groups it stays one pass over both tensors.
    """
    batch, channels = geometry.x[0], geometry.w[0]
    x, extent, ends = _without_leftover(tape, geometry, x)
    products = tape.emit(
        "Conv",
        tape.reshape(x, [1, batch * channels, *extent]),
        tape.reshape(grad, [batch * channels, 1, *geometry.y[2:]]),
        kernel_shape=list(geometry.y[2:]),
        strides=list(geometry.dilations),
        dilations=list(geometry.strides),
        pads=[*geometry.before, *ends],
        group=batch * channels,
    )
    sums = tape.reshape(products, [batch, channels, math.prod(geometry.kernel)])
    return tape.reshape(tape.reduce_sum(sums, [0], keepdims=False), geometry.w)
