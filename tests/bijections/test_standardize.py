"""The layer with the mean and the shrunk covariance of data."""

import pytest
import torch

from pyro_realnvp import Flow, StandardNormal, fit, realnvp_transforms, standardized_from
from pyro_realnvp.bijections.standardize import _SHRINKAGES, _shrinkage

F64 = {"dtype": torch.float64}


def correlated(rows, dim=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=generator, **F64)
    return torch.randn(rows, dim, generator=generator, **F64) @ mix.T + 3


def without(x, index, a):
    """Computes -2 log p of one row by the shrunk Gaussian of the others, whose mean is taken as 0."""
    others = torch.cat([x[:index], x[index + 1 :]])
    covariance = (1 - a) * others.T @ others / len(others) + a * torch.eye(x.shape[1], **F64)
    normal = torch.distributions.MultivariateNormal(torch.zeros(x.shape[1], **F64), covariance)
    return -2 * normal.log_prob(x[index])


@pytest.mark.parametrize("count", [5, 9, 40])
def test_the_shrinkage_is_the_best_for_rows_that_are_left_out(count):
    x = correlated(count)
    x = (x - x.mean(0)) / x.std(0, correction=0)
    losses = {a: torch.stack([without(x, index, a) for index in range(count)]).mean() for a in _SHRINKAGES.tolist()}
    assert _shrinkage(x) == min(losses, key=losses.__getitem__)


def test_of_many_rows_it_is_their_gaussian():
    x = correlated(20_000)
    layer = standardized_from(x)
    torch.testing.assert_close(layer.loc, x.mean(0))
    torch.testing.assert_close(layer.scale @ layer.scale.T, x.T.cov(), rtol=0.01, atol=0.01)


def test_a_flow_behind_it_starts_as_that_gaussian_and_is_never_worse():
    x = correlated(2150, dim=8, seed=3)
    rows, fresh = x[:150], x[150:]
    layer = standardized_from(rows)
    gaussian = torch.distributions.MultivariateNormal(layer.loc, scale_tril=layer.scale)
    flow = Flow(StandardNormal(8), [*realnvp_transforms(8), layer]).double()
    torch.testing.assert_close(flow(fresh), gaussian.log_prob(fresh))
    fit(flow, rows, seed=0, progress=False)
    assert flow(fresh).mean() > gaussian.log_prob(fresh).mean() - 0.1


def test_fewer_rows_than_coordinates_and_a_constant_one():
    x = correlated(4, dim=7).float()
    x[:, 2] = 5.0
    layer = standardized_from(x)
    assert layer.scale.dtype == torch.float32
    z, log_det = layer.inverse_and_log_det(x)
    assert z.isfinite().all()
    assert log_det.isfinite().all()


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([[1.0]], "standardized_from.*x.*list"),
        (torch.ones(3, 2).long(), "standardized_from.*int64"),
        (torch.ones(3), r"two rows or more, but got \(3,\)"),
        (torch.ones(1, 3), r"two rows or more, but got \(1, 3\)"),
        (torch.tensor([[0.0], [float("nan")]]), "finite x, but got nan"),
    ],
)
def test_other_data_are_refused(x, message):
    with pytest.raises((ValueError, TypeError), match=message):
        standardized_from(x)
