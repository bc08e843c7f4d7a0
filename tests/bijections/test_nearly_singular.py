"""A matrix that cannot be inverted in its precision is an error; one that can, is inverted."""

import pytest
import torch

from pyro_realnvp import ActNorm, Chain, Flow, InvertibleConv1x1, StandardNormal

EVENTS = [(4,), (4, 3, 2)]


def convolution(shape, plu, smallest, *, normed=False):
    """A convolution whose smallest singular value is ``smallest`` times the others, or for ``plu`` about that."""
    layer = InvertibleConv1x1(shape, plu=plu, norm=ActNorm(shape) if normed else None).eval()
    channels = shape[0]
    with torch.no_grad():
        if plu:
            layer.matrix.log_s[-1] = torch.tensor(smallest).log()
        else:
            left, right = (torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64)).Q for _ in range(2))
            values = torch.ones(channels, dtype=torch.float64)
            values[-1] = smallest
            layer.matrix.weight.copy_(left @ values.diag() @ right)
    return layer


every = pytest.mark.parametrize("shape", EVENTS, ids=["vector", "image"])
both = pytest.mark.parametrize("plu", [False, True], ids=["plain", "plu"])


@every
@both
@pytest.mark.parametrize("normed", [False, True], ids=["alone", "with-norm"])
def test_a_nearly_singular_matrix_is_not_inverted(shape, plu, normed):
    layer = convolution(shape, plu, 1e-10, normed=normed)
    y = torch.randn(5, *shape)
    for inverse in (layer.inv, lambda y: layer.inverse_and_log_det(y)[0], Chain([layer]).inv):
        with pytest.raises(ValueError, match="singular"):
            inverse(y)


@every
@both
def test_a_flow_with_a_nearly_singular_matrix_does_not_sample(shape, plu):
    layer = convolution(shape, plu, 1e-10)
    with pytest.raises(ValueError, match="singular"):
        Flow(StandardNormal(shape), [layer.inv]).sample((2,))


@every
@both
def test_a_condition_of_a_thousand_is_inverted_to_a_thousandth(shape, plu):
    layer = convolution(shape, plu, 1e-3)
    x = torch.randn(100, *shape)
    back = layer.inverse_and_log_det(layer.forward_and_log_det(x)[0])[0]
    assert (back - x).norm() <= 1e-3 * x.norm()


@every
@both
def test_what_float32_cannot_invert_float64_can(shape, plu):
    layer = convolution(shape, plu, 1.0).double()
    with torch.no_grad():
        values = torch.tensor([1.0, 1.0, 1.0, 1e-10], dtype=torch.float64)
        if plu:
            layer.matrix.log_s[-1] = values[-1].log()
        else:
            layer.matrix.weight.copy_(layer.matrix.weight @ values.diag())
    x = torch.randn(20, *shape, dtype=torch.float64)
    back = layer.inverse_and_log_det(layer.forward_and_log_det(x)[0])[0]
    assert (back - x).norm() <= 1e-3 * x.norm()
