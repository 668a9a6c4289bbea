"""What every peer works with: a task, calibration samples, and the model as ONNX Runtime's documentation wants it."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Feeds", "Peer", "Task", "preprocessed", "raised", "told_seconds", "without_unused"]

Feeds = dict[str, Any]

PER_CHANNEL_OPSET = 13  # DequantizeLinear has an axis since


@dataclass(frozen=True)
class Task:
    """One model to make.

    Attributes:
        model: the fp32 original.
        data: its calibration samples, an .npz or a folder of such.
        output: the file to write.
        samples: how many calibration samples to use at most.
    """

    model: Path
    data: Path
    output: Path
    samples: int

    def feeds(self, most: int | None = None) -> Iterator[Feeds]:
        """The first calibration samples as feeds of one sample, labels left out."""
        import numpy as np
        import onnx

        from onnxcomp.arrays import read_npz

        most = self.samples if most is None else min(most, self.samples)
        graph = onnx.load(self.model, load_external_data=False).graph
        names = {value.name for value in graph.input} - {value.name for value in graph.initializer}
        if self.data.is_dir():
            for path in sorted(self.data.glob("*.npz"))[:most]:
                with np.load(path) as stored:
                    yield {name: stored[name] for name in names}
            return
        stored = read_npz(self.data)  # leaves gigabytes of samples to train on where they are
        columns = {name: stored[name] for name in names}
        for index in range(min(most, *(column.shape[0] for column in columns.values()))):
            yield {name: np.asarray(column[np.array([index])]) for name, column in columns.items()}


@dataclass(frozen=True)
class Peer:
    """A tool with a setting.

    Attributes:
        tool: name of its package.
        setting: what the table says.
        make: does the task.
        only: names of the models that it is meant for; empty for all.
        saturating: it makes sense only where 8-bit weights can saturate.
    """

    tool: str
    setting: str
    make: Callable[[Task], None]
    only: tuple[str, ...] = ()
    saturating: bool = False


@contextlib.contextmanager
def told_seconds() -> Iterator[None]:
    """Print how long the tool's own call takes, as the last line of JSON."""
    start = time.perf_counter()
    yield
    print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)


def raised(model: Path, least: int = PER_CHANNEL_OPSET) -> Any:
    """The model in an operator set of at least so much: scales per channel, for example, need 13."""
    import onnx

    proto = onnx.load(model)
    if max(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")) < least:
        proto = onnx.version_converter.convert_version(proto, least)
    return proto


def preprocessed(model: Path) -> Path:
    """What ONNX Runtime's documentation asks for: an opset with scales per channel, then shapes and fusions."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    folder = Path(tempfile.mkdtemp())
    upgraded, ready = folder / "upgraded.onnx", folder / "ready.onnx"
    onnx.save(raised(model), upgraded)
    try:
        quant_pre_process(str(upgraded), str(ready))
    except Exception as error:  # symbolic shape inference gives up on some graphs; the documentation says to skip it
        print(f"without symbolic shape inference: {error}", file=sys.stderr)
        quant_pre_process(str(upgraded), str(ready), skip_symbolic_shape=True)
    return ready


def without_unused(proto: Any) -> Any:
    """The model less the float weights that nothing reads any more; some tools leave them in the file."""
    graph = proto.graph
    if any(attribute.g.node or attribute.graphs for node in graph.node for attribute in node.attribute):
        return proto  # bodies may read them
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    nodes = [node for node in graph.node if node.op_type != "Constant" or node.output[0] in used]
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(kept)
    graph.node.extend(nodes)
    return proto
