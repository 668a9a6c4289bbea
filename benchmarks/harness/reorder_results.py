"""What reorder.py measures, as data: the JSON that its sections of RESULTS.md are rendered from."""

from __future__ import annotations

from pydantic import Field

from harness.results import Environment, Part, Section, Stored

__all__ = ["AssignmentRow", "PanelRow", "ReorderResults", "Search", "SearchRow", "SearchRows"]


class SearchRow(Part):
    """One matrix in the orders that several searches find: shares of the salience in the cheaper half of its tiles."""

    kind: str
    """``planted``, ``real``, ``control`` (nothing to be found across lines) or ``time``."""
    name: str
    size: int
    """Rows, and columns."""
    identity: float
    """In the given order."""
    swaps: float | None = None
    """Both axes, swaps of pairs as the M-step."""
    one_axis: float | None = None
    """Rows or columns alone, whichever masks less."""
    ours: float = 0.0
    """Both axes."""
    optimum: float | None = None
    """Of the tiles that were planted."""
    unstructured: float = 0.0
    """Of the smaller half of the entries, wherever they are: less than any tiles."""
    seconds: float = 0.0
    swap_seconds: float | None = None


class AssignmentRow(Part):
    """One M-step: masked salience over that of the best assignment."""

    name: str
    given: float
    swaps: float | None = None
    near: float = 0.0
    """What the search tries first where lines are many."""
    ours: float = 0.0


class PanelRow(Part):
    """Panels of rows that keep the same number of bands of columns each."""

    name: str
    panels: int
    band: int
    """Columns."""
    identity: float
    ours: float
    runs: int
    """Of neighbouring bands that panels keep, all panels together, as found."""
    ordered_runs: int
    """With the bands in the order for that."""


class SearchRows(Part):
    """All matrices."""

    rows: list[SearchRow] = Field(default_factory=list)
    assignments: list[AssignmentRow] = Field(default_factory=list)
    panels: list[PanelRow] = Field(default_factory=list)

    def of(self, kind: str) -> list[SearchRow]:
        """The matrices of a kind."""
        return [row for row in self.rows if row.kind == kind]


class Search(Part):
    """The suite ``search``."""

    date: str
    command: str
    environment: Environment
    threads: int
    found: SearchRows


class ReorderResults(Stored):
    """Everything, by suite."""

    search: Search | None = None
    tiles: dict[str, Section] = Field(default_factory=dict)
