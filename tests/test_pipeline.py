"""Pipelines: text that reads back, a legal order, and one sentence for every mistake."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Interval, Le, Lt
from hypothesis import given
from hypothesis import strategies as st
from pydantic.fields import FieldInfo

from onnxcomp import Pass, Pipeline
from onnxcomp.errors import UsageError
from onnxcomp.pipeline import recipe_names
from onnxcomp.registry import pass_class, pass_names
from tests import breaking

BUILT_IN = ["equalize", "factorize", "fold", "prune", "quant", "recover", "reorder", "share"]
CLASSES = {name: pass_class(name) for name in BUILT_IN}


def values(annotation: Any, metadata: list[Any]) -> st.SearchStrategy[Any]:
    """Legal values of an option's type, inside its limits."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (Union, types.UnionType):
        return st.one_of([values(argument, metadata) for argument in arguments])
    if hasattr(annotation, "__metadata__"):
        return values(arguments[0], [*metadata, *_flat(annotation.__metadata__)])
    if origin is tuple and arguments[-1] is Ellipsis:
        return st.lists(values(arguments[0], []), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*(values(argument, []) for argument in arguments))
    low = next((m.gt if isinstance(m, Gt) else m.ge for m in metadata if isinstance(m, Gt | Ge)), None)
    high = next((m.lt if isinstance(m, Lt) else m.le for m in metadata if isinstance(m, Lt | Le)), None)
    if annotation is float:
        return st.floats(
            low,
            high,
            exclude_min=any(isinstance(m, Gt) for m in metadata),
            exclude_max=any(isinstance(m, Lt) for m in metadata),
            allow_nan=False,
            allow_infinity=False,
        )
    if annotation is int:
        return st.integers(low, high)
    simple = {str: st.text(), bool: st.booleans(), type(None): st.none()}
    assert annotation in simple, f"teach this test options of type {annotation}"
    return simple[annotation]


def _flat(metadata: Any) -> list[Any]:
    """Limits, out of the Field and Interval that hold them."""
    found: list[Any] = []
    for item in metadata:
        if isinstance(item, FieldInfo):
            found += _flat(item.metadata)
        elif isinstance(item, Interval):
            found += list(item)
        else:
            found.append(item)
    return found


def _of_one_kind(draw: st.DrawFn, options: dict[str, Any]) -> dict[str, Any]:
    """Options of prune that go together: channels with one budget, or zeros among weights."""
    if draw(st.booleans()):
        sparse = draw(st.sampled_from(["element", "2:4", "1:3", "block(8,8)"]))
        kept = ("score",) if ":" in sparse else ("score", "sparsity")
        chosen = {"granularity": sparse} | {name: options[name] for name in kept if name in options}
        return chosen | ({"score": "wanda"} if chosen.get("score") in ("median", "scale") else {})
    budgets = ["flops", "sparsity", "speedup"]
    dropped = {"granularity", *budgets} - {draw(st.sampled_from(budgets))}
    dropped |= {"score"} if options.get("score") == "wanda" else set()
    return {name: value for name, value in options.items() if name not in dropped}


@st.composite
def passes(draw: st.DrawFn) -> Pass:
    """A built-in pass with random legal options."""
    cls = CLASSES[draw(st.sampled_from(BUILT_IN))]
    options = {}
    for name, field in cls.model_fields.items():
        if draw(st.booleans()):
            options[name] = draw(values(field.annotation, _flat(field.metadata)))
    if cls.name == "prune":
        options = _of_one_kind(draw, options)
    if cls.name == "factorize":
        for budget in ("flops", "speedup", "energy", "error"):
            if sum(options.get(name) is not None for name in ("flops", "speedup", "energy", "error")) > 1:
                options.pop(budget, None)
    if cls.name == "quant" and options.get("bits") == 16:
        options = {"bits": 16}  # which few others go with
    if cls.name == "recover" and options.get("parts", 1) > 1:
        options = {name: value for name, value in options.items() if name not in ("checkpoint", "match", "hints")}
    if cls.name == "recover" and options.get("loss") == "ce":
        options.pop("mix", None)
    return cls.with_options(options)


