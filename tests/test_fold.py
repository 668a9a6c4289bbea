"""fold: graphs before and after as text, and the same outputs on random graphs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.codec.origins import nested_graphs
from onnxcomp.context import Context, Decision
from onnxcomp.graph.constants import value_of
from onnxcomp.model import Model
from onnxcomp.passes.fold import Fold
from onnxcomp.runtime import feeds, session
from onnxcomp.runtime.target import Target
from tests.zoo import each_model, zoo_model

Array = np.ndarray[Any, Any]


def build(body: str, arrays: dict[str, Array] | None = None, opset: int = 17) -> Model:
    """A model of ONNX's textual graph syntax; ``arrays`` become initializers."""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\n{body}')
    for name, array in (arrays or {}).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    onnx.checker.check_model(proto)
    return Model.from_proto(proto)


def fold(model: Model) -> list[Decision]:
    """Run the pass and check the result's validity."""
    context = Context(target=Target.parse("x86-avx2"), scope="fold")
    Fold().run(model, context)
    onnx.checker.check_model(model.proto(), full_check=True)
    return context.decisions


def text(model: Model) -> list[str]:
    """Each node of the main graph as ``outputs = Op(inputs)``."""
    return [
        f"{', '.join(t.name for t in node.outputs)} = {node.op}({', '.join(t.name for t in node.inputs)})"
        for node in model.graph.nodes
    ]


def same_outputs(before: bytes, model: Model, inputs: dict[str, Array], tolerance: float = 1e-5) -> None:
    """Both give the same values in both optimization modes of the runtime."""
    for optimize in (False, True):
        expected = session.run(session.create(before, optimize=optimize), inputs)
        actual = session.run(session.create(model, optimize=optimize), inputs)
        assert list(expected) == list(actual)
        for name, value in expected.items():
            scale = max(1.0, float(np.abs(value).max(initial=0)))
            np.testing.assert_allclose(actual[name], value, rtol=tolerance, atol=tolerance * scale, err_msg=name)


def conv_arrays(rng: np.random.Generator, outs: int = 6, ins: int = 4) -> dict[str, Array]:
    return {
        "w": rng.standard_normal((outs, ins, 3, 3)).astype(np.float32),
        "b": rng.standard_normal(outs).astype(np.float32),
        **bn_arrays(rng, outs),
    }


def bn_arrays(rng: np.random.Generator, channels: int) -> dict[str, Array]:
    return {
        "scale": rng.standard_normal(channels).astype(np.float32),
        "shift": rng.standard_normal(channels).astype(np.float32),
        "mean": rng.standard_normal(channels).astype(np.float32),
        "var": rng.uniform(0.1, 2, channels).astype(np.float32),
    }


# -- rule 1: Constant nodes --------------------------------------------------------------------------------


def test_constant_nodes_become_initializers() -> None:
    model = build("""
        g (float[N, 2] x) => (float[N, 3] y) {
            w = Constant<value = float[2, 3] {1, 2, 3, 4, 5, 6}>()
            two = Constant<value_float = 2.0>()
            h = MatMul(x, w)
            y = Mul(h, two)
        }""")
    before = model.serialize()
    fold(model)
    assert text(model) == ["h = MatMul(x, w)", "y = Mul(h, two)"]
    assert {t.name for t in model.proto().graph.initializer} == {"w", "two"}
    same_outputs(before, model, {"x": np.ones((3, 2), np.float32)})


def test_constant_that_is_an_output_stays_a_node() -> None:
    model = build("""
        g (float[N] x) => (float[N] y, float[2] c) {
            c = Constant<value = float[2] {1, 2}>()
            y = Relu(x)
        }""")
    fold(model)
    assert text(model) == ["c = Constant()", "y = Relu(x)"]


