"""Flow++ assembled: the published parameter counts, its structure, and its dequantization."""

from functools import partial

import pytest
import torch
from torch import nn

from pyro_realnvp import (
    AttentiveConvs,
    Dequantized,
    Flow,
    GatedAttention,
    GatedConvs,
    StandardNormal,
    flowpp_dequantizer,
    flowpp_transforms,
)

NET = partial(GatedAttention, hidden=8, blocks=1, heads=2, dropout=0.0)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_cifar10_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        main = Flow(StandardNormal((3, 32, 32)), flowpp_transforms((3, 32, 32)))
        noise = Flow(StandardNormal((3, 32, 32)), flowpp_dequantizer((3, 32, 32)))
        context = GatedConvs(6)
    assert (count(main), count(noise) - count(context), count(context)) == (27_976_464, 3_299_040, 167_936)
    assert count(main) + count(noise) == 31_443_440


def test_imagenet32_has_the_published_number_of_parameters() -> None:
    net = partial(GatedAttention, hidden=128, dropout=0.0, weight_norm=True)
    with torch.device("meta"):
        main = nn.ModuleList(
            flowpp_transforms((3, 32, 32), couplings=(7, 3, 3), pointwise=False, net=partial(net, blocks=20))
        )
        noise = Flow(
            StandardNormal((3, 32, 32)),
            flowpp_dequantizer(
                (3, 32, 32),
                couplings=8,
                pointwise=False,
                net=partial(net, blocks=8),
                embedding=partial(AttentiveConvs, size=(32, 16)),
            ),
        )
    assert count(main) + count(noise) == 168_955_724


@pytest.mark.parametrize("weight_norm", [False, True])
def test_every_pixel_depends_on_the_others_and_the_density_is_right(weight_norm: bool) -> None:
    net = partial(NET, weight_norm=weight_norm)
    flow = Flow(StandardNormal((1, 4, 4)), flowpp_transforms((1, 4, 4), couplings=(2, 2, 2), components=2, net=net))
    flow = flow.double().eval()
    for parameter in flow.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    z = torch.randn(1, 4, 4, dtype=torch.float64)
    x, log_det = flow.transforms.forward_and_log_det(z)
    jacobian = torch.autograd.functional.jacobian(flow.transforms, z).reshape(16, 16)
    torch.testing.assert_close(jacobian.slogdet().logabsdet, log_det, atol=1e-10, rtol=0)
    assert (jacobian.abs() > 1e-12).all()
    torch.testing.assert_close(flow.transforms.inverse_and_log_det(x)[0], z, atol=1e-9, rtol=0)


def test_dequantization_depends_on_the_image_and_stays_in_its_bin() -> None:
    transforms = flowpp_dequantizer(
        (1, 4, 4), couplings=2, components=2, net=NET, embedding=partial(GatedConvs, hidden=4, blocks=1, dropout=0.0)
    )
    q = Flow(StandardNormal((1, 4, 4)), transforms).eval()
    for parameter in q.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    k = torch.randint(8, (5, 1, 4, 4))
    u = torch.rand(1, 4, 4).expand(5, 1, 4, 4)
    log_q = q.condition(k / 8 - 0.5).log_prob(u)
    assert log_q.shape == (5,)
    assert log_q.unique().numel() == 5
    noise = q.condition(k / 8 - 0.5).sample((100,))
    assert noise.shape == (100, 5, 1, 4, 4)
    assert ((noise >= 0) & (noise <= 1)).all()
    density = Flow(StandardNormal((1, 4, 4)), flowpp_transforms((1, 4, 4), couplings=1, components=2, net=NET))
    loss = -Dequantized(density.distribution(), 8, dequantizer=q).log_prob(k).mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in q.parameters())


@pytest.mark.parametrize("event_shape", [1, 2, 5])
def test_vectors(event_shape: int) -> None:
    flow = Flow(StandardNormal(event_shape), flowpp_transforms(event_shape, components=3)).double()
    x = torch.randn(7, event_shape, dtype=torch.float64)
    z, log_det = flow.transforms.inverse_and_log_det(x)
    assert (z - x).abs().max() < 1.5 * (1 + x.abs().max())  # starts near the identity
    torch.testing.assert_close(flow.transforms(z), x, atol=1e-9, rtol=0)
    assert log_det.shape == (7,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"components": 0}, "components must be at least 1, but got 0"),
        ({"couplings": (1, 2)}, r"one or three.*\(1, 2\)"),
        ({"couplings": 0}, "couplings must be at least 1, but got 0"),
        ({"context_shape": (1, 2, 2)}, r"context map.*\(1, 2, 2\)"),
        ({"net": partial(GatedAttention, hidden=9)}, "heads that divide hidden=9, but got heads=4"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        flowpp_transforms((1, 4, 4), **arguments)


def test_sizes_that_cannot_be_split() -> None:
    with pytest.raises(ValueError, match=r"SqueezeColumns needs an image of even width.*\(1, 4, 3\)"):
        flowpp_transforms((1, 4, 3), net=NET)
    with pytest.raises(ValueError, match=r"Squeeze needs even height and width.*\(1, 3, 4\)"):
        flowpp_transforms((1, 3, 4), net=NET)
