"""Which split a name speaks of, and what becomes of the splits that a source has."""

import re

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def held_out_roles(given: set[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return given split -> split it becomes, and the splits to carve out of train.

    People's `val` is often the only held-out set they have, as in ImageNet and COCO: then it is
    measured on once, as test, and val comes out of train.
    """
    roles = {split: split for split in given}
    if given == {"train", "val"}:
        roles["val"] = "test"
    return roles, tuple(split for split in ("val", "test") if split not in roles.values())


def record_split(given: str | None, roles: dict[str, str], carve: tuple[str, ...]) -> str | None:
    """Return the split of a record, None for one that the missing splits are carved from."""
    split = roles.get(given or "")
    return None if split == "train" and carve else split


def split_in(name: str) -> str | None:
    """'instances_train2017' -> 'train'; None where no part of the name is a split."""
    for part in re.split(r"[^a-z]+", name.lower()):
        if part in SPLIT_NAMES:
            return SPLIT_NAMES[part]
    return None


def say_carve(carve: tuple[str, ...]) -> str:
    return f"; {' and '.join(carve)} taken by hash" if carve else ""