BODIES = """
    g (bool p, float[2, 2] x) => (float[2, 2] y) {
        outer = Constant<value = float[2, 2] {1, 0, 0, 1}>()
        y = If(p) <
            then_branch = a () => (float[2, 2] t) {
                w = Constant<value = float[2, 2] {1, 2, 3, 4}>()
                one = Constant<value_float = 1.0>()
                sum = Add(one, one)
                m = MatMul(x, w)
                t = Mul(m, sum)
            },
            else_branch = b () => (float[2, 2] e) { e = MatMul(x, outer) }
        >
    }"""


def test_bodies_are_folded_inside_and_outer_constants_are_not_copied_into_them() -> None:
    model = build(BODIES)
    before = model.serialize()
    fold(model)
    then = model.graph.nodes[-1].attrs["then_branch"]
    assert [node.op for node in then.nodes] == ["MatMul", "Mul"]
    assert text(model)[0] == "outer = Constant()"
    for condition in (True, False):
        same_outputs(before, model, {"p": np.array(condition), "x": np.eye(2, dtype=np.float32)})


# -- rule 2: constant subgraphs ----------------------------------------------------------------------------


def test_weights_computed_from_constants_are_evaluated() -> None:
    rng = np.random.default_rng(0)
    stored = rng.standard_normal((24, 32)).astype(np.float32)
    model = build(
        """
        g (float[N, 32] x) => (float[N, 24] y) {
            wt = Transpose<perm = [1, 0]>(w)
            ws = Mul(wt, s)
            y = MatMul(x, ws)
        }""",
        {"w": stored, "s": np.array(0.5, np.float32)},
    )
    before = model.serialize()
    decisions = fold(model)
    assert text(model) == ["y = MatMul(x, ws)"]
    np.testing.assert_array_equal(value_of(model.graph.nodes[0].inputs[1]), stored.T * np.float32(0.5))
    assert [(d.layer, d.action, d.reason) for d in decisions] == [
        ("Transpose:wt", "folded", "it is computed from constants, or nothing needs it"),
        ("MatMul:y", "folded", "weight computed from constants"),
    ]
    same_outputs(before, model, {"x": rng.standard_normal((2, 32)).astype(np.float32)})


@pytest.mark.parametrize(
    ("node", "arrays"),
    [
        ("big = ConstantOfShape(shape)", {"shape": np.array([64, 64], np.int64)}),
        ("big = Expand(one, shape)", {"one": np.ones(1, np.float32), "shape": np.array([64, 64], np.int64)}),
        ("big = RandomUniform<shape = [1, 1], seed = 1.0>()", {}),
        ("big = DequantizeLinear(q, s)", {"q": np.ones((1, 1), np.int8), "s": np.array(0.1, np.float32)}),
    ],
)
def test_growing_random_and_dequantizing_nodes_stay(node: str, arrays: dict[str, Array]) -> None:
    model = build(f"g (float[64, 64] x) => (float[64, 64] y) {{ {node} y = Add(x, big) }}", arrays)
    before = text(model)
    fold(model)
    assert text(model) == before


def test_a_weight_that_is_used_in_two_layouts_is_stored_once() -> None:
    w = np.ones((64, 64), np.float32)
    model = build(
        """
        g (float[N, 64] x) => (float[N, 64] y) {
            h = MatMul(x, w)
            wt = Transpose<perm = [1, 0]>(w)
            y = MatMul(h, wt)
        }""",
        {"w": w},
    )
    size = len(model.serialize())
    fold(model)
    assert "wt = Transpose(w)" in text(model)
    assert len(model.serialize()) <= size


# -- rule 3: shapes ----------------------------------------------------------------------------------------


def test_static_shape_arithmetic_becomes_constant() -> None:
    model = build(
        """
        g (float[2, 3, 4] x) => (float[2, 12] y) {
            s = Shape(x)
            i = Constant<value = int64[1] {0}>()
            n = Gather(s, i)
            rest = Constant<value = int64[1] {-1}>()
            to = Concat<axis = 0>(n, rest)
            y = Reshape(x, to)
        }"""
    )
    fold(model)
    assert text(model) == ["y = Reshape(x, to)"]
    np.testing.assert_array_equal(value_of(model.graph.nodes[0].inputs[1]), [2, -1])


