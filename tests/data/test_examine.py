"""What is said of an image is true, and no image can stop the run."""

import hashlib
import io
import pickle
import subprocess
import sys
from pathlib import Path

import imagehash
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mae.data import reasons
from mae.data.decoding.decode import decode
from mae.data.reasons import ImageFault
from mae.data.records import Annotation, Inline, Record
from mae.data.sharding import examine as examine_module
from mae.data.sharding.examine import FACTS, Facts, examine, facts_from_row, facts_row
from mae.params import DataParams
from tests.data import zoo

ROOT = Path(__file__).parents[2]


def facts_of(content: bytes, **changes: object) -> Facts:
    return examine(Record("a", Inline(content)), zoo.data_params(**changes))


def fault_of(content: bytes, **changes: object) -> ImageFault:
    with pytest.raises(ImageFault) as caught:
        facts_of(content, **changes)
    return caught.value


@pytest.mark.parametrize("name", sorted(zoo.good_kinds()))
@pytest.mark.parametrize(("channels", "bit_depth"), [(1, 8), (3, 8), (4, 16)])
def test_facts_are_true_of_every_kind(name: str, channels: int, bit_depth: int) -> None:
    content = zoo.good_kinds()[name]
    facts = facts_of(content, channels=channels, bit_depth=bit_depth)
    pixels = decode(content, channels, bit_depth)
    scaled = pixels / (2**bit_depth - 1)
    assert (facts.height, facts.width) == pixels.shape[:2]
    assert facts.bytes == len(content)
    assert facts.sha256 == hashlib.sha256(content).hexdigest()
    assert facts.mean == pytest.approx(scaled.mean())
    assert facts.std == pytest.approx(scaled.std())
    assert 0 <= facts.entropy <= 8
    assert not facts.blank and facts.phash is not None
    whole = pixels.reshape(-1, channels).astype(object)
    assert facts.sums.count == len(whole)
    assert facts.sums.total == tuple(whole.sum(axis=0))
    assert facts.sums.squares == tuple((whole**2).sum(axis=0))


@pytest.mark.parametrize("name", sorted(zoo.bad_kinds().keys() - {"phone.heic"}))
def test_every_bad_kind_is_a_fault(name: str) -> None:
    content, reason = zoo.bad_kinds()[name]
    fault = fault_of(content, channels=3)
    assert fault.reason == reason
    assert fault.detail


