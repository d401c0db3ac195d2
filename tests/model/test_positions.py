import math

import torch

from mae.model.positions import sincos_positions


def test_values_on_a_non_square_grid() -> None:
    """Each value from its definition: halves for column and row, sine then cosine."""
    dim, hp, wp = 16, 3, 5
    positions = sincos_positions(dim, (hp, wp))
    assert positions.shape == (hp * wp, dim)
    for row in range(hp):
        for column in range(wp):
            expected = []
            for axis in (column, row):
                angles = [axis / 10000 ** (i / (dim // 4)) for i in range(dim // 4)]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            torch.testing.assert_close(positions[row * wp + column], torch.tensor(expected))


def test_every_place_has_its_own() -> None:
    positions = sincos_positions(32, (14, 7))
    distances = torch.cdist(positions, positions) + torch.eye(98) * 10
    assert distances.min() > 0.1
