"""Training steps of one network with onnxcomp, torch and onnxsim; as a command, prints JSON.

python -m harness.stepping times MODEL BATCH THREADS ROUNDS
python -m harness.stepping memory MODEL BATCH THREADS TOOL
python -m harness.stepping gradients MODEL BATCH THREADS

A step is the loss and the gradients of all weights for one batch: the forward and the backward pass. The loss is the
Kullback-Leibler divergence from probabilities that are drawn at random.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from harness.zoo import MODELS, ZooModel
from onnxcomp.context import Context
from onnxcomp.graph.opset import upgrade_opset
from onnxcomp.graph.parameters import parameters
from onnxcomp.model import Model
from onnxcomp.passes.fold import Fold
from onnxcomp.runtime.session import create, run
from onnxcomp.runtime.target import Target

__all__ = ["MAKERS", "Work", "errors"]

Array = np.ndarray[Any, Any]
Step = Callable[[], object]

OPSET = 13
STEPS = 4  # that memory is measured over
TEMPERATURE = 2.0  # so that no class is certain
NEGLIGIBLE = 1e-6  # beside the largest gradient: such a one is rounding errors


@dataclass(frozen=True)
class Work:
    """A network and a batch.

    Attributes:
        proto: constants folded, as ``recover`` takes it.
        values: of all trained tensors, by name.
        feeds: one batch of the calibration samples.
        output: name of the logits.
        target: probabilities.
        threads: of all tools.
    """

    proto: onnx.ModelProto
    values: dict[str, Array]
    feeds: dict[str, Array]
    output: str
    target: Array
    threads: int

    @classmethod
    def of(cls, zoo: ZooModel, batch: int, threads: int) -> Work:
        """Read and prepare what all tools share."""
        model = Model.load(zoo.path)
        upgrade_opset(model, OPSET)
        Fold().run(model, Context(target=Target.host()))
        trained = {parameter.name for parameter in parameters(model)}
        proto = model.proto()
        values = {item.name: numpy_helper.to_array(item) for item in proto.graph.initializer if item.name in trained}
        (name,) = [value.name for value in proto.graph.input if value.name not in values]
        with np.load(zoo.data) as stored:
            feeds = {name: np.ascontiguousarray(stored[name][:batch])}
        output = proto.graph.output[0].name
        logits = run(create(model), feeds)[output] / TEMPERATURE
        logits += np.random.default_rng(0).standard_normal(logits.shape)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        target = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
        return cls(proto, values, feeds, output, target, threads)


def onnxcomp_step(work: Work) -> Step:
    """By the backward graph of ``recover``."""
    from onnxcomp.gradient import Term
    from onnxcomp.runtime.gradients import Gradients

    gradients = Gradients(Model.from_proto(work.proto), list(work.values), [Term(work.output, "kl")], work.threads)
    return lambda: gradients.step(work.values, work.feeds, {work.output: work.target})


def torch_step(work: Work, channels_last: bool = False, double: bool = False) -> Step:
    """By autograd."""
    import torch

    from harness.torch_network import TorchNetwork

    torch.set_num_threads(work.threads)
    network = TorchNetwork(work.proto, set(work.values))
    (images,) = (torch.tensor(value) for value in work.feeds.values())
    target = torch.tensor(work.target)
    if channels_last:
        network, images = network.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
    if double:
        network, images, target = network.double(), images.double(), target.double()

    def step() -> Any:
        network.zero_grad()
        found = torch.log_softmax(network(images), -1)
        torch.nn.functional.kl_div(found, target, reduction="batchmean").backward()
        return network

    return step


def onnxsim_step(work: Work) -> Step:
    """By its TrainingLoop, whose step ends with the update of the weights."""
    from harness.peers.onnxsim_training import TARGET, training_loop

    (feeds,) = [{**work.feeds, TARGET: work.target}]
    loop = training_loop(work.proto, list(work.values), len(work.target), optimizer="sgd_momentum")
    return lambda: loop(feeds, lr=0.0)


MAKERS: dict[str, Callable[[Work], Step]] = {
    "onnxcomp": onnxcomp_step,
    "torch": torch_step,
    "torch-channels-last": lambda work: torch_step(work, channels_last=True),
    "onnxsim": onnxsim_step,
}


def times(work: Work, rounds: int) -> dict[str, list[float] | str]:
    """Seconds of a step in each round, by tool; or why it has none.

    In a round each tool has one turn, in an order drawn anew; a turn starts with an untimed step.
    """
    steps: dict[str, Step] = {}
    found: dict[str, list[float] | str] = {}
    for name, make in MAKERS.items():
        try:
            steps[name] = make(work)
            steps[name]()
        except Exception as error:  # of a peer; told in its row
            if name in ("onnxcomp", "torch"):
                raise
            steps.pop(name, None)
            found[name] = " ".join(str(error).split()) or type(error).__name__
    measured: dict[str, list[float]] = {name: [] for name in steps}
    random = np.random.default_rng(0)
    for _ in range(rounds):
        for index in random.permutation(len(steps)):
            name = list(steps)[index]
            steps[name]()
            start = time.perf_counter()
            steps[name]()
            measured[name].append(time.perf_counter() - start)
    return {name: measured.get(name) or found[name] for name in MAKERS}


def memory(work: Work, tool: str) -> int:
    """Bytes that making and running a few steps takes, above what the process holds with the tool imported."""
    if tool.startswith("torch"):
        import torch

        torch.set_num_threads(work.threads)
    elif tool == "onnxsim":
        import onnxsim  # noqa: F401
    before = _peak()
    step = MAKERS[tool](work)
    for _ in range(STEPS):
        step()
    return _peak() - before


def gradients(work: Work) -> dict[str, dict[str, float]]:
    """Errors of the gradients of onnxcomp, and of torch in single precision, against torch in double precision."""
    expected = torch_step(work, double=True)().gradients()  # type: ignore[attr-defined]
    found = {
        "onnxcomp": onnxcomp_step(work)().gradients,  # type: ignore[attr-defined]
        "torch": torch_step(work)().gradients(),  # type: ignore[attr-defined]
    }
    return {name: errors(part, expected) for name, part in found.items()}


def errors(found: dict[str, Array], expected: dict[str, Array]) -> dict[str, float]:
    """Norm of the difference over the norm: of all tensors together, and of the one where it is largest.

    Tensors whose gradient is nothing but noise are left out of the latter.

    Raises:
        ValueError: the tensors are not the same.
    """
    if set(found) != set(expected):
        raise ValueError(f"gradients of different tensors: {sorted(set(found) ^ set(expected))}")
    norms = {name: float(np.linalg.norm(value)) for name, value in expected.items()}
    apart = {name: float(np.linalg.norm(found[name] - value)) for name, value in expected.items()}
    told = [name for name, norm in norms.items() if norm > NEGLIGIBLE * max(norms.values())]
    return {
        "all": math.hypot(*apart.values()) / math.hypot(*norms.values()),
        "worst": max(apart[name] / norms[name] for name in told),
    }


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Parse the command line, print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("times", "memory", "gradients"))
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("batch", type=int)
    parser.add_argument("threads", type=int)
    parser.add_argument("more", nargs="?", help="rounds, or the tool")
    options = parser.parse_args()
    work = Work.of(MODELS[options.model], options.batch, options.threads)
    if options.what == "times":
        print(json.dumps(times(work, int(options.more))))
    elif options.what == "memory":
        print(json.dumps({"bytes": memory(work, options.more)}))
    else:
        print(json.dumps(gradients(work)))


if __name__ == "__main__":
    main()
