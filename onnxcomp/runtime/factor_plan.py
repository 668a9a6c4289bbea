"""Which layers become products, of which form and rank: where a microsecond saved costs the outputs least."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from onnxcomp.graph.factors import Form, kernel_of, write_factors
from onnxcomp.graph.layers import weighted_layers
from onnxcomp.model import Model
from onnxcomp.runtime.factor_losses import Option, Unit
from onnxcomp.runtime.factor_times import FactorTimes, ordinary_factors
from onnxcomp.runtime.session import Feeds
from onnxcomp.runtime.timings import TimingTable

__all__ = ["PAYS", "Choice", "FactorPlan"]

PAYS = 1.03  # a product must be that many times as fast as what it replaces
_PROBED = (0.75, 0.4)  # of the operations of a layer: there each form is timed
_PRICES = (-60.0, 20.0)  # powers of 2, of loss for a millisecond
_BISECTIONS = 40
_TRIALS = 8  # of a speed that is measured
_SECONDS = 1.0  # of timed runs of a trial
_WORTH = "its ranks are worth more than they cost"
_TOO_SMALL = "no product of aligned ranks has fewer operations"


@dataclass(frozen=True)
class Choice:
    """What a unit becomes.

    Attributes:
        unit, option: which.
        ratio: measured time of the layers over their time as products; None where nothing was measured.
        text: that for people, for instance ``3x3 (24), 1x1; measured 1.52 times as fast``.
    """

    unit: Unit
    option: Option
    ratio: float | None
    text: str

    @classmethod
    def of(cls, unit: Unit, option: Option, ratio: float | None) -> Choice:
        """Of layers that are still whole."""
        text = option.form.described(kernel_of(unit.layers[0]), option.ranks)
        if len(unit.layers) > 1:
            text += f", the first shared by {unit.name}"
        return cls(unit, option, ratio, text if ratio is None else f"{text}; measured {ratio:.2f} times as fast")


Chosen = Mapping[int, Option]  # by the places of units


@dataclass
class FactorPlan:
    """Chooses an option for each unit, or none.

    At one price of a millisecond each unit takes the option that minimises its loss less what the time saved is
    worth; the budget says which price (Lagrange). Where nothing may be timed, time is taken to go with operations.

    Attributes:
        units: all that may become products.
        times: measures them.
        total: multiply-accumulates of all layers that may become products.
        choices: what was chosen.
        reasons: by layer name, why others stay.
    """

    units: Sequence[Unit]
    times: FactorTimes
    total: float
    choices: list[Choice] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    _lines: dict[tuple[int, Form], tuple[float, float, float]] = field(default_factory=dict)
    _open: dict[int, list[Option]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for place, unit in enumerate(self.units):
            options = [option for option in unit.options if self._saved(place, option) > 0.0]
            self._open[place] = options
            if not options:
                self._explain(unit, _TOO_SMALL if not unit.options else self._too_slow(place))

    def by_flops(self, share: float) -> None:
        """Remove so large a share of the operations of all these layers."""
        self._settle(lambda: self._without(share))

    def by_error(self, error: float) -> None:
        """As much as can go while the model's outputs lose this, over their variance, by what is expected."""

        def most() -> Chosen:
            low, high = _PRICES
            for _ in range(_BISECTIONS):
                middle = (low + high) / 2
                low, high = (middle, high) if self._loss(self._at(2.0**middle)) <= error else (low, middle)
            return self._at(2.0**low)

        self._settle(most)

    def by_energy(self, energy: float) -> None:
        """Each layer keeps this share of the variance of its outputs, in the fastest way."""

        def each() -> Chosen:
            chosen = {}
            for place, options in self._open.items():
                most = (1.0 - energy) * self.units[place].energy
                fit = [option for option in options if option.loss <= most]
                if fit:
                    chosen[place] = max(fit, key=lambda option: (self._saved(place, option), -option.loss))
            return chosen

        self._settle(each)

    def by_speed(
        self, speedup: float, model: Model, first: Model, feeds: Feeds, timings: TimingTable, threads: int
    ) -> float:
        """Until the model is so many times as fast as ``first``; returns how fast it was measured to be.

        Args:
            speedup: wanted.
            model: with the layers of the units; left as it is.
            first: the original.
            feeds: one sample to time on.
            timings: where times are kept, or come from.
            threads: intra-op threads.
        """
        reached = 1.0

        def speed(chosen: Chosen) -> float:
            trial = model.copy()
            self.write_ordinary(trial, chosen)
            timed = timings.compare("layers factorized", first, trial, feeds, threads, _SECONDS)
            return timed.ratio if timed is not None else 1.0 / max(1e-9, 1.0 - self._gone(chosen) / self.total)

        def search() -> Chosen:
            nonlocal reached
            low, high, best = 0.0, 1.0, None
            share = min(0.9, 1.0 - 1.0 / speedup)
            for _ in range(_TRIALS):
                chosen = self._without(share)
                now = speed(chosen)
                if now >= speedup:
                    best, reached, high = chosen, now, share
                else:
                    low = share
                share = (low + high) / 2
            if best is None:
                best = self._at(2.0 ** _PRICES[1])
                reached = speed(best)
            return best

        self._settle(search)
        return reached

    def write_ordinary(self, model: Model, chosen: Chosen) -> None:
        """Products of ordinary size in a copy of the model: time depends on shapes alone."""
        layers = {layer.name: layer for layer in weighted_layers(model)}
        for place, option in chosen.items():
            own = [layers[layer.name] for layer in self.units[place].layers]
            write_factors(model, own, option.form, ordinary_factors(own, option.form, option.ranks))

    # -- choosing --------------------------------------------------------------------------------------------

    def _at(self, price: float) -> dict[int, Option]:
        """What each unit takes at a price of a millisecond."""
        chosen = {}
        for place, options in self._open.items():
            unit = self.units[place]
            worth = [
                (unit.loss(option) - price * self._saved(place, option), index) for index, option in enumerate(options)
            ]
            least, index = min(worth, default=(0.0, 0))
            if least < 0.0:
                chosen[place] = options[index]
        return chosen

    def _without(self, share: float) -> dict[int, Option]:
        """The least loss, about, with so large a share of the operations gone."""
        return self._least(lambda chosen: self._gone(chosen) >= share * self.total)

    def _least(self, enough: Callable[[Chosen], bool]) -> dict[int, Option]:
        """The least loss with which something holds, about; all that can go where it never does."""
        low, high = _PRICES
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            low, high = (low, middle) if enough(self._at(2.0**middle)) else (middle, high)
        chosen = self._at(2.0**high)
        return self._without_needless(chosen, enough) if enough(chosen) else chosen

    def _without_needless(self, chosen: dict[int, Option], enough: Callable[[Chosen], bool]) -> dict[int, Option]:
        """Single steps back, the one that regains most first, as long as it is enough without them."""
        while True:
            steps = []
            for place, option in chosen.items():
                same = [other for other in self._open[place] if other.form == option.form and other.macs > option.macs]
                for other in [None, *same[-1:]]:
                    gain = self.units[place].loss(option) - self.units[place].loss(other)
                    left = {key: value for key, value in chosen.items() if key != place}
                    trial = left if other is None else {**left, place: other}
                    if gain > 0.0 and enough(trial):
                        steps.append((gain, -place, trial))
            if not steps:
                return chosen
            chosen = max(steps, key=lambda step: step[:2])[2]

    def _settle(self, search: Callable[[], Chosen]) -> None:
        """Choose, leaving out what turns out to be slower, until nothing does."""
        while True:
            chosen = dict(sorted(search().items()))
            slow = False
            self.choices = []
            for place, option in chosen.items():
                unit = self.units[place]
                timed = self.times.of(unit.layers, option.form, option.ranks)
                if timed is not None and timed.ratio < PAYS:
                    slow = True
                    self._open[place] = [
                        other for other in self._open[place] if other.form != option.form or other.macs < option.macs
                    ]
                    text = option.form.described(kernel_of(unit.layers[0]), option.ranks)
                    self._explain(unit, f"as {text} it would run {timed.ratio:.2f} times as fast")
                self.choices.append(Choice.of(unit, option, None if timed is None else timed.ratio))
            if not slow:
                break
        taken = {layer.name for choice in self.choices for layer in choice.unit.layers}
        for name in taken:
            self.reasons.pop(name, None)
        for unit in self.units:
            if unit.layers[0].name not in taken:
                self._explain(unit, _WORTH, only_new=True)

    def _explain(self, unit: Unit, reason: str, only_new: bool = False) -> None:
        for layer in unit.layers:
            if not only_new or layer.name not in self.reasons:
                self.reasons[layer.name] = reason

    # -- what it costs ---------------------------------------------------------------------------------------

    def gone(self) -> float:
        """The share of the operations that the choices save."""
        saved = sum(choice.unit.macs - choice.option.macs for choice in self.choices)
        return saved / self.total if self.total else 0.0

    def _gone(self, chosen: Chosen) -> float:
        return sum(self.units[place].macs - option.macs for place, option in chosen.items())

    def _loss(self, chosen: Chosen) -> float:
        return sum(self.units[place].loss(option) for place, option in chosen.items())

    def _saved(self, place: int, option: Option) -> float:
        """Milliseconds, by the straight line through what was measured of the form."""
        unit = self.units[place]
        key = (place, option.form)
        if key not in self._lines:
            self._lines[key] = self._line(unit, option.form)
        whole, fixed, slope = self._lines[key]
        time = fixed + slope * option.macs
        return whole - time if time * PAYS <= whole else 0.0

    def _line(self, unit: Unit, form: Form) -> tuple[float, float, float]:
        """Time of the unit as it is, and of its products as a + b · operations; in operations where unmeasured."""
        options = [option for option in unit.options if option.form == form]
        points = []
        whole = 1.0
        for share in _PROBED:
            near = min(options, key=lambda option: abs(option.macs - share * unit.macs))
            timed = self.times.of(unit.layers, form, near.ranks)
            if timed is None:
                return float(unit.macs), 0.0, 1.0
            whole = timed.whole_ms
            points.append((near.macs, timed.whole_ms / timed.ratio))
        (more, slow), (less, fast) = points
        slope = max((slow - fast) / (more - less), 0.0) if more != less else slow / more
        return whole, max(fast - slope * less, 0.0), slope

    def _too_slow(self, place: int) -> str:
        """Why nothing is open although there are options."""
        best = 0.0
        for option in self.units[place].options:
            whole, fixed, slope = self._lines[place, option.form]
            best = max(best, whole / max(fixed + slope * option.macs, 1e-12))
        return f"by the times measured it would be {best:.2f} times as fast at best"
