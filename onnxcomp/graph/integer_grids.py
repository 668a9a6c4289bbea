"""The grids that an integer plan ends up with, once ranges are chosen: what shares integers, and at what price."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph.edit import output_ids
from onnxcomp.graph.integer_ops import GATE_GRID, RECTIFIERS, ScalarAffine
from onnxcomp.graph.integer_plan import IntegerPlan
from onnxcomp.linalg.ranges import grid

__all__ = ["SettledGrids", "settle", "unequal_concats"]

Grid = tuple[float, int]
LEVELS = 255
# A range may grow by this part so that zero, moved by a constant, is still a level.
_GROWTH = 1 / 16
# A result whose levels lie this much further apart than those of an input has lost two bits of it.
_UNEQUAL = 4.0


@dataclass
class SettledGrids:
    """Of one plan.

    Attributes:
        grids: scale and zero point, by ``id`` of each tensor of the plan.
        shared: ``id`` of the tensors that are other tensors' integers, read on another grid.
        missing: by ``id`` of those, what their operator adds beyond what reading adds, at most half a level.
    """

    grids: dict[int, Grid] = field(default_factory=dict)
    shared: set[int] = field(default_factory=set)
    missing: dict[int, float] = field(default_factory=dict)


def settle(plan: IntegerPlan, ranges: Mapping[int, Grid]) -> SettledGrids:
    """Grids for all tensors of a plan.

    y = a · x + b needs no kernel where the integers of x serve for y: with the scale a · s, and the zero point
    moved by b / (a · s), rounded. Zero has to stay among the levels, for padding; the range of x grows a little
    where that makes it so, else y gets a grid of its own and is computed.

    Args:
        plan: from ``make_plan``.
        ranges: scale and zero point by ``id`` of the plan's roots.
    """
    settled = SettledGrids()
    wanted = dict(ranges)
    for tensor in plan.tensors:
        affine = plan.rereads.get(id(tensor))
        if affine is not None and affine.offset and _may_grow(plan, affine.source):
            wanted[id(affine.source)] = _with_level(wanted[id(affine.source)], -affine.offset / affine.slope)
    for tensor in plan.tensors:
        key = id(tensor)
        if key in plan.given:
            settled.grids[key] = plan.given[key].scale, plan.given[key].zero
        elif key in plan.gates:
            settled.grids[key] = GATE_GRID
        elif key in plan.moves:
            settled.grids[key] = settled.grids[id(plan.moves[key])]
        elif key in plan.rereads:
            _reread(settled, tensor, plan.rereads[key])
        else:
            settled.grids[key] = wanted[key]
    return settled


def _may_grow(plan: IntegerPlan, tensor: gs.Tensor) -> bool:
    """Whether the tensor has a range of its own, which no rectifier limits: its kernel clips by the levels it has."""
    own = plan.roots[id(tensor)] is tensor and not plan.is_known(tensor)
    return own and not any(node.op in RECTIFIERS for node in tensor.inputs)


def _with_level(current: Grid, value: float) -> Grid:
    """The grid, or a slightly coarser one, if that makes it reach the value."""
    scale, zero = current
    low, high = -zero * scale, (LEVELS - zero) * scale
    room = _GROWTH * (high - low)
    if low <= value <= high or not low - room <= value <= high + room:
        return current
    return grid(min(low, value), max(high, value))


def _reread(settled: SettledGrids, tensor: gs.Tensor, affine: ScalarAffine) -> None:
    source, zero = settled.grids[id(affine.source)]
    scale = source * affine.slope
    representable = np.finfo(np.float32).tiny <= scale <= np.finfo(np.float32).max
    steps = round(affine.offset / scale) if representable else 0
    if representable and 0 <= zero - steps <= LEVELS:
        settled.grids[id(tensor)] = (scale, zero - steps)
        settled.shared.add(id(tensor))
        if affine.offset:
            settled.missing[id(tensor)] = affine.offset - steps * scale
    else:
        low, high = (scale * level + affine.offset for level in (-zero, LEVELS - zero))
        settled.grids[id(tensor)] = grid(low, high)


def unequal_concats(plans: Iterable[IntegerPlan], ranges: Mapping[int, Grid]) -> set[int]:
    """``id`` of each Concat that would ruin what others than integer kernels see of it.

    A detection head concatenates box coordinates of 0 … 640 with scores of 0 … 1: on one grid of 256 levels all
    scores are 0. Layers behind it have to read one grid; everybody else need not. (Where only integer kernels read
    it, it makes no difference whether it is rounded before or behind the Concat.)

    Args:
        plans: from ``make_plans``.
        ranges: see ``settle``.
    """
    found = set()
    for plan in plans:
        grids, outputs = settle(plan, ranges).grids, output_ids(plan.graph)
        for tensor in plan.tensors:
            node = plan.kernels.get(id(tensor))
            if node is None or node.op != "Concat":
                continue
            least = min(grids[id(item)][0] for item in node.inputs)
            if grids[id(tensor)][0] > _UNEQUAL * least and _seen_in_float(plan, tensor, outputs):
                found.add(id(node))
    return found


def _seen_in_float(plan: IntegerPlan, tensor: gs.Tensor, outputs: set[int]) -> bool:
    """Whether a reader that does not run on integers gets values that were rounded on this grid."""
    layers = {id(site.layer.node) for site in plan.sites}
    results = defaultdict(list)
    for item in plan.tensors:
        if (kernel := plan.kernels.get(id(item))) is not None and id(kernel) not in layers:
            results[id(kernel)].append(item)
    pending, seen = [tensor], set[int]()
    while pending:
        item = pending.pop()
        if id(item) not in seen:
            seen.add(id(item))
            if id(item) in outputs or any(id(node) not in plan.readers for node in item.outputs):
                return True
            pending += [result for node in item.outputs for result in results[id(node)]]
    return False