def test_dynamic_dimensions_stay_computed_and_static_ones_of_the_same_shape_fold() -> None:
    model = build(
        """
        g (float[N, 6, 4] x) => (float[P, Q, R] y) {
            s = Shape(x)
            n = Gather(s, zero)
            c = Slice(s, one, two)
            to = Concat<axis = 0>(n, c, rest)
            y = Reshape(x, to)
        }""",
        {
            "zero": np.array([0], np.int64),
            "one": np.array([1], np.int64),
            "two": np.array([2], np.int64),
            "rest": np.array([-1], np.int64),
        },
    )
    before = model.serialize()
    fold(model)
    assert text(model) == [
        "s = Shape(x)",
        "n = Gather(s, zero)",
        "to = Concat(n, c, rest)",
        "y = Reshape(x, to)",
    ]
    for batch in (1, 5):
        same_outputs(before, model, {"x": np.arange(batch * 24, dtype=np.float32).reshape(batch, 6, 4)})


def test_stale_shapes_of_inner_tensors_are_not_believed() -> None:
    model = build("""
        g (float[N, 4] x) => (int64[2] y) {
            h = Relu(x)
            s = Shape(h)
            y = Neg(s)
        }""")
    proto = model.proto()
    proto.graph.value_info.append(onnx.helper.make_tensor_value_info("h", onnx.TensorProto.FLOAT, [1, 4]))
    model = Model.from_proto(proto)
    fold(model)
    assert "s = Shape(h)" in text(model)


# -- rule 4: affine maps -----------------------------------------------------------------------------------


def test_batch_normalization_moves_into_the_convolution() -> None:
    rng = np.random.default_rng(1)
    model = build(
        """
        g (float[N, 4, 8, 8] x) => (float[N, 6, 8, 8] y) {
            c = Conv<pads = [1, 1, 1, 1]>(x, w, b)
            n = BatchNormalization(c, scale, shift, mean, var)
            y = Relu(n)
        }""",
        conv_arrays(rng),
    )
    before = model.serialize()
    decisions = fold(model)
    assert text(model) == ["n = Conv(x, w, b)", "y = Relu(n)"]
    assert "BatchNormalization BatchNormalization:n folded in" in decisions[0].reason
    same_outputs(before, model, {"x": rng.standard_normal((2, 4, 8, 8)).astype(np.float32)})


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        # the convolution's output is read elsewhere
        (
            """g (float[N, 4, 8, 8] x) => (float[N, 6, 6, 6] y, float[N, 6, 6, 6] c) {
                c = Conv(x, w, b)
                y = BatchNormalization(c, scale, shift, mean, var) }""",
            "nothing to fold",
        ),
        # the weight is used twice
        (
            """g (float[N, 4, 8, 8] x) => (float[N, 6, 6, 6] y, float[N, 6, 6, 6] d) {
                c = Conv(x, w, b)
                y = BatchNormalization(c, scale, shift, mean, var)
                d = Conv(x, w) }""",
            "BatchNormalization BatchNormalization:y follows, but the weight is shared with another node or output",
        ),
        # a factor for each position is no factor for each channel
        (
            """g (float[N, 4, 8, 8] x) => (float[N, 6, 6, 6] y) {
                c = Conv(x, w, b)
                y = Mul(c, scale) }""",
            "nothing to fold",
        ),
        # a constant minus the result
        (
            """g (float[N, 4, 8, 8] x) => (float[N, 6, 6, 6] y) {
                c = Conv(x, w, b)
                y = Sub(scale, c) }""",
            "nothing to fold",
        ),
    ],
)
def test_affine_maps_that_must_stay(body: str, reason: str) -> None:
    rng = np.random.default_rng(2)
    arrays = conv_arrays(rng)
    if "BatchNormalization" not in body:
        arrays["scale"] = rng.standard_normal((6, 1, 1) if "Sub" in body else (1, 1, 1, 6)).astype(np.float32)
    model = build(body, arrays)
    before = text(model)
    decisions = fold(model)
    assert text(model) == before
    assert decisions[0].action == "skipped"
    assert decisions[0].reason == reason


