"""One small model for each construct of the ONNX format.

Every model has a weight of its own, named ``w``, and a layer ``elsewhere`` that has nothing to do with the construct.
"""

from tests.constructs import model, nested, nodes, tensors
from tests.constructs.building import CONSTRUCTS, from_newer_onnx, surround

__all__ = ["CONSTRUCTS", "from_newer_onnx", "model", "nested", "nodes", "surround", "tensors"]
