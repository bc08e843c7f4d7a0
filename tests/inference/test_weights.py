"""Log-weights of any size."""

import pytest
import torch

from pyro_realnvp import effective_sample_size


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e16, -1e16, 1e30, -1e30, 0.0])
def test_equal_weights_of_any_size_count_all(size, dtype):
    assert effective_sample_size(torch.full((4,), size, dtype=dtype)) == pytest.approx(4)


def test_one_large_weight_counts_alone():
    assert effective_sample_size(torch.tensor([1e16, 0.0, 0.0, -1e16])) == pytest.approx(1)
    assert effective_sample_size(torch.tensor([1e16, 1e16, -float("inf")])) == pytest.approx(2)
