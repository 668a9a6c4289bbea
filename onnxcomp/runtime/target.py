"""The machine a compressed model is for, as far as it decides how to compress."""

from __future__ import annotations

import functools
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxcomp.errors import UsageError

__all__ = ["Target", "host_isa"]

# The instruction sets that ONNX Runtime's CPU kernels choose between, by the names that operating systems and
# py-cpuinfo give them. AVX-VNNI and AVX512-VNNI count as "vnni" alike: both have the int8 dot product that
# accumulates in 32 bits.
_ISA_OF_FLAG = {
    "avx2": "avx2",
    "avx512f": "avx512",
    "avx512_vnni": "vnni",
    "avx512vnni": "vnni",
    "avx_vnni": "vnni",
    "avxvnni": "vnni",
    "asimd": "neon",
    "neon": "neon",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
}

_PRESETS: dict[str, tuple[str, frozenset[str]]] = {
    "x86-avx2": ("x86", frozenset({"avx2"})),
    "x86-avx512": ("x86", frozenset({"avx2", "avx512"})),
    "x86-vnni": ("x86", frozenset({"avx2", "avx512", "vnni"})),
    "arm64": ("arm64", frozenset({"neon", "dotprod"})),
}


@dataclass(frozen=True)
class Target:
    """A kind of CPU and how a model is run on it.

    Attributes:
        name: as written on the command line.
        architecture: ``x86``, ``arm64``, or what the platform calls itself.
        isa: instruction sets that decide kernels: avx2, avx512, vnni, neon, dotprod, i8mm.
        threads: intra-op threads of the deployed session (analyses use every core regardless).
        providers: execution providers, in ONNX Runtime's names.
    """

    name: str
    architecture: str
    isa: frozenset[str]
    threads: int = 1
    providers: tuple[str, ...] = ("CPUExecutionProvider",)

    @classmethod
    def host(cls, threads: int = 1) -> Target:
        """This machine."""
        return cls("host", _architecture(platform.machine()), host_isa(), _valid_threads(threads))

    @classmethod
    def parse(cls, text: str, threads: int = 1) -> Target:
        """``host``, or one of the named kinds: x86-avx2, x86-avx512, x86-vnni, arm64.

        Raises:
            UsageError: another name, or fewer than one thread.
        """
        if text == "host":
            return cls.host(threads)
        if text not in _PRESETS:
            raise UsageError(f"unknown target {text!r}; the targets are {', '.join(['host', *_PRESETS])}")
        architecture, isa = _PRESETS[text]
        return cls(text, architecture, isa, _valid_threads(threads))

    @property
    def is_host(self) -> bool:
        """Whether times measured here are times of the target."""
        return self.name == "host"

    @property
    def int8_saturates(self) -> bool:
        """Whether 8-bit weights can overflow the 16-bit intermediate sums of the int8 kernels.

        x86 without VNNI multiplies with ``vpmaddubsw``, whose pairwise sums saturate at 16 bits; 7-bit
        weights cannot reach that limit.
        """
        return self.architecture == "x86" and "vnni" not in self.isa

    @property
    def channel_multiple(self) -> int:
        """Channel counts that fill whole vectors: ONNX Runtime's blocked layout takes 16 (AVX-512) or 8."""
        return 16 if "avx512" in self.isa else 8

    def describe(self) -> dict[str, Any]:
        """Plain data for a report."""
        return {
            "name": self.name,
            "architecture": self.architecture,
            "isa": sorted(self.isa),
            "threads": self.threads,
            "providers": list(self.providers),
            "int8_saturates": self.int8_saturates,
            "channel_multiple": self.channel_multiple,
        }


@functools.cache
def host_isa() -> frozenset[str]:
    """The instruction sets of this machine that matter here.

    Linux tells them in /proc/cpuinfo at once; elsewhere py-cpuinfo finds out, which takes about a second.
    """
    flags = _proc_flags(Path("/proc/cpuinfo")) or _cpuinfo_flags()
    return frozenset(_ISA_OF_FLAG[flag] for flag in flags if flag in _ISA_OF_FLAG)


def _proc_flags(path: Path) -> set[str]:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return set()
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return set(value.lower().split())
    return set()


def _cpuinfo_flags() -> set[str]:
    import cpuinfo  # slow to import and to ask; most runs never need it

    flags = {str(flag).lower() for flag in cpuinfo.get_cpu_info().get("flags", ())}
    if _architecture(platform.machine()) == "arm64":
        flags |= {"asimd", "asimddp"}  # macOS lists no flags; every Apple core has both
    return flags


def _architecture(machine: str) -> str:
    machine = machine.lower()
    if machine in ("x86_64", "amd64", "i686", "x86"):
        return "x86"
    return "arm64" if machine in ("aarch64", "arm64") else machine


def _valid_threads(threads: int) -> int:
    if threads < 1:
        raise UsageError(f"threads={threads} is not allowed: a model runs on one thread or more")
    return threads
