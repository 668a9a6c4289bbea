from __future__ import annotations

import json
from pathlib import Path

import pytest

from onnxcomp.errors import UsageError
from onnxcomp.runtime import target
from onnxcomp.runtime.target import Target


@pytest.mark.parametrize(
    ("name", "saturates", "multiple"),
    [("x86-avx2", True, 8), ("x86-avx512", True, 16), ("x86-vnni", False, 16), ("arm64", False, 8)],
)
def test_named_targets_say_what_decides_compression(name: str, saturates: bool, multiple: int) -> None:
    parsed = Target.parse(name, threads=2)
    assert (parsed.name, parsed.threads, parsed.is_host) == (name, 2, False)
    assert (parsed.int8_saturates, parsed.channel_multiple) == (saturates, multiple)
    assert json.loads(json.dumps(parsed.describe()))["isa"] == sorted(parsed.isa)


def test_the_host_is_this_machine() -> None:
    host = Target.parse("host")
    assert host == Target.host()
    assert host.is_host
    assert host.isa == target.host_isa()
    assert host.channel_multiple in (8, 16)


def test_proc_cpuinfo_and_py_cpuinfo_tell_the_same_of_this_machine() -> None:
    flags = target._proc_flags(Path("/proc/cpuinfo"))
    if not flags:
        pytest.skip("no /proc/cpuinfo here")
    known = target._ISA_OF_FLAG
    told = {known[flag] for flag in target._cpuinfo_flags() if flag in known}
    assert {known[flag] for flag in flags if flag in known} == told


def test_flags_are_read_from_both_spellings_of_proc_cpuinfo(tmp_path: Path) -> None:
    x86, arm = tmp_path / "x86", tmp_path / "arm"
    x86.write_text("processor\t: 0\nflags\t\t: fpu avx2 avx_vnni\n\nprocessor\t: 1\nflags\t: none\n")
    arm.write_text("processor : 0\nFeatures : fp asimd asimddp\n")
    assert target._proc_flags(x86) == {"fpu", "avx2", "avx_vnni"}
    assert target._proc_flags(arm) == {"fp", "asimd", "asimddp"}
    assert target._proc_flags(tmp_path / "missing") == set()


def test_an_unknown_target_or_no_thread_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown target 'riscv'; the targets are host, x86-avx2"):
        Target.parse("riscv")
    with pytest.raises(UsageError, match="threads=0 is not allowed"):
        Target.host(threads=0)
