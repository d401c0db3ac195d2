"""Histograms of fixed bins: small enough to keep, fine enough to compare two versions by."""

import math
from dataclasses import dataclass
from typing import Any

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_DIGITS = 6


@dataclass(frozen=True)
class Linear:
    """`count` bins of equal width from 0 to `top`."""

    top: float
    count: int

    def sql(self, column: str) -> str:
        steps = f"floor({column} * {self.count / self.top!r})"
        return f"CAST(greatest(0, least({self.count - 1}, {steps})) AS BIGINT)"

    def lower_edge(self, number: int) -> float:
        return number * self.top / self.count


@dataclass(frozen=True)
class Logarithmic:
    """`count` bins to each doubling, from 1 upwards."""

    count: int

    def sql(self, column: str) -> str:
        return f"CAST(floor(log2(greatest(1, {column})) * {self.count}) AS BIGINT)"

    def lower_edge(self, number: int) -> float:
        return 2 ** (number / self.count)


# Columns of the manifest. Pixels are on a scale of 0 to 1, so their deviation is 0.5 at most.
SCALES: dict[str, Linear | Logarithmic] = {
    "height": Logarithmic(16),
    "width": Logarithmic(16),
    "bytes": Logarithmic(16),
    "mean": Linear(1.0, 256),
    "std": Linear(0.5, 256),
    "entropy": Linear(8.0, 256),
}


@dataclass(frozen=True)
class ColumnProfile:
    """One column of numbers. bins: number of the bin -> rows in it. quantiles: exact to a bin,
    and exact where all values of the bin are one. low, high, mean: None where there is no row."""

    count: int
    low: float | None
    high: float | None
    mean: float | None
    quantiles: dict[float, float]
    bins: dict[int, int]

    @classmethod
    def of(cls, rows: list[tuple[int, int, float, float, int]]) -> "ColumnProfile":
        """rows: for each bin in order its number, count, least and largest value, and the sum
        of the values in millionths."""
        if not rows:
            return cls(0, None, None, None, {}, {})
        count = sum(row[1] for row in rows)
        return cls(
            count=count,
            low=rows[0][2],
            high=rows[-1][3],
            mean=sum(row[4] for row in rows) / count / 1e6,
            quantiles={q: _quantile(rows, q * count) for q in QUANTILES},
            bins={row[0]: row[1] for row in rows},
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "count": self.count,
            "min": _rounded(self.low),
            "max": _rounded(self.high),
            "mean": _rounded(self.mean),
            "quantiles": {str(q): _rounded(value) for q, value in self.quantiles.items()},
            "bins": [list(item) for item in self.bins.items()],
        }


def _quantile(rows: list[tuple[int, int, float, float, int]], rank: float) -> float:
    """Return the value that `rank` rows do not exceed, on a line through the bin it falls into."""
    before = 0
    for _, count, low, high, _ in rows:
        if before + count >= rank:
            return low + (high - low) * max(0.0, rank - before) / count
        before += count
    return rows[-1][3]


def _rounded(value: float | None) -> float | None:
    if value is None:
        return None
    assert math.isfinite(value)
    return int(value) if float(value).is_integer() else round(value, _DIGITS)
