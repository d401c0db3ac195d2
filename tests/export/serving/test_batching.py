"""Batches are filled by count or time, keep models and shapes apart, and no image spoils others."""

import threading
import time
from concurrent.futures import Future, wait

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mae.export.serving.batching import Answer, Batcher

PATIENCE = 60


class Sums:
    """A model: the sum of each image. Remembers its batches; may be held up, or fail on a value."""

    def __init__(self, fails_on: int | None = None) -> None:
        self.batches: list[tuple[int, ...]] = []
        self.may_run = threading.Event()
        self.may_run.set()
        self.running = threading.Event()
        self._fails_on = fails_on

    def run(self, images: np.ndarray) -> Answer:
        self.running.set()
        assert self.may_run.wait(PATIENCE)
        self.batches.append(images.shape)
        if self._fails_on is not None and (images == self._fails_on).any():
            raise RuntimeError("poison")
        return {"sum": images.sum((1, 2, 3)).astype(np.float32)}


def image(value: int, height: int = 2) -> np.ndarray:
    return np.full((1, height, 3), value, np.uint8)


def sums(futures: list[Future[Answer]]) -> list[float]:
    return [float(future.result(PATIENCE)["sum"]) for future in futures]


def test_a_full_batch_does_not_wait() -> None:
    model, batcher = Sums(), Batcher(4, wait_seconds=PATIENCE)
    futures = [batcher.submit(model, image(value)) for value in range(4)]
    assert sums(futures) == [0, 6, 12, 18]
    assert model.batches == [(4, 1, 2, 3)]
    batcher.close()


def test_a_lone_image_waits_no_longer_than_told() -> None:
    model, batcher = Sums(), Batcher(4, wait_seconds=0.05)
    started = time.monotonic()
    assert sums([batcher.submit(model, image(1))]) == [6]
    assert time.monotonic() - started >= 0.05
    assert model.batches == [(1, 1, 2, 3)]
    batcher.close()


def test_what_comes_during_an_inference_is_the_next_batch() -> None:
    model, batcher = Sums(), Batcher(4, wait_seconds=0)
    model.may_run.clear()
    first = batcher.submit(model, image(1))
    assert model.running.wait(PATIENCE)
    rest = [batcher.submit(model, image(value)) for value in range(6)]
    model.may_run.set()
    assert sums([first, *rest]) == [6, 0, 6, 12, 18, 24, 30]
    assert [shape[0] for shape in model.batches] == [1, 4, 2]
    batcher.close()


def test_models_and_shapes_are_not_mixed() -> None:
    one, other, batcher = Sums(), Sums(), Batcher(8, wait_seconds=0.01)
    futures = [
        batcher.submit(one if value % 2 else other, image(value, height=2 + value // 4))
        for value in range(8)
    ]
    assert sums(futures) == [3 * value * (2 + value // 4) for value in range(8)]
    assert {shape[2] for shape in one.batches} == {2, 3}
    assert sum(shape[0] for shape in one.batches) == 4
    batcher.close()


@settings(max_examples=25, deadline=None)
@given(
    values=st.lists(st.integers(0, 9), min_size=1, max_size=40),
    batch=st.integers(1, 8),
    poison=st.integers(0, 9),
)
def test_poison_fails_alone(values: list[int], batch: int, poison: int) -> None:
    model, batcher = Sums(fails_on=poison), Batcher(batch, wait_seconds=0)
    futures = [batcher.submit(model, image(value)) for value in values]
    wait(futures, PATIENCE)
    for value, future in zip(values, futures, strict=True):
        if value == poison:
            with pytest.raises(RuntimeError, match="poison"):
                future.result(0)
        else:
            assert float(future.result(0)["sum"]) == 6 * value
    batcher.close()


def test_abandoned_images_are_not_run() -> None:
    model, batcher = Sums(), Batcher(4, wait_seconds=0)
    model.may_run.clear()
    first = batcher.submit(model, image(1))
    assert model.running.wait(PATIENCE)
    given_up, kept = (batcher.submit(model, image(value)) for value in (2, 3))
    assert given_up.cancel()
    model.may_run.set()
    assert sums([first, kept]) == [6, 18]
    assert [shape[0] for shape in model.batches] == [1, 1]
    batcher.close()


def test_close_answers_what_is_queued_and_takes_no_more() -> None:
    model, batcher = Sums(), Batcher(2, wait_seconds=PATIENCE)
    model.may_run.clear()
    futures = [batcher.submit(model, image(value)) for value in range(5)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    model.may_run.set()
    assert sums(futures) == [0, 6, 12, 18, 24]
    closing.join(PATIENCE)
    assert not closing.is_alive()
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit(model, image(1))


def test_batches_are_measured() -> None:
    ran: list[int] = []
    batcher = Batcher(3, PATIENCE, lambda images, seconds: ran.append(images))
    model = Sums()
    sums([batcher.submit(model, image(1)) for _ in range(3)])
    batcher.close()
    assert ran == [3]