def test_gemm_with_alpha_and_beta_absorbs() -> None:
    rng = np.random.default_rng(3)
    model = build(
        """
        g (float[N, 5] x) => (float[N, 6] y) {
            h = Gemm<alpha = 0.5, beta = 2.0, transB = 1>(x, w, b)
            n = BatchNormalization(h, scale, shift, mean, var)
            s = Div(n, d)
            y = Sub(s, e)
        }""",
        {
            "w": rng.standard_normal((6, 5)).astype(np.float32),
            "b": rng.standard_normal(6).astype(np.float32),
            "d": np.array([[2.0]], np.float32),
            "e": rng.standard_normal((1, 6)).astype(np.float32),
            **bn_arrays(rng, 6),
        },
    )
    before = model.serialize()
    fold(model)
    assert text(model) == ["y = Gemm(x, w, b)"]
    same_outputs(before, model, {"x": rng.standard_normal((4, 5)).astype(np.float32)})


def test_affine_maps_move_into_the_convolutions_behind_them() -> None:
    rng = np.random.default_rng(4)
    arrays = {
        "f": np.array([0.3], np.float32),
        "g": np.array(-0.7, np.float32),
        "p": rng.uniform(0.5, 2, (1, 4, 1, 1)).astype(np.float32),
        "q": rng.standard_normal((4, 1, 1)).astype(np.float32),
        "w": rng.standard_normal((4, 4, 3, 3)).astype(np.float32),
        "d": rng.standard_normal((4, 1, 3, 3)).astype(np.float32),
        "v": rng.standard_normal((5, 4, 1, 1)).astype(np.float32),
    }
    model = build(
        """
        g (float[N, 4, 8, 8] x) => (float[N, 5, 6, 6] y, float[N, 4, 8, 8] z) {
            r = Relu(x)
            a = Mul(f, r)
            b = Add(a, g)
            z = Conv<pads = [1, 1, 1, 1]>(b, w)
            s = Sigmoid(z)
            c = Mul(s, p)
            e = Conv<group = 4>(c, d)
            t = Tanh(e)
            h = Add(t, q)
            y = Conv(h, v)
        }""",
        arrays,
    )
    before = model.serialize()
    fold(model)
    assert [line for line in text(model) if "Mul" in line] == []
    assert [line.split("(")[0] for line in text(model) if "Add" in line] == ["b = Add"]
    same_outputs(before, model, {"x": rng.standard_normal((2, 4, 8, 8)).astype(np.float32)})


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("y = Div(c, six)", ["y = HardSigmoid(x)"]),
        ("m = Mul(x, c) y = Mul(m, sixth)", ["y_gate = HardSigmoid(x)", "y = Mul(x, y_gate)"]),
        ("m = Mul(c, x) y = Div(m, three)", None),
        ("m = Mul(c, r) y = Div(m, six)", None),
    ],
)
def test_hard_swishes_are_recognized(body: str, expected: list[str] | None) -> None:
    constants = {"zero": 0.0, "three": 3.0, "six": 6.0, "sixth": 1 / 6}
    used = {name: np.array(v, np.float32) for name, v in constants.items()}
    inner = f"r = Relu(x) o = Neg(r) a = Add(x, three) c = Clip(a, zero, six) {body}"
    model = build(f"g (float[N, 4] x) => (float[N, 4] y, float[N, 4] o) {{ {inner} }}", used)
    before, lines = model.serialize(), text(model)
    fold(model)
    assert text(model) == (lines if expected is None else lines[:2] + expected)
    same_outputs(before, model, {"x": np.linspace(-5, 5, 40, dtype=np.float32).reshape(10, 4)})


# -- rule 5: nodes that do nothing -------------------------------------------------------------------------


