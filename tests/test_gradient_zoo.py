"""Gradients of real networks against differences in float64, and against torch for those that come from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcomp.context import Context
from onnxcomp.graph.opset import upgrade_opset
from onnxcomp.graph.parameters import parameters
from onnxcomp.model import Model
from onnxcomp.passes.fold import Fold
from onnxcomp.runtime.session import create
from onnxcomp.runtime.target import Target
from tests.differences import derivative, evaluator, gradients
from tests.zoo import calibration, zoo_model

Array = np.ndarray[Any, Any]
Values = dict[str, Array]

pytestmark = pytest.mark.zoo

NEGLIGIBLE = 1e-6  # beside the largest gradient: such a one is rounding errors
NETWORKS = ["fashion_resnet", "mobilenetv2", "ppocr_rec", "minilm", "ppocr_cls", "ppocr_det", "mnist"]


def _producer(proto: onnx.ModelProto, tensor: str) -> onnx.NodeProto:
    return next(node for node in proto.graph.node if tensor in node.output)


def _prepared(path: Path) -> tuple[onnx.ModelProto, Values]:
    """The model as training takes it, but for a last Softmax or Sigmoid; and its trained tensors."""
    model = Model.load(path)
    Fold().run(model, Context(target=Target.host()))
    upgrade_opset(model, 13)
    names = {parameter.name for parameter in parameters(model)}
    proto = model.proto()
    last = _producer(proto, proto.graph.output[0].name)
    while last.op_type in ("Softmax", "Sigmoid", "Reshape", "Flatten"):
        proto.graph.output[0].name = last.input[0]
        proto.graph.node.remove(last)
        last = _producer(proto, last.input[0])
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    return proto, {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer if t.name in names}


def _target(proto: onnx.ModelProto, feeds: Values) -> tuple[str, Array]:
    (result,) = create(proto, threads=1).run(None, feeds)
    noise = np.random.default_rng(0).standard_normal(result.shape) * result.std()
    return proto.graph.output[0].name, (result + noise).astype(np.float32)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_agree_with_differences(name: str) -> None:
    """Along directions in which every weight has an equal part of the change, so that one wrong one shows."""
    path = zoo_model(name)
    proto, values = _prepared(path)
    feeds = calibration(path, 1).sample()
    found = derivative(proto, list(values), feeds)
    assert not found.frozen
    output, target = _target(proto, feeds)
    _, grads = gradients(found, values, feeds, {output: target})
    forward = evaluator(proto)
    rng = np.random.default_rng(1)
    norms = {key: float(np.linalg.norm(grad)) for key, grad in grads.items()}
    # what the loss does not depend on, such as biases of keys in attention, has rounding errors for gradients
    told = [key for key, norm in norms.items() if norm > NEGLIGIBLE * max(norms.values())]
    for _ in range(2):
        directions = {key: grads[key] * (rng.random(grads[key].shape) < 0.5) for key in told}
        slopes = {key: float((grads[key].astype(float) * part).sum()) for key, part in directions.items()}
        units = {key: part.astype(float) / slopes[key] for key, part in directions.items() if slopes[key]}
        step = 1e-6 * min(np.linalg.norm(values[key]) / np.linalg.norm(unit) for key, unit in units.items())
        ends = [{key: values[key] + sign * step * unit for key, unit in units.items()} for sign in (1, -1)]
        ahead, back = (float(np.mean((forward({**feeds, **end}) - target) ** 2)) for end in ends)
        assert (ahead - back) / (2 * step) == pytest.approx(len(units), rel=5e-4)


@pytest.mark.parametrize("name", ["fashion_resnet_bn", "mobilenetv2_bn"])
def test_gradients_agree_with_torch(name: str) -> None:
    """With BatchNormalization in place, whose running moments are constants there."""
    torch = pytest.importorskip("torch")
    from models.zoo.mobilenetv2 import MobileNetV2
    from models.zoo.resnet import FashionResNet

    path = zoo_model(name)
    proto = onnx.load(path)
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    module = (FashionResNet() if name.startswith("fashion") else MobileNetV2()).double().eval()
    trained = [key for key, _ in module.named_parameters()]
    assert set(trained) <= set(values)
    module.load_state_dict({key: torch.tensor(values[key]) for key in trained if key in values}, strict=False)
    for key, buffer in module.named_buffers():
        if key in values:
            buffer.copy_(torch.tensor(values[key]))
    feeds = next(iter(calibration(path, 2).in_batches(2).feeds()))
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    output, target = _target(proto, feeds)
    (images,) = feeds.values()
    result = module(torch.tensor(images).double())
    torch.nn.functional.mse_loss(result, torch.tensor(target).double()).backward()
    found = derivative(proto, trained, feeds)
    assert not found.frozen
    _, grads = gradients(found, {key: values[key] for key in trained}, feeds, {output: target})
    for key, parameter in module.named_parameters():
        expected = parameter.grad.numpy()
        error = np.linalg.norm(grads[key] - expected) / np.linalg.norm(expected)
        assert error < 1e-3, key
