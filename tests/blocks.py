"""Blocks that random networks are made of; ``generate.networks`` draws them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import strategies as st

from tests import forms

if TYPE_CHECKING:
    from tests.generate import Net

CONVOLUTIONAL = (
    "conv",
    "norm",
    "activation",
    "residual",
    "projection",
    "concat",
    "depthwise",
    "grouped",
    "gate",
    "split",
)

BLOCKS = (
    *CONVOLUTIONAL,
    "shuffle",
    "group norm",
    "gather",
    "stride",
    "halves",
    "depth",
    "tile",
    "transposed",
    "attention",
    "recurrent",
)


def append(draw: st.DrawFn, net: Net, x: str, block: str, activations: Sequence[str]) -> str:
    """One of ``BLOCKS`` behind x, of the shape (N, C, 4, 4)."""
    act = draw(st.sampled_from(activations))
    width, size = 4 * draw(st.integers(1, 4)), net.channels[x]
    if block == "norm":
        return net.batch_norm(x)
    if block == "activation":
        return net.activation(x, act)
    if block == "residual":
        return net.add(x, net.conv(net.activation(net.conv(x, width), act), size))
    if block == "projection":
        return net.add(net.conv(x, width, kernel=1), net.batch_norm(net.conv(x, width, bias=False)))
    if block == "concat":
        return net.concat(net.activation(net.conv(x, width), act), x, net.conv(x, 4, kernel=1))
    if block == "depthwise":
        return net.depthwise(x, multiplier=draw(st.integers(1, 2)))
    if block == "grouped":
        return net.activation(net.conv(x, width, groups=2), act)
    if block == "gate":
        return net.gate(x, hidden=4)
    if block == "split":
        half = size // 4 * 2  # even, as a grouped convolution may follow
        sizes = net.constant([half, size - half], np.int64)
        first = net.node("Split", x, sizes, channels=half, outputs=2, axis=1)
        net.channels[f"{first}.1"] = size - half
        return net.concat(net.conv(first, width), net.activation(f"{first}.1", act))
    if block in ("attention", "recurrent"):
        return _sequence(draw, net, x, block)
    return _rearranged(draw, net, x, block) if block != "conv" else net.conv(x, width)


def _rearranged(draw: st.DrawFn, net: Net, x: str, block: str) -> str:
    """Blocks between convolutions whose channels are some multiple of 8."""
    width = 8 * draw(st.integers(1, 2))
    x = net.activation(net.conv(x, width, kernel=1))
    if block == "shuffle":
        return forms.shuffle(net, net.conv(x, width, groups=2), draw(st.sampled_from([2, 4])), 4, 4)
    if block == "group norm":
        return forms.group_norm(net, x, draw(st.sampled_from([2, 4, 8])))
    if block == "gather":
        return forms.gathered(net, x, draw(st.permutations(range(width)))[: width - 2 * draw(st.integers(0, 2))])
    if block == "stride":
        return forms.strided(net, x)
    if block == "halves":
        return forms.halves(net, x)
    if block == "depth":
        return forms.through_depth(net, x, draw(st.sampled_from(["DCR", "CRD"])))
    if block == "tile":
        return forms.tiled(net, x)
    return net.conv_transpose(x, width, kernel=1, groups=draw(st.sampled_from([1, 2])))


def _sequence(draw: st.DrawFn, net: Net, x: str, block: str) -> str:
    """Blocks that take the positions of the picture for a sequence."""
    y = forms.tokens(net, x)
    if block == "attention":
        heads = draw(st.integers(2, 4))
        form = draw(st.sampled_from(forms.ATTENTION_FORMS))
        y = net.add(y, forms.attention(net, y, heads * draw(st.integers(1, 3)), heads, form))
    else:
        op = draw(st.sampled_from(["LSTM", "GRU", "RNN"]))
        y = forms.recurrent(net, y, 2 * draw(st.integers(2, 4)), op, draw(st.integers(1, 2)))
    return forms.picture(net, y, 4, 4)
