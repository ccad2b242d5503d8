"""How many tables of 100 operators are estimated per second on one core: `python tests/benchmarks/estimator.py`. The floor is 5,000."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from operator_rows import random_tables

from mcompress.targets.device_files import load_device
from mcompress.targets.latency import estimate_many
from mcompress.targets.operators import OperatorTable

TABLES, OPERATORS, ROUNDS, DRAWN = 2000, 100, 5, 97


def main() -> None:
    """Print the rate of the best of a few rounds, per unit."""
    drawn = random_tables(DRAWN, least=OPERATORS, most=OPERATORS + 1)
    # Each row from any of the drawn tables, at the index that it has there, so that it reads from rows before it.
    tables = [OperatorTable(tuple(drawn[(7 * i + 13 * k) % DRAWN].operators[k] for k in range(OPERATORS)), 0) for i in range(TABLES)]
    device = load_device("snapdragon865")
    for unit in device.units:
        seconds = []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            estimate_many(tables, device, unit, "int8")
            seconds.append(time.perf_counter() - started)
        logging.info("%s: %.0f tables of %d operators per second", unit, TABLES / min(seconds), OPERATORS)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
