"""`nox -s bench`: everyone side by side, and the table in docs/benchmarks.md; `-- --check` compares with the bounds."""

from __future__ import annotations

import argparse
import logging
import os
import platform
import statistics
import sys
from collections import defaultdict

from tests.benchmarks import report
from tests.benchmarks.corpus import Corpus
from tests.benchmarks.rounds import Bench, Row
from tests.benchmarks.scenarios import inventory, relist, walk
from tests.benchmarks.watchers import CURL, INFORMER, KOPF, OURS, OURS_ORDERED, STOCK, STOCK_ORDERED

ROUNDS = 3
# Whom a ratio is about stands beside whom it is compared with.
SMALL = (CURL, OURS, STOCK, INFORMER, OURS_ORDERED, STOCK_ORDERED, KOPF)
BIG = (CURL, OURS, STOCK, INFORMER, KOPF)


def main() -> int:
    """Measure, print, write; 1 where `--check` finds a bound that is not met."""
    parser = argparse.ArgumentParser(prog="nox -s bench --", description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail where a bound is not met")
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("tests.bed").setLevel(logging.WARNING)
    small, big = Corpus("small", nodes=5, frames=4_000).record(), Corpus("big", nodes=40, frames=2_000).record()
    rows: dict[tuple[str, str], list[Row]] = defaultdict(list)
    few, many = [], []
    with Bench(small) as small_bench, Bench(big) as big_bench:
        for _ in range(ROUNDS):
            for watcher in SMALL:
                rows[watcher.name, "small"].append(small_bench.round(watcher, watcher.small))
            for watcher in BIG:
                rows[watcher.name, "big"].append(big_bench.round(watcher, watcher.big))
            few.append(small_bench.took(OURS, 5_000)[0].peak)
            many.append(small_bench.took(OURS, 50_000)[0].peak)
    results = report.Results(
        rows,
        few=round(statistics.median(few)),
        many=round(statistics.median(many)),
        relists=list(relist(small, ROUNDS)),
        walks=list(walk(small, ROUNDS)),
        inventories=list(inventory(small, ROUNDS)),
    )
    checked = list(report.bounds(results))
    about = f"Python {platform.python_version()}, {os.cpu_count()} cores"
    report.write(results, checked, about)
    print("\n".join([*report.table(results), "", *report.bounds_table(checked)]))
    return int(asked.check and not all(bound.met for bound in checked))


if __name__ == "__main__":
    sys.exit(main())
