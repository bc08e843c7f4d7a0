"""Masks: True = passes unchanged."""

import pytest
import torch

from pyro_realnvp import alternating, channelwise, checkerboard


@pytest.mark.parametrize("shape", [(1, 2, 2), (3, 4, 5), (2, 1, 2)])
def test_checkerboard_keeps_the_top_left_pixel(shape):
    mask = checkerboard(shape)
    assert mask.dtype == torch.bool
    assert mask.shape == shape
    for c in range(shape[0]):
        for i in range(shape[1]):
            for j in range(shape[2]):
                assert mask[c, i, j].item() == bool((i + j + 1) % 2)
    assert torch.equal(checkerboard(shape, flip=True), ~mask)


def test_channelwise_keeps_the_first_half():
    mask = channelwise((4, 2, 3))
    assert mask[:2].all()
    assert not mask[2:].any()
    assert torch.equal(channelwise((4, 2, 3), flip=True), ~mask)


@pytest.mark.parametrize("size", [2, 3, 6])
def test_alternating_keeps_the_first_coordinate(size):
    mask = alternating((size,))
    assert mask.tolist() == [i % 2 == 0 for i in range(size)]
    assert torch.equal(alternating((size,), flip=True), ~mask)


def test_masks_own_their_memory():
    mask = checkerboard((2, 2, 2))
    mask[0, 0, 0] = False  # an expanded tensor would change in both channels
    assert mask[1, 0, 0]


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (checkerboard, (3,)),
        (checkerboard, (3, 1, 1)),
        (channelwise, (3, 2, 2)),
        (channelwise, (4,)),
        (alternating, (1,)),
        (alternating, (1, 2, 2)),
    ],
)
def test_shapes_that_cannot_be_split_are_refused(make, shape):
    with pytest.raises(ValueError, match=make.__name__) as caught:
        make(shape)
    assert str(shape) in str(caught.value)
