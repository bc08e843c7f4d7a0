"""The inverse of a mixture of logistics has the second derivatives of the implicit function theorem."""

import pytest
import torch

from pyro_realnvp import MixtureLogistic

DTYPE = torch.float64


def arguments(components):
    transformer = MixtureLogistic(components).to(DTYPE)
    y = torch.randn(2, 2, dtype=DTYPE)
    params = 0.5 * torch.randn(2 * transformer.num_parameters, dtype=DTYPE)
    return transformer, y.requires_grad_(), params.requires_grad_()


@pytest.mark.parametrize("output", [0, 1], ids=["x", "log-det"])
@pytest.mark.parametrize("components", [1, 3])
def test_first_and_second_derivatives_of_the_inverse(components, output):
    transformer, y, params = arguments(components)

    def inverse(y, params):
        return transformer.inverse_and_log_det(y, params, -1)[output]

    assert torch.autograd.gradcheck(inverse, (y, params))
    assert torch.autograd.gradgradcheck(inverse, (y, params))


@pytest.mark.parametrize("components", [1, 3])
def test_second_derivatives_of_the_inverse_in_a_far_tail(components):
    transformer, y, params = arguments(components)
    far = (y.detach() + 12).requires_grad_()
    for output in (0, 1):
        assert torch.autograd.gradgradcheck(
            lambda y, params, output=output: transformer.inverse_and_log_det(y, params, -1)[output], (far, params)
        )


@pytest.mark.parametrize("components", [1, 3])
def test_the_second_derivative_is_minus_that_of_the_forward_map_over_its_cubed_slope(components):
    """x'' = -f''(x) / f'(x)^3."""
    transformer, y, params = arguments(components)
    params = params.detach()
    x, _ = transformer.inverse_and_log_det(y, params, -1)
    slope = torch.autograd.grad(x.sum(), y, create_graph=True)[0]
    second = torch.autograd.grad(slope.sum(), y)[0]
    at = x.detach().requires_grad_()
    image = transformer.forward_and_log_det(at, params, -1)[0]
    of_f = torch.autograd.grad(image.sum(), at, create_graph=True)[0]
    second_of_f = torch.autograd.grad(of_f.sum(), at)[0]
    torch.testing.assert_close(second, -second_of_f / of_f**3)