def test_entropy_of_the_grey_histogram() -> None:
    values = np.repeat(np.arange(4, dtype=np.uint8) * 60, 64).reshape(16, 16, 1)
    assert facts_of(zoo.png(values)).entropy == pytest.approx(2.0)
    halves = np.zeros((16, 16, 1), np.uint8)
    halves[:4] = 255
    assert facts_of(zoo.png(halves)).entropy == pytest.approx(0.811278, abs=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_blank_is_one_value_in_every_channel(channels: int) -> None:
    flat = np.full((20, 24, 3), (200, 10, 90), np.uint8)
    facts = facts_of(zoo.png(flat), channels=channels)
    assert facts.blank and facts.phash is None and facts.entropy == 0
    flat[3, 3, 2] = 255
    assert not facts_of(zoo.png(flat), channels=3).blank


def test_the_hash_is_imagehashs() -> None:
    for seed in range(5):
        pixels = zoo.pattern(60, 200, seed=seed)
        expected = imagehash.phash(Image.fromarray(pixels))
        facts = facts_of(zoo.png(pixels), channels=3)
        assert facts.phash == int(str(expected), 16)


def test_of_large_images_the_hash_is_imagehashs_but_for_a_bit() -> None:
    random = np.random.default_rng(0)
    for _ in range(8):
        coarse = Image.fromarray(random.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((800, 600), Image.Resampling.BICUBIC))
        expected = int(str(imagehash.phash(Image.fromarray(pixels))), 16)
        found = facts_of(zoo.png(pixels), channels=3).phash
        assert found is not None
        assert (found ^ expected).bit_count() <= 2


def test_the_look_survives_what_people_do_to_images() -> None:
    random = np.random.default_rng(1)
    coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    photo = coarse.resize((320, 240), Image.Resampling.BICUBIC)
    first = facts_of(zoo.encoded(photo, "PNG"), channels=3).phash
    assert first is not None
    for changed in (
        zoo.encoded(photo, "JPEG", quality=60),
        zoo.encoded(photo.resize((160, 120)), "PNG"),
        zoo.encoded(photo.point(lambda value: value * 0.9), "WEBP"),
    ):
        found = facts_of(changed, channels=3).phash
        assert found is not None and (found ^ first).bit_count() <= 4


def test_dim_sixteen_bit_images_are_told_apart() -> None:
    """A camera of 12 bits fills a sixteenth of the range: its images must not all look black."""
    hashes = set()
    for seed in range(6):
        random = np.random.default_rng(seed)
        dim = random.integers(0, 200, (32, 32, 1)).astype(np.uint16)
        hashes.add(facts_of(zoo.png_16(dim), bit_depth=16).phash)
    assert len(hashes) == 6 and None not in hashes


@pytest.mark.parametrize("channels", [2, 4])
def test_what_is_transparent_is_not_looked_at(channels: int) -> None:
    clear = np.zeros((32, 32, 4), np.uint8)
    clear[..., :3] = np.random.default_rng(0).integers(0, 256, (32, 32, 3))
    assert facts_of(zoo.png(clear), channels=channels).phash is None


def test_many_bands_have_a_look_too() -> None:
    facts = facts_of(zoo.bands(13, np.uint16), channels=13, bit_depth=16)
    assert facts.channels == 13 and facts.phash is not None and len(facts.sums.total) == 13
    chosen = facts_of(zoo.bands(13), channels=3, bands=(4, 2, 0))
    pixels = zoo.pattern(20, 24, 13)[..., [4, 2, 0]]
    assert chosen.sums.total == tuple(pixels.reshape(-1, 3).sum(axis=0, dtype=int))


def test_too_many_channels_are_too_large_before_they_are_decoded() -> None:
    assert fault_of(zoo.npy_header((9_000, 9_000, 500))).reason == reasons.TOO_LARGE


def test_annotations_are_counted_and_their_own_faults_kept() -> None:
    good: Annotation = {
        "category": "x",
        "bbox": [1, 1, 5, 5],
        "segmentation": [],
        "area": 25.0,
        "iscrowd": 0,
    }
    image = Inline(zoo.png(zoo.pattern(20, 24, 1)))
    record = Record("a", image, annotations=[good, {**good, "bbox": [99, 1, 5, 5]}])
    facts = examine(record, zoo.data_params())
    assert (facts.annotations, facts.annotations_dropped) == (1, 1)
    assert examine(Record("a", image), zoo.data_params()).annotations is None
    assert examine(Record("a", image, annotations=[]), zoo.data_params()).annotations == 0
    with pytest.raises(ImageFault, match="drawn on 9 x 9"):
        examine(Record("a", image, annotations=[good], drawn_on=(9, 9)), zoo.data_params())


@pytest.mark.parametrize("error", [MemoryError(), RecursionError("deep"), KeyError(7)])
def test_a_decoders_surprise_costs_one_image(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def burst(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(examine_module, "load", burst)
    fault = fault_of(zoo.png(zoo.pattern(20, 24)))
    assert fault.reason == reasons.DAMAGED
    assert "memory" in fault.detail or type(error).__name__ in fault.detail


_SEEDS = [zoo.good_kinds()[name] for name in ("progressive.jpg", "rgb16.png", "rgb16.tif")] + [
    *(zoo.good_kinds()[name] for name in ("twelve.jpg", "spare.tif", "bands.npy", "av1.avif")),
    zoo.tiff(zoo.pattern(40, 40, 5), photometric="minisblack", compression="zlib", tile=(16, 16)),
]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(_SEEDS),
    st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), max_size=4),
    st.integers(0, 1500),
)
def test_damage_never_raises_anything_but_a_fault(
    content: bytes, flips: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(content)
    for place, value in flips:
        data[place % len(data)] = value
    del data[len(data) - cut % (len(data) // 2) :]
    try:
        facts = facts_of(bytes(data), channels=3, max_pixels=100_000)
    except ImageFault as fault:
        assert fault.reason in reasons.ALL and fault.detail
    else:
        assert facts.sums.count == facts.height * facts.width


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes(content: bytes) -> None:
    assert fault_of(content).reason in reasons.ALL


def test_rows_keep_facts_whole_through_parquet(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    flat = zoo.png(np.full((20, 24, 1), 65535, np.uint16)[..., :1].astype(np.uint8))
    wide = zoo.png_16(np.full((300, 400, 3), 65535, np.uint16))
    kinds = [facts_of(flat), facts_of(wide, channels=3, bit_depth=16)]
    kinds += [facts_of(content, channels=3) for content in zoo.good_kinds().values()]
    rows = [facts_row(facts) for facts in kinds]
    assert all(set(row) == set(FACTS.names) for row in rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=FACTS), tmp_path / "facts.parquet")
    read = pq.read_table(tmp_path / "facts.parquet").to_pylist()
    assert [facts_from_row(row) for row in read] == kinds
    assert pickle.loads(pickle.dumps(kinds)) == kinds


def test_processes_that_examine_do_without_torch() -> None:
    """It takes seconds and hundreds of megabytes, in every one of them."""
    script = (
        "import sys, tests.data.zoo as zoo\n"
        "from mae.data.sharding.examine import examine\n"
        "from mae.data.sharding.stored import stored_form\n"
        "from mae.data.records import Inline, Record\n"
        "data = zoo.data_params(store={'form': 'encoded'})\n"
        "for content in zoo.good_kinds().values():\n"
        "    facts = examine(Record('a', Inline(content)), data)\n"
        "    stored_form(content, facts.height, facts.width, data)\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0


def test_data_params_can_be_sent_to_other_processes() -> None:
    data = zoo.data_params(channels=3, bands=(2, 1, 0))
    assert isinstance(pickle.loads(pickle.dumps(data)), DataParams)
    assert io.BytesIO(pickle.dumps(data)).getbuffer().nbytes < 10_000
