"""A manifest as tables on which expectations can be stated."""

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mae.data.dataset import DatasetInfo
from mae.data.manifest import read_manifest

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Profile:
    """inputs: every input seen, with `quarantined` 0 or 1. accepted: the good ones, with
    `duplicate` (its bytes came before), `blank` (one value throughout), `bare` (nothing marked on
    it), `aspect` and `pixels`. held_out: the accepted ones of val and test, with `leaked` (its
    bytes are in train). classes: name and number in train, of labels or of categories.
    """

    info: DatasetInfo
    inputs: "pd.DataFrame"
    accepted: "pd.DataFrame"
    held_out: "pd.DataFrame"
    classes: "pd.DataFrame"

    @classmethod
    def of(cls, info: DatasetInfo) -> "Profile":
        rows = read_manifest(info.folder).to_pandas()
        inputs = rows[["key", "reason"]].assign(quarantined=(~rows["accepted"]).astype(int))
        accepted = rows[rows["accepted"]].drop(columns=["accepted", "reason", "detail"])
        accepted = accepted.assign(
            duplicate=accepted["sha256"].duplicated().astype(int),
            blank=(accepted["std"] == 0).astype(int),
            bare=(accepted["annotations"].fillna(0) == 0).astype(int),
            aspect=accepted["width"] / accepted["height"],
            pixels=accepted["width"] * accepted["height"],
        )
        learned = accepted["split"] == "train"
        held_out = accepted[~learned]
        leaked = held_out["sha256"].isin(set(accepted.loc[learned, "sha256"]))
        held_out = held_out.assign(leaked=leaked.astype(int))
        return cls(info, inputs, accepted, held_out, _classes(info, accepted[learned]))


def _classes(info: DatasetInfo, learned: "pd.DataFrame") -> "pd.DataFrame":
    import pandas as pd

    counts = Counter(learned["label"].dropna()) if info.classes else info.instances.get("train", {})
    names = list(info.classes or info.categories)
    return pd.DataFrame({"name": names, "train": [counts.get(name, 0) for name in names]})
