"""How long it takes to judge a manifest, and in how much memory, ours beside the usual way.

    python -m benchmarks.validation [--rows 100000 1000000 10000000] [--json PATH]

Ours: all that `mae data check` does, from starting Python to the verdict. The usual way: the
manifest read into pandas as a whole, copies found by pandas, Great Expectations on every row; it
is left out above a million rows. Both count copies and leaks, and must count the same.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mae.data.dataset import read_dataset_info
from mae.data.validation.expectations import check_datasets
from mae.files import write_json
from mae.params import read_params
from mae.provenance import hardware
from tests.data.made_manifest import Made, make_dataset

USUAL_MOST = 1_000_000
Counts = dict[str, int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--json", type=Path, help="where to write the results")
    parser.add_argument("--measure", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(CONTENDERS[options.measure](options.folder)))
        return
    results = [result for rows in options.rows for result in _measured(rows)]
    if options.json:
        content = {"hardware": hardware(torch.device("cpu")), "results": results}
        write_json(options.json, content)


def _measured(rows: int) -> list[dict[str, Any]]:
    results = []
    with tempfile.TemporaryDirectory(prefix="mae-validation-") as folder:
        make_dataset(
            Path(folder), Made(rows=rows, labels=1000, duplicates=0.02, near_duplicates=0.05)
        )
        for name in ("ours", "pandas") if rows <= USUAL_MOST else ("ours",):
            started = time.perf_counter()
            found = _in_a_process(name, folder)
            seconds = round(time.perf_counter() - started, 2)
            results.append({"contender": name, "rows": rows, "seconds": seconds, **found})
            print(f"{rows:>11,} rows  {name:<7} {seconds:>7.1f} s  {found['peak_mb']:>6,} MB")
    counts = [result["counts"] for result in results]
    assert all(one == counts[0] for one in counts), counts
    return results


def _in_a_process(name: str, folder: str) -> dict[str, Any]:
    """Run a contender on its own, so that its peak of memory is its own."""
    command = [sys.executable, "-m", "benchmarks.validation", "--measure", name, "--folder", folder]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)


def ours(folder: Path) -> dict[str, Any]:
    params = read_params().validate_
    found = check_datasets([read_dataset_info(folder)], params, folder / "reference")
    totals = found.profiles["images"]["totals"]
    counts = {name: totals[name] for name in ("accepted", "duplicates", "leaked")}
    return _result(counts, len(found.verdict.findings))


def usual(folder: Path) -> dict[str, Any]:
    """The whole manifest in pandas, and expectations on every row of it."""
    import great_expectations as gx
    import pandas as pd
    from great_expectations.data_context.types.base import ProgressBarsConfig

    rows = pd.read_parquet(folder / "manifest.parquet")
    good = rows[rows["accepted"]]
    train, held_out = good[good["split"] == "train"], good[good["split"] != "train"]
    counts = {
        "accepted": len(good),
        "duplicates": int(good["sha256"].duplicated().sum()),
        "leaked": int(held_out["sha256"].isin(set(train["sha256"])).sum()),
    }
    expected = gx.expectations
    wanted = [
        *(
            expected.ExpectColumnValuesToNotBeNull(column=name)
            for name in ("key", "split", "sha256", "height", "width", "mean", "std", "entropy")
        ),
        *(
            expected.ExpectColumnValuesToBeBetween(column=name, min_value=low, max_value=high)
            for name, low, high in (
                *(("height", 8, None), ("width", 8, None), ("mean", 0, 1)),
                *(("std", 0, 0.5), ("entropy", 0, 8), ("orientation", 1, 8)),
            )
        ),
        expected.ExpectColumnValuesToBeUnique(column="key"),
        expected.ExpectColumnValuesToBeInSet(column="channels", value_set=[3]),
        expected.ExpectColumnValuesToMatchRegex(column="sha256", regex="^[0-9a-f]{64}$"),
    ]
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("manifest").add_dataframe_asset("accepted")
    batch = asset.add_batch_definition_whole_dataframe("whole").get_batch({"dataframe": good})
    result = batch.validate(gx.ExpectationSuite(name="manifest", expectations=wanted))
    assert result.success
    return _result(counts, len(result.results))


def _result(counts: Counts, expectations: int) -> dict[str, Any]:
    # Not getrusage: Linux lets a process begin with the peak of the one that started it.
    status = Path("/proc/self/status").read_text()
    kilobytes = int(status.split("VmHWM:")[1].split()[0])
    peak = kilobytes * 1024 // 1_000_000
    return {"counts": counts, "expectations": expectations, "peak_mb": peak}


CONTENDERS: dict[str, Callable[[Path], dict[str, Any]]] = {"ours": ours, "pandas": usual}


if __name__ == "__main__":
    main()
