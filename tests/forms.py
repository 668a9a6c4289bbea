"""Parts of networks whose channels lie on several axes at some point, as exporters write them.

Every function appends nodes to a ``Net`` and returns the name of its output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tests.generate import Net

ATTENTION_FORMS = ("separate", "key at once", "fused gather", "fused split", "fused slice", "channels first")


def reshaped(net: Net, x: str, target: Sequence[int], channels: int | None = None) -> str:
    return net.node("Reshape", x, net.constant(target, np.int64), channels=channels)


def tokens(net: Net, x: str) -> str:
    """(N, C, H, W) as (N, H·W, C)."""
    flat = reshaped(net, x, [0, net.channels[x], -1])
    return net.node("Transpose", flat, perm=[0, 2, 1])


def picture(net: Net, x: str, height: int, width: int) -> str:
    """(N, H·W, C) as (N, C, H, W)."""
    turned = net.node("Transpose", x, perm=[0, 2, 1])
    return reshaped(net, turned, [0, net.channels[x], height, width])


def shuffle(net: Net, x: str, groups: int, height: int, width: int) -> str:
    """Channel shuffle (Zhang et al. 2018)."""
    size = net.channels[x]
    split = reshaped(net, x, [-1, groups, size // groups, height, width])
    return reshaped(net, net.node("Transpose", split, perm=[0, 2, 1, 3, 4]), [-1, size, height, width], size)


def group_norm(net: Net, x: str, groups: int) -> str:
    """As exporters write GroupNormalization before opset 18."""
    size = net.channels[x]
    split = reshaped(net, x, [0, groups, -1])
    normal = net.node("InstanceNormalization", split, net.constant(np.ones(groups)), net.constant(np.zeros(groups)))
    back = net.node("Reshape", normal, net.node("Shape", x), channels=size)
    scale, shift = (net.constant(net.rng.uniform(low, 1, (size, 1, 1))) for low in (0.5, -1))
    return net.add(net.node("Mul", back, scale), shift)


def gathered(net: Net, x: str, indices: Sequence[int]) -> str:
    return net.node("Gather", x, net.constant(indices, np.int64), channels=len(indices), axis=1)


def strided(net: Net, x: str) -> str:
    """The channels at even places, then those at odd ones in reverse."""
    parts = []
    for start in (0, 1):
        bounds = [net.constant([value], np.int64) for value in (start, 2**62, 1, 2)]
        parts.append(net.node("Slice", x, *bounds, channels=net.channels[x] // 2))
    bounds = [net.constant([value], np.int64) for value in (-1, -(2**62), 1, -1)]
    return net.concat(parts[0], net.node("Slice", parts[1], *bounds))


def halves(net: Net, x: str) -> str:
    """A gated linear unit; Split says no sizes."""
    first = net.node("Split", x, channels=net.channels[x] // 2, outputs=2, axis=1)
    return net.node("Mul", first, net.node("Sigmoid", f"{first}.1"))


def through_depth(net: Net, x: str, mode: str = "DCR") -> str:
    """DepthToSpace and back; the channels must be a multiple of 4."""
    deep = net.node("DepthToSpace", x, channels=net.channels[x] // 4, blocksize=2, mode=mode)
    return net.node("SpaceToDepth", net.activation(deep), channels=net.channels[x], blocksize=2)


def tiled(net: Net, x: str) -> str:
    repeats = net.constant([1, 2, 1, 1], np.int64)
    return net.node("Tile", x, repeats, channels=2 * net.channels[x])


def _heads(net: Net, x: str, heads: int, perm: Sequence[int]) -> str:
    split = reshaped(net, x, [0, -1, heads, net.channels[x] // heads])
    return net.node("Transpose", split, perm=perm)


def _queries_keys_values(net: Net, x: str, width: int, heads: int, form: str) -> list[str]:
    """Of the shapes (N, heads, S, D), (N, heads, D, S) and (N, heads, S, D)."""
    each = width // heads
    if form in ("separate", "key at once"):
        query, key, value = (net.matmul(x, width) for _ in range(3))
        forms = [_heads(net, item, heads, [0, 2, 1, 3]) for item in (query, value)]
        if form == "key at once":
            return [forms[0], _heads(net, key, heads, [0, 2, 3, 1]), forms[1]]
        key = net.node("Transpose", _heads(net, key, heads, [0, 2, 1, 3]), perm=[0, 1, 3, 2])
        return [forms[0], key, forms[1]]
    packed = net.matmul(x, 3 * width)
    if form == "fused gather":
        stacked = net.node("Transpose", reshaped(net, packed, [0, -1, 3, heads, each]), perm=[2, 0, 3, 1, 4])
        parts = [net.node("Gather", stacked, net.constant(index, np.int64), axis=0) for index in range(3)]
    elif form == "fused slice":
        stacked = net.node("Transpose", reshaped(net, packed, [0, -1, 3, heads, each]), perm=[2, 0, 3, 1, 4])
        parts = []
        for index in range(3):
            bounds = [net.constant([value], np.int64) for value in (index, index + 1, 0, 1)]
            parts.append(net.node("Squeeze", net.node("Slice", stacked, *bounds), net.constant([0], np.int64)))
    elif form == "fused split":
        first = net.node("Split", packed, channels=width, outputs=3, axis=-1)
        parts = [_heads(net, name, heads, [0, 2, 1, 3]) for name in (first, f"{first}.1", f"{first}.2")]
    else:  # heads outermost: each has its queries, keys and values side by side
        turned = net.node("Transpose", reshaped(net, packed, [0, -1, heads, 3 * each]), perm=[0, 2, 1, 3])
        first = net.node("Split", turned, net.constant([each] * 3, np.int64), outputs=3, axis=3)
        parts = [first, f"{first}.1", f"{first}.2"]
    return [parts[0], net.node("Transpose", parts[1], perm=[0, 1, 3, 2]), parts[2]]


def attention(net: Net, x: str, width: int, heads: int, form: str = "separate", mask: Any = None) -> str:
    """Self-attention over (N, S, C), with its projection back to C channels."""
    query, key, value = _queries_keys_values(net, x, width, heads, form)
    scores = net.node("MatMul", net.node("Mul", query, net.constant((width // heads) ** -0.5)), key)
    if mask is not None:
        scores = net.node("Add", scores, net.constant(mask))
    mixed = net.node("MatMul", net.node("Softmax", scores, axis=-1), value)
    joined = reshaped(net, net.node("Transpose", mixed, perm=[0, 2, 1, 3]), [0, -1, width], width)
    return net.matmul(joined, net.channels[x])


def recurrent(net: Net, x: str, hidden: int, op: str = "LSTM", directions: int = 2, state: str | None = None) -> str:
    """Over (N, S, C), to (N, S, directions · hidden), from a state."""
    gates, ins = {"LSTM": 4, "GRU": 3, "RNN": 1}[op], net.channels[x]
    weights = [
        net.weight(directions, gates * hidden, ins, fan_in=2 * ins),
        net.weight(directions, gates * hidden, hidden, fan_in=2 * hidden),
        net.constant(net.rng.uniform(-0.5, 0.5, (directions, 2 * gates * hidden))),
    ]
    if state is not None:
        weights += ["", state]
    kind = {"direction": "bidirectional"} if directions == 2 else {}
    turned = net.node("Transpose", x, perm=[1, 0, 2])
    y = net.node(op, turned, *weights, channels=hidden, hidden_size=hidden, **kind)
    return reshaped(net, net.node("Transpose", y, perm=[2, 0, 1, 3]), [0, 0, -1], directions * hidden)
