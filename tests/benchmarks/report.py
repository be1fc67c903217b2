"""What came out: the table, the ratios with their bounds, and the plot, from the same figures."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.benchmarks.rounds import Row
from tests.benchmarks.scenarios import Inventory, Relist
from tests.benchmarks.watchers import CURL, INFORMER, KOPF, OURS, OURS_ORDERED, STOCK, STOCK_ORDERED, Watcher

DOCS = Path(__file__).parents[2] / "docs"
PAGE, PLOT = DOCS / "benchmarks.md", DOCS / "benchmarks.svg"
BEGIN, END = "<!-- Written by `nox -s bench`. -->\n", "<!-- Up to here. -->\n"
ORDER = (OURS, STOCK, INFORMER, KOPF, CURL, OURS_ORDERED, STOCK_ORDERED)

Value = TypeVar("Value")
Rows = Mapping[tuple[str, str], Sequence[Row]]
"""The rounds, by watcher and corpus."""


@dataclass(frozen=True)
class Results:
    """Everything that was measured."""

    rows: Rows
    few: int
    """The most bytes of memory of a run of ours with 5,000 small events."""
    many: int
    """With 50,000."""
    relists: Sequence[Relist]
    walks: Sequence[float]
    """Versions per second."""
    inventories: Sequence[Inventory]


@dataclass(frozen=True)
class Bound:
    """A figure that must be at most, or at least, so much."""

    what: str
    measured: float
    bound: float
    stretch: float
    at_least: bool = False
    form: Callable[[float], str] = "{:.2f}".format

    @property
    def met(self) -> bool:
        """Whether it is."""
        return self.measured >= self.bound if self.at_least else self.measured <= self.bound


def bounds(results: Results) -> Iterator[Bound]:
    """All of them. A ratio is the median of those of the rounds, in each of which both ran."""
    yield from _against_others(results)
    yield from _own(results)


def _against_others(results: Results) -> Iterator[Bound]:
    def ratio(ours: Watcher, theirs: Watcher, corpus: str, what: Callable[[Row], float] = _cpu) -> float:
        pairs = zip(results.rows[ours.name, corpus], results.rows[theirs.name, corpus], strict=True)
        return statistics.median(what(mine) / what(other) for mine, other in pairs)

    for ours, theirs, corpus, bound, stretch, form in (
        (OURS, STOCK, "small", 1 / 5, 1 / 8, _part),
        (OURS, STOCK, "big", 1 / 5, 1 / 8, _part),
        (OURS_ORDERED, STOCK_ORDERED, "small", 1 / 14, 1 / 28, _part),
        (OURS, INFORMER, "small", 1 / 8, 1 / 14, _part),
        (OURS, INFORMER, "big", 1 / 8, 1 / 14, _part),
        (OURS, CURL, "small", 8, 5, _times),
        (OURS, CURL, "big", 8, 5, _times),
    ):
        what = f"CPU per event against {theirs.name}, {corpus}"
        yield Bound(what, ratio(ours, theirs, corpus), bound, stretch, form=form)
    rate = ratio(OURS, STOCK, "small", lambda row: row.rate)
    yield Bound(f"events/s against {STOCK.name}, small", rate, 4, 8, at_least=True, form=_times)
    first = ratio(OURS, STOCK, "small", lambda row: row.first)
    yield Bound(f"start to first acknowledgement against {STOCK.name}", first, 0.8, 0.5, form=_times)
    quiet = ratio(OURS, STOCK, "small", lambda row: row.quiet_cpu)
    yield Bound(f"CPU of a quiet run against {STOCK.name}", quiet, 0.7, 0.5, form=_times)


def _own(results: Results) -> Iterator[Bound]:
    quiet = _median(results.rows[OURS.name, "small"], lambda row: row.quiet_peak)
    yield Bound("memory of a quiet run", quiet, 76e6, 60e6, form=_megabytes)
    yield Bound("memory at saturation, 50,000 events", results.many, 120e6, 90e6, form=_megabytes)
    yield Bound("the same against 5,000 events", results.many / results.few, 1.1, 1.1, form=_times)
    cpu = _median(results.relists, lambda each: each.cpu / each.full_cpu)
    yield Bound("CPU of a relist against a full list", cpu, 1 / 10, 1 / 30, form=_part)
    received = _median(results.relists, lambda each: each.bytes / each.full_bytes)
    yield Bound("bytes of a relist against a full list", received, 1 / 10, 1 / 30, form=_part)
    cpu = _median(results.inventories, lambda each: each.cpu)
    yield Bound("CPU for an inventory of 100,000", cpu, 1.5, 0.7, form="{:.2f} s".format)
    peak = _median(results.inventories, lambda each: each.peak)
    yield Bound("memory for an inventory of 100,000", peak, 150e6, 100e6, form=_megabytes)
    walked = statistics.median(results.walks)
    yield Bound("versions per second of the walk", walked, 1_500, 3_000, at_least=True, form="{:,.0f}".format)


def table(results: Results) -> Iterator[str]:
    """The peers, a row each."""
    yield "| | CPU per event, µs | events/s | first acknowledgement, s | quiet run, CPU-s | peak memory, MB |"
    yield "|---|---|---|---|---|---|"
    for watcher in ORDER:
        small, big = (results.rows.get((watcher.name, corpus), ()) for corpus in ("small", "big"))
        yield (
            "| "
            + " | ".join(
                (
                    watcher.name,
                    _both(small, big, lambda row: row.cpu_per_event * 1e6),
                    _both(small, big, lambda row: row.rate) if watcher.publishes else "-",
                    f"{_median(small, lambda row: row.first):.2f}" if watcher.publishes else "-",
                    f"{_median(small, lambda row: row.quiet_cpu):.2f}",
                    _both(small, big, lambda row: row.peak / 1e6),
                )
            )
            + " |"
        )


def bounds_table(checked: Iterable[Bound]) -> Iterator[str]:
    """The ratios, a row each."""
    yield "| | measured | bound | stretch |"
    yield "|---|---|---|---|"
    for bound in checked:
        sign = "≥" if bound.at_least else "≤"
        limits = (f"{sign} {bound.form(limit)}" for limit in (bound.bound, bound.stretch))
        measured = f"{bound.form(bound.measured)}{'' if bound.met else ' **not met**'}"
        yield f"| {bound.what} | {measured} | {' | '.join(limits)} |"


def write(results: Results, checked: Sequence[Bound], about: str) -> None:
    """Put all of it into the page, between its two marks, and the plot beside it."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    made = "\n".join([about, "", *table(results), "", *bounds_table(checked), ""])
    PAGE.write_text(f"{before}{BEGIN}\n{made}\n{END}{after}")
    plot(results)


