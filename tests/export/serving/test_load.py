"""2,000 requests at 16 connections, a twentieth of them broken: answered right, and no growth."""

import numpy as np
import pytest

from tests.export.serving import made
from tests.export.serving.conftest import Files

load = pytest.importorskip("benchmarks.serving", reason="the benchmarks are not here")

REQUESTS, CONNECTIONS = 2000, 16


@pytest.mark.slow
def test_under_load(files: Files) -> None:
    images = [made.png(seed, 40 + seed, 60) for seed in range(24)]
    images += [made.encoded(made.picture(seed, 375, 500), "JPEG") for seed in range(8)]
    expected = load.expected_vectors(files.encoder, images)
    assert len(np.unique(expected.round(3), axis=0)) == len(images)  # a mix-up would be seen
    shots = load.shots(images, REQUESTS)
    broken = [shot.what for shot in shots if isinstance(shot.what, str)]
    assert len(broken) == REQUESTS // 20 and set(broken) == set(load.BROKEN)

    with load.served(files.encoder, "--device", "cpu", "--threads", "1") as service:
        for _ in range(2):  # what threads, allocators and caches take once, they have now
            load.attack(service.port, shots[:500], CONNECTIONS)
        settle(service)
        before = service.state()
        cut_before = rejected(service, "cut")
        hits = load.attack(service.port, shots, CONNECTIONS)
        settle(service)
        after = service.state()

        assert load.faults(hits, expected, tolerance=1e-5) == []
        assert len([hit for hit in hits if hit.status == 200]) == REQUESTS - len(broken)
        assert rejected(service, "cut") - cut_before == broken.count("cut")
        assert service.metric('maestro_requests_total{endpoint="/embed",status="500"}') == 0
        assert service.metric("maestro_queue_images") == 0
        assert service.metric("maestro_held_bytes") == 0
        shared = service.metric("maestro_batch_images_count")
        assert shared < service.metric("maestro_batch_images_sum")  # some images were run together
        assert after["threads"] <= before["threads"]
        # The asking connection may still be closing; each of the cut ones would be one more.
        assert after["files"] <= before["files"] + 2 < before["files"] + broken.count("cut")
        # A leak of 5 kB a request would be seen; an image or its pixels have more.
        assert after["rss_mb"] <= before["rss_mb"] + 10, (before, after)
    assert not [line for line in service.said if "Traceback" in line]


def rejected(service: object, reason: str) -> float:
    return float(service.metric(f'maestro_rejected_total{{reason="{reason}"}}'))  # type: ignore[attr-defined]


def settle(service: object) -> None:
    """Wait until all connections but the one that asks are gone."""
    while service.metric("maestro_connections") != 1:  # type: ignore[attr-defined]
        pass
