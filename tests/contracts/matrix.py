"""What the contract suites have found, adapter by adapter and clause by clause, told at the end of a test run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import pytest

_TEST, _CONTRACT = "test_", "Contract"


class Matrix:
    """Counts the tests of each clause: a suite may run with several servers, or with several values."""

    def __init__(self) -> None:
        self._passed: dict[tuple[str, str, str], int] = defaultdict(int)
        self._run: dict[tuple[str, str, str], int] = defaultdict(int)

    def add(self, item: pytest.Item, report: pytest.TestReport) -> None:
        """Enter the outcome of a test, if it is a clause of a contract."""
        cell = _cell(item)
        if cell and (report.when == "call" or report.failed):
            self._run[cell] += 1
            self._passed[cell] += report.passed

    def lines(self) -> Iterator[str]:
        """One table for each contract."""
        for contract in sorted({contract for contract, _, _ in self._run}):
            adapters = sorted({adapter for kind, _, adapter in self._run if kind == contract})
            clauses = list(dict.fromkeys(clause for kind, clause, _ in self._run if kind == contract))
            first, widths = max(map(len, clauses)), [max(len(adapter), 5) for adapter in adapters]
            title, names = f"contract of a {contract.lower()}", (f"{name:>5}" for name in adapters)
            yield f"{title:{first}}  {'  '.join(names)}"
            for clause in clauses:
                cells = [
                    f"{self._shown((contract, clause, adapter)):>{width}}"
                    for adapter, width in zip(adapters, widths, strict=True)
                ]
                yield f"{clause:{first}}  {'  '.join(cells)}"

    def _shown(self, cell: tuple[str, str, str]) -> str:
        return f"{self._passed[cell]}/{self._run[cell]}" if self._run[cell] else "-"


def _cell(item: pytest.Item) -> tuple[str, str, str] | None:
    """The contract, the clause and the adapter that a test is about."""
    if not isinstance(item, pytest.Function) or item.cls is None:
        return None
    for base in item.cls.__mro__[1:]:
        if base.__name__.endswith(_CONTRACT) and item.originalname in vars(base):
            contract = base.__name__.removesuffix(_CONTRACT)
            clause = item.originalname.removeprefix(_TEST).replace("_", " ")
            return contract, clause, item.cls.__name__.removeprefix("Test").removesuffix(contract)
    return None