def plot(results: Results) -> None:
    """CPU per event, small and big, a bar for each round's median, on a logarithmic scale."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams.update({"svg.hashsalt": "workflow-watcher", "svg.fonttype": "none"})
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    shown = [watcher for watcher in reversed(ORDER) if watcher.big]
    for corpus, offset in (("small", 0.2), ("big", -0.2)):
        values = [_median(results.rows[each.name, corpus], lambda row: row.cpu_per_event * 1e6) for each in shown]
        bars = axes.barh([number + offset for number in range(len(shown))], values, height=0.38, label=corpus)
        axes.bar_label(bars, fmt="{:.0f}", padding=3)
    axes.set_yticks(range(len(shown)), [each.name for each in shown])
    axes.set_xscale("log")
    axes.set_xlabel("CPU per event, µs (median of the rounds)")
    axes.legend(title="events")
    figure.savefig(PLOT, metadata={"Date": None})


def _cpu(row: Row) -> float:
    return row.cpu_per_event


def _both(small: Sequence[Row], big: Sequence[Row], what: Callable[[Row], float]) -> str:
    return " / ".join(f"{_median(rows, what):,.0f}" for rows in (small, big) if rows)


def _median(values: Iterable[Value], what: Callable[[Value], float]) -> float:
    return statistics.median(map(what, values))


def _part(ratio: float) -> str:
    return f"1/{1 / ratio:.1f}"


def _times(ratio: float) -> str:
    return f"{ratio:.2f}x"


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.0f} MB"