def test_noops_go_and_the_names_of_outputs_stay() -> None:
    model = build(
        """
        g (float[2, 3] x) => (float[2, 3] y, float[2, 3] z) {
            i = Identity(x)
            r = Relu(i)
            d, m = Dropout(r)
            c = Cast<to = 1>(d)
            t = Transpose<perm = [1, 0]>(c)
            u = Transpose<perm = [1, 0]>(t)
            v = Sqrt(u)
            s = Reshape(v, shape)
            y = Identity(s)
            z = Identity(x)
        }""",
        {"shape": np.array([2, 3], np.int64)},
    )
    before = model.serialize()
    fold(model)
    assert text(model) == ["r = Relu(x)", "y = Sqrt(r)", "z = Identity(x)"]
    same_outputs(before, model, {"x": np.arange(6, dtype=np.float32).reshape(2, 3)})


def test_consecutive_reshapes_become_one_unless_the_second_copies_a_dimension() -> None:
    body = """
        g (float[N, 6] x) => (float[P, Q, R] y) {
            a = Reshape(x, s1)
            y = Reshape(a, s2)
        }"""
    first = np.array([-1, 2, 3], np.int64)
    merged = build(body, {"s1": first, "s2": np.array([-1, 3, 2], np.int64)})
    fold(merged)
    assert text(merged) == ["y = Reshape(x, s2)"]
    copying = build(body, {"s1": first, "s2": np.array([0, 3, -1], np.int64)})
    fold(copying)
    assert len(text(copying)) == 2


def test_unused_nodes_go_and_unused_inputs_stay() -> None:
    model = build("g (float[N] x, float[N] unused) => (float[N] y) { y = Relu(x) dead = Exp(unused) }")
    fold(model)
    assert text(model) == ["y = Relu(x)"]
    assert [tensor.name for tensor in model.graph.inputs] == ["x", "unused"]


# -- properties --------------------------------------------------------------------------------------------

STEPS = {
    "conv": "{y} = Conv<pads = [1, 1, 1, 1]>({x}, w{i}, b{i})",
    "depthwise": "{y} = Conv<pads = [1, 1, 1, 1], group = 4>({x}, g{i})",
    "transposed": "{y} = ConvTranspose<pads = [1, 1, 1, 1], group = 2>({x}, t{i})",
    "bn": "{y} = BatchNormalization({x}, scale{i}, shift{i}, mean{i}, var{i})",
    "mul": "{y} = Mul({x}, f{i})",
    "add": "{y} = Add(o{i}, {x})",
    "sub": "{y} = Sub({x}, k{i})",
    "relu": "{y} = Relu({x})",
    "identity": "{y} = Identity({x})",
    "residual": "{y} = Add({x}, x)",
    "transpose": "{y} = Transpose<perm = [0, 1, 3, 2]>({x})",
    "reshape": "s{i} = Shape({x})  {y} = Reshape({x}, s{i})",
}


def step_arrays(rng: np.random.Generator, index: int) -> dict[str, Array]:
    shapes = {
        "w": (4, 4, 3, 3),
        "b": (4,),
        "g": (4, 1, 3, 3),
        "t": (4, 2, 3, 3),
        "scale": (4,),
        "shift": (4,),
        "mean": (4,),
        "f": (1, 4, 1, 1),
        "o": (4, 1, 1),
        "k": (),
    }
    arrays = {f"{name}{index}": 0.3 * rng.standard_normal(shape) for name, shape in shapes.items()}
    arrays[f"var{index}"] = rng.uniform(0.5, 2, 4)
    return {name: np.asarray(array, np.float32) for name, array in arrays.items()}


