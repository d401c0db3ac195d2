"""Which split an image belongs to: train, val or test.

The share of a held-out split is a range of the hash of the image's group (or id), so adding
images never moves one, and another share for val never changes what is in test. The seed of the
run plays no part: models of different seeds must be measured on images none of them learned from.
"""

import torch

from mae.data.records import Record
from mae.hashing import text_id, uniform
from mae.params import SplitParams

SPLITS = ("train", "val", "test")


def split_of(record: Record, shares: SplitParams, carve: tuple[str, ...]) -> str:
    """Return the record's own split, or else the one its group hashes to among `carve`."""
    if record.split is not None:
        return record.split
    ids = torch.tensor([text_id(record.group or record.id)])
    draw = float(uniform(0, "split", 0, ids, 1))
    if "test" in carve and draw < shares.test:
        return "test"
    if "val" in carve and draw >= 1 - shares.val:
        return "val"
    return "train"
