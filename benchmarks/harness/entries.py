"""What is compared: onnxcomp with its pipelines, and the peers."""

from __future__ import annotations

import json
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from harness import peers
from harness.peers import Peer
from harness.results import Row
from harness.zoo import ZooModel

__all__ = ["CHANNELS", "EIGHT_BITS", "ELEMENTS", "ENTRIES", "FOUR_BITS", "FULL", "QUANT", "SPEEDUP", "WEIGHTS_4"]
__all__ += ["RECOVERY", "TILES", "Entry", "add_report", "named", "onnxcomp_entry", "peer_entry", "report_of"]

FULL = "onnxcomp-prune-quant-reorder"
QUANT = "onnxcomp-quant"
WEIGHTS_4 = "onnxcomp-weights4"
SPEEDUP = "onnxcomp-speedup"
TRANSFORMERS = ("minilm",)


@dataclass(frozen=True)
class Entry:
    """A tool with a setting.

    Attributes:
        name: identifies it.
        tool, setting: what the table says.
        pipeline: of onnxcomp; None for a peer.
        only: names of the models that it is meant for; empty for all.
        saturating: it makes sense only where 8-bit weights can saturate.
        calibrated: onnxcomp gets the calibration samples.
        training: the samples to train on take the place of those to calibrate on.
    """

    name: str
    tool: str
    setting: str
    pipeline: str | None = None
    only: tuple[str, ...] = ()
    saturating: bool = False
    calibrated: bool = True
    training: bool = False

    def suits(self, model: ZooModel, saturates: bool) -> bool:
        """Whether it is meant for the model on this kind of CPU."""
        return (not self.only or model.name in self.only) and (saturates or not self.saturating)

    def command(self, model: ZooModel, output: Path, samples: int | None = None) -> list[str]:
        """The command line that writes the compressed model to ``output``.

        Args:
            model: the original and its data.
            output: the file to write.
            samples: calibration samples of the peers at most; their own number without.
        """
        samples_file = str(model.training_data if self.training else model.data)
        if self.pipeline is None:
            limited = [] if samples is None else ["--samples", str(samples)]
            files = [str(model.path), samples_file, str(output)]
            return [sys.executable, "-m", "harness.peers", self.name, *files, *limited]
        # Evaluated on other samples, so that all of the file is there to calibrate on, as it is for the peers.
        data = ["--data", samples_file, "--test-data", str(model.test)] if self.calibrated else []
        made = ["-p", self.pipeline, *data, "-o", str(output), "--report", str(report_of(output))]
        return [onnxcomp_program(), str(model.path), *made]

    def row(self) -> Row:
        """Its row, with nothing measured yet."""
        return Row(name=self.name, tool=self.tool, setting=self.setting)


def onnxcomp_program() -> str:
    """The command of the environment that this runs in."""
    return str(Path(sysconfig.get_path("scripts"), "onnxcomp"))


def report_of(output: Path) -> Path:
    """Where onnxcomp's report goes: outside of the output's folder, whose size is the model's."""
    return output.parent.with_suffix(".report.json")


def add_report(row: Row, output: Path) -> None:
    """Take over what onnxcomp says about its own passes."""
    path = report_of(output)
    if path.is_file():
        passes = json.loads(path.read_text(encoding="utf-8"))["passes"]
        row.passes = len(passes)
        row.verified = sum(
            entry["verification"]["status"] == "passed" and entry["status"] != "rolled back" for entry in passes
        )
        row.recovery_seconds = next((entry["seconds"] for entry in passes if entry["name"] == "recover"), None)


def onnxcomp_entry(name: str, pipeline: str, only: tuple[str, ...] = ()) -> Entry:
    """Of onnxcomp with a pipeline, on the calibration samples."""
    return Entry(name, "onnxcomp", f"-p {pipeline}", pipeline, only)


def _without_data(name: str, pipeline: str, only: tuple[str, ...] = ()) -> Entry:
    return Entry(name, "onnxcomp", f"-p {pipeline}, no data", pipeline, only, calibrated=False)


def peer_entry(name: str, peer: Peer) -> Entry:
    """Of a peer."""
    return Entry(name, peer.tool, peer.setting, only=peer.only, saturating=peer.saturating)


def named(entries: Iterable[Entry]) -> dict[str, Entry]:
    """By their names."""
    return {entry.name: entry for entry in entries}


ENTRIES = named(
    [
        onnxcomp_entry(FULL, "prune,quant,reorder"),
        onnxcomp_entry(QUANT, "quant"),
        onnxcomp_entry("onnxcomp-prune", "prune"),
        *(peer_entry(name, peers.PEERS[name]) for name in peers.COMPRESSION),
    ]
)
EIGHT_BITS = named(
    [
        onnxcomp_entry(QUANT, "quant"),
        onnxcomp_entry("onnxcomp-equalize-quant", "equalize,quant"),
        onnxcomp_entry("onnxcomp-limits-quant", "equalize(limits=True),quant"),
        onnxcomp_entry("onnxcomp-quant-fast", "quant(sqnr=0)"),
        onnxcomp_entry("onnxcomp-quant-gptq", 'quant(rounding="gptq")', TRANSFORMERS),
        onnxcomp_entry("onnxcomp-quant-static", 'quant(mode="static")', TRANSFORMERS),
        onnxcomp_entry("onnxcomp-quant-dynamic", 'quant(mode="dynamic")', TRANSFORMERS),
        *(peer_entry(name, peer) for name, peer in peers.EIGHT_BITS.items()),
    ]
)
FOUR_BITS = named(
    [
        onnxcomp_entry("onnxcomp-quant4", "quant(bits=4)"),
        onnxcomp_entry(WEIGHTS_4, 'quant(mode="weights", bits=4)'),
        *(peer_entry(name, peer) for name, peer in peers.FOUR_BITS.items()),
    ]
)