@given(st.lists(passes(), min_size=1, max_size=4).map(Pipeline))
def test_text_reads_back(pipeline: Pipeline) -> None:
    assert Pipeline.parse(str(pipeline)) == pipeline
    assert hash(Pipeline.parse(str(pipeline))) == hash(pipeline)
    assert eval(repr(pipeline), {"Pipeline": Pipeline}) == pipeline


@given(st.lists(passes(), min_size=1, max_size=4).map(Pipeline))
def test_scheduling_keeps_what_was_asked_for_and_is_legal(pipeline: Pipeline) -> None:
    scheduled = pipeline.scheduled()
    stages = [step.stage for step in scheduled.passes]
    assert stages == sorted(stages)
    for step in pipeline.passes:
        assert list(scheduled.passes).count(step) >= list(pipeline.passes).count(step)
    names = {step.name for step in scheduled.passes}
    assert all(set(step.requires) <= names for step in scheduled.passes)
    assert scheduled.scheduled() == scheduled
    assert scheduled.scheduled(keep_order=True) == scheduled


def test_every_built_in_pass_is_tested_here() -> None:
    assert pass_names() == BUILT_IN


# -- reading -------------------------------------------------------------------------------------------------


def test_options_are_python_literals() -> None:
    pipeline = Pipeline.parse(" prune( flops = 0.3,\n granularity='channel'), quant  # eight bits\n, ")
    assert str(pipeline) == "prune(flops=0.3),quant"
    assert Pipeline.parse("reorder(block=[4, 2])") == Pipeline.parse("reorder(block=(4, 2))")
    assert Pipeline.parse("prune(flops=None)") == Pipeline.parse("prune")


def test_pipelines_differ_by_options_and_order() -> None:
    assert Pipeline.parse("prune(flops=0.3)") != Pipeline.parse("prune")
    assert Pipeline.parse("prune,quant") != Pipeline.parse("quant,prune")
    assert Pipeline.parse("prune") != "prune"