@settings(max_examples=30, deadline=None)
@given(
    steps=st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=10),
    seed=st.integers(0, 2**16),
    batch=st.sampled_from(["N", "2"]),
)
def test_outputs_are_the_same_on_random_chains(steps: list[str], seed: int, batch: str) -> None:
    rng = np.random.default_rng(seed)
    lines, arrays, last = [], {}, "x"
    for index, step in enumerate(steps):
        lines.append(STEPS[step].format(x=last, y=f"y{index}", i=index))
        arrays.update(step_arrays(rng, index))
        last = f"y{index}"
    used = {name: array for name, array in arrays.items() if any(name in line for line in lines)}
    signature = f"g (float[{batch}, 4, 5, 5] x) => (float[A, B, C, D] {last})"
    model = build(signature + " { " + "\n".join(lines) + " }", used)
    before = model.serialize()
    fold(model)
    same_outputs(before, model, {"x": rng.standard_normal((2, 4, 5, 5)).astype(np.float32)})
    once = model.serialize()
    fold(model)
    assert model.serialize() == once, "folding again changes nothing"


# -- real models -------------------------------------------------------------------------------------------


@pytest.mark.zoo
@each_model
def test_real_models_compute_the_same(name: str) -> None:
    model = Model.load(zoo_model(name))
    before = model.serialize()
    inputs = dict(feeds.synthetic(model, 0))
    decisions = fold(model)
    same_outputs(before, model, inputs, tolerance=1e-4)
    assert len(model.serialize()) <= len(before)
    assert decisions


def test_initializers_that_nothing_reads_go() -> None:
    model = build("g (float[N, 2] x) => (float[N, 2] y) { y = Relu(x) }", {"idle": np.ones((9, 9), np.float32)})
    assert [tensor.name for tensor in model.proto().graph.initializer] == ["idle"]
    fold(model)
    assert not model.proto().graph.initializer


def test_batch_normalization_and_scales_are_folded_in_bodies_too() -> None:
    rng = np.random.default_rng(0)
    arrays = {**conv_arrays(rng), "zero": np.float32(0), "half": np.float32(0.5), "six": np.float32(6)}
    arrays["three"] = np.float32(3)
    model = build(
        """
        g (float[2, 4, 5, 5] x) => (float[2, 6, 3, 3] y) {
            m = Mul(x, half)
            s = ReduceSum<keepdims = 0>(x)
            c = Greater(s, zero)
            y = If(c) <
                then_branch = t () => (float[2, 6, 3, 3] r) {
                    a = Conv(m, w)
                    r = BatchNormalization(a, scale, shift, mean, var)
                },
                else_branch = e () => (float[2, 6, 3, 3] r) {
                    a = Conv(m, w2)
                    p = Add(a, three)
                    q = Clip(p, zero, six)
                    r = Div(q, six)
                }
            >
        }""",
        {**arrays, "w2": rng.standard_normal((6, 4, 3, 3)).astype(np.float32)},
    )
    before = model.serialize()
    fold(model)
    bodies = [graph for graph in nested_graphs(model.graph) if graph is not model.graph]
    assert [[node.op for node in body.nodes] for body in bodies] == [["Conv"], ["Conv", "HardSigmoid"]]
    assert "Mul" not in {node.op for node in model.graph.nodes}
    x = rng.standard_normal((2, 4, 5, 5)).astype(np.float32)
    for sign in (1, -1):
        same_outputs(before, model, {"x": sign * np.abs(x)})


def test_what_reaches_into_a_body_is_not_taken_for_a_part_of_it() -> None:
    """The Add before, and the Div behind, stand in another graph than the Clip."""
    arrays = {name: np.float32(value) for name, value in (("three", 3), ("zero", 0), ("six", 6))}
    model = build(
        """
        g (float[4] x, bool b) => (float[4] y) {
            p = Add(x, three)
            q = Clip(p, zero, six)
            h = Mul(x, q)
            y = If(b) <
                then_branch = t () => (float[4] r) { r = Div(h, six) },
                else_branch = e () => (float[4] r) {
                    k = Add(x, three)
                    r = Identity(k)
                }
            >
        }""",
        arrays,
    )
    before = model.serialize()
    fold(model)
    for taken in (True, False):
        same_outputs(before, model, {"x": np.arange(-4, 4, 2, dtype=np.float32), "b": np.array(taken)})