def _channels(percent: int, only: tuple[str, ...]) -> list[Entry]:
    pipeline = f"prune(flops={percent / 100:g})"
    return [
        onnxcomp_entry(f"onnxcomp-{percent}", pipeline, only),
        _without_data(f"onnxcomp-norms-{percent}", pipeline, only),
    ]


def _elements(name: str, options: str) -> list[Entry]:
    magnitude = f'prune({options}, score="magnitude")'
    return [
        onnxcomp_entry(f"onnxcomp-{name}", f"prune({options})"),
        _without_data(f"onnxcomp-magnitude-{name}", magnitude),
    ]


_SMALL = ("fashion", "mnist")
_LARGE = ("mobilenetv2", "ppocr_rec", "minilm", "ppocr_det")
CHANNELS = named(
    [
        *_channels(15, _LARGE),
        *_channels(30, _SMALL),
        *_channels(50, _SMALL),
        onnxcomp_entry(SPEEDUP, "prune(speedup=1.5)"),
        *(peer_entry(name, peer) for name, peer in peers.CHANNELS.items()),
    ]
)
ELEMENTS = named(
    [
        *_elements("half", 'granularity="element", sparsity=0.5'),
        *_elements("2of4", 'granularity="2:4"'),
        *_elements("blocks", 'granularity="block(8,8)", sparsity=0.5'),
        *(peer_entry(name, peer) for name, peer in peers.ELEMENTS.items()),
    ]
)


def _recovered(name: str, damage: str, only: tuple[str, ...], recover: str = "recover") -> list[Entry]:
    """The damage alone and with what ``recover`` wins back, both with the samples to train on."""
    rows = [
        onnxcomp_entry(f"onnxcomp-{name}", damage, only),
        onnxcomp_entry(f"onnxcomp-recover-{name}", f"{damage},{recover}", only),
    ]
    return [replace(row, training=True) for row in rows]


# Where photographs are few, features and all scores teach more than class probabilities (Wang et al. 2022,
# arXiv:2201.02620).
_MIMICRY = 'recover(loss="mse", hints=3, mix=True, lr=2e-4, batch=16, epochs=6)'
RECOVERY = named(
    [
        *_recovered("channels", "prune(flops=0.5)", ("fashion",)),
        *_recovered("bits", "quant(bits=2)", ("fashion",)),
        *_recovered("zeros", 'prune(granularity="element", sparsity=0.9)', ("fashion",)),
        *_recovered("channels30", "prune(flops=0.3)", ("mobilenetv2",), _MIMICRY),
        *(replace(peer_entry(name, peer), training=True) for name, peer in peers.RECOVERY.items()),
    ]
)


def _trained(entry: Entry) -> Entry:
    return replace(entry, training=True, setting=f"{entry.setting}, on the samples to train on")


_RESIDUAL, _RECOGNISER = ("fashion",), ("ppocr_rec",)
TILES = named(
    [
        onnxcomp_entry("onnxcomp-tiles-half", "reorder(density=0.5)", _RESIDUAL),
        onnxcomp_entry("onnxcomp-tiles-quarter", "reorder(density=0.25)", _RESIDUAL),
        onnxcomp_entry("onnxcomp-channels-half", "prune(flops=0.48)", _RESIDUAL),
        onnxcomp_entry("onnxcomp-tiles-channels", "prune(flops=0.35),reorder(density=0.8)", _RESIDUAL),
        onnxcomp_entry("onnxcomp-blocks-half", 'prune(granularity="block(8,8)", sparsity=0.5)', _RESIDUAL),
        onnxcomp_entry("onnxcomp-tiles-half-quant", "reorder(density=0.5),quant", _RESIDUAL),
        _trained(onnxcomp_entry("onnxcomp-tiles-half-trained", "reorder(density=0.5)", _RESIDUAL)),
        _trained(onnxcomp_entry("onnxcomp-tiles-half-recover", "reorder(density=0.5),recover", _RESIDUAL)),
        onnxcomp_entry("onnxcomp-tiles-60", "reorder(density=0.6)", _RECOGNISER),
        onnxcomp_entry("onnxcomp-channels-34", "prune(flops=0.34)", _RECOGNISER),
        onnxcomp_entry("onnxcomp-blocks-60", 'prune(granularity="block(8,8)", sparsity=0.4)', _RECOGNISER),
        onnxcomp_entry("onnxcomp-tiles-70", "reorder(density=0.7)", TRANSFORMERS),
        onnxcomp_entry("onnxcomp-tiles-65", "reorder(density=0.65)", TRANSFORMERS),
        onnxcomp_entry("onnxcomp-channels-20", "prune(flops=0.2)", TRANSFORMERS),
        onnxcomp_entry("onnxcomp-blocks-70", 'prune(granularity="block(8,8)", sparsity=0.3)', TRANSFORMERS),
        onnxcomp_entry("onnxcomp-cheap", "prune,reorder"),
    ]
)