UNREADABLE = ["prune(", "prune]", "prune quant", "prune;quant", ",", "my-pass", "\0", "(" * 500, "a:b", "prune]+[quant"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *((text, "write it like prune") for text in UNREADABLE),
        *((text, "is no pass; write it like prune") for text in ("1", "'prune'", "prune.quant", "*prune", "quant()()")),
        (
            "",
            "the pipeline is empty; name passes, separated by commas: equalize, factorize, fold, prune, quant, "
            "recover, reorder, share",
        ),
        ("  ", "the pipeline is empty"),
        ("prun", "there is no pass 'prun'; did you mean 'prune'?"),
        (
            "zzz",
            "there is no pass 'zzz'; the passes are equalize, factorize, fold, prune, quant, recover, reorder, share",
        ),
        ("prune(flop=0.3)", "prune has no option 'flop'; did you mean 'flops'?"),
        ("quant(xyz=1)", "quant has no option 'xyz'; its options are"),
        ("fold(x=1)", "fold has no option 'x'; its options are inline_functions"),
        ("prune(name='x')", "prune has no option 'name'"),
        ("prune(flops=2)", "prune: option flops=2 is not allowed"),
        ("prune(flops=1)", "1 (share of the multiply-accumulates to remove"),
        ("prune(flops=-0.1)", "0"),
        ("prune(flops=1e999)", "prune: option flops=inf is not allowed"),
        ("prune(flops='x')", "prune: option flops='x' is not allowed"),
        ("prune(align=0)", "1"),
        ("prune(flops=0.1, sparsity=0.1)", "prune: flops, sparsity and speedup exclude each other; give one of them"),
        ("quant(ranges='best')", "'auto', 'mse', 'percentile', 'entropy' or 'minmax'"),
        ("reorder(block=3)", "reorder: option block=3 is not allowed"),
        ("reorder(starts=65)", "64"),
        ("prune(0.3)", "prune: options are named, as in prune("),
        ("prune(flops=x)", "prune: option flops=x is no number, text, list or boolean"),
        ("prune(flops=nan)", "is no number"),
        ("prune(flops=__import__('os').getpid())", "is no number, text, list or boolean"),
        ("prune(flops=0.1, flops=0.2)", "is given twice or without a name"),
        ("prune(**{'flops': 0.1})", "is given twice or without a name"),
    ],
)
def test_a_mistake_is_one_sentence(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Pipeline.parse(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.text(alphabet="prune,quant()[]=0.3'\"# \n\\{}*", max_size=40))
def test_any_text_is_a_pipeline_or_a_usage_error(text: str) -> None:
    try:
        pipeline = Pipeline.parse(text)
    except UsageError:
        return
    assert Pipeline.parse(str(pipeline)) == pipeline


def test_no_passes_are_no_pipeline() -> None:
    with pytest.raises(UsageError, match="the pipeline is empty"):
        Pipeline([])


# -- order ---------------------------------------------------------------------------------------------------


def test_the_order_of_the_main_use() -> None:
    scheduled = Pipeline.parse("prune,quant,reorder").scheduled()
    assert str(scheduled) == "fold,prune,reorder,quant"


def test_what_is_named_is_not_added_again() -> None:
    assert str(Pipeline.parse("quant,fold").scheduled()) == "fold,quant"
    assert str(Pipeline.parse("fold").scheduled()) == "fold"


def test_passes_of_one_stage_keep_their_order() -> None:
    text = "prune(flops=0.3),prune(flops=0.1)"
    assert str(Pipeline.parse(f"quant,{text}").scheduled()) == f"fold,{text},quant"


def test_a_requirement_of_a_requirement_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaking.Scale, "requires", ("reorder",))
    assert str(Pipeline([breaking.Scale()]).scheduled()) == "fold,reorder,scale"


def test_keep_order_takes_a_legal_order_and_adds_nothing() -> None:
    assert str(Pipeline.parse("prune,quant").scheduled(keep_order=True)) == "prune,quant"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quant,prune", "prune cannot follow quant: .* the stage quant; write prune,quant, or drop --keep-order"),
        (
            "fold,quant,reorder,prune(flops=0.3)",
            r"reorder cannot follow quant: .*fold,prune\(flops=0\.3\),reorder,quant",
        ),
    ],
)
def test_keep_order_refuses_an_illegal_order_and_shows_a_legal_one(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Pipeline.parse(text).scheduled(keep_order=True)


# -- recipes -------------------------------------------------------------------------------------------------


def test_recipes_by_name() -> None:
    assert recipe_names() == ["int8", "small-and-fast"]
    assert str(Pipeline.parse("int8")) == "quant"
    assert str(Pipeline.parse(" small-and-fast ")) == "prune,reorder,quant"


def test_a_recipe_by_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[[pass]]\nname = "prune"\nflops = 0.3\n[[pass]]\nname = "reorder"\nblock = [4, 4]\n')
    assert str(Pipeline.parse(str(path))) == "prune(flops=0.3),reorder(block=(4, 4))"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "the recipe cannot be read: No such file or directory"),
        (b"\xff", "the recipe cannot be read: it is not UTF-8 text"),
        (b"[[pass]", "is no TOML"),
        (b"", r"holds no \[\[pass\]\] table"),
        (b"pass = 3", r"holds no \[\[pass\]\] table"),
        (b"pass = []", r"holds no \[\[pass\]\] table"),
        (b"[[pass]]\nflops = 0.3", r"a \[\[pass\]\] table has no name"),
        (b'[[pass]]\nname = "prunes"', "there is no pass 'prunes'; did you mean 'prune'"),
        (b'[[pass]]\nname = "prune"\nflops = 3', "option flops=3 is not allowed"),
    ],
)
def test_a_bad_recipe_is_one_sentence(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "mine.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        Pipeline.parse(str(path))
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
