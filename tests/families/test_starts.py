"""Whatever a network starts with, scales of RealNVP on images can move."""

import pytest
import torch
from torch import nn

from pyro_realnvp import (
    Conditioner,
    ConvNet,
    Flow,
    MaskedCoupling,
    ResNet,
    SplitCoupling,
    StandardNormal,
    TanhLogScale,
    realnvp_transforms,
)

SHAPE = (1, 4, 4)


class Plain(nn.Module):
    """A network that knows nothing of this package, whose last layer starts at zero or not."""

    def __init__(self, in_channels, out_channels, *, zero, **kwargs):
        super().__init__()
        self.first = nn.Conv2d(in_channels, 4, 3, padding=1)
        self.last = nn.Conv2d(4, out_channels, 3, padding=1)
        if zero:
            nn.init.zeros_(self.last.weight)
            nn.init.zeros_(self.last.bias)

    def forward(self, x):
        batch = x.shape[:-3]
        out = self.last(self.first(x.reshape(batch.numel(), *x.shape[-3:])).tanh())
        return out.reshape(*batch, *out.shape[1:])


class Derived(Conditioner):
    """The same, as a Conditioner that does not say how it starts."""

    def __init__(self, in_channels, out_channels, *, zero, context_dim=0, context_shape=None, mask=None, level=0):
        super().__init__(context_shape=context_shape, context_dim=context_dim)
        self.plain = Plain(in_channels, out_channels, zero=zero)

    @property
    def last(self):
        return self.plain.last

    def forward(self, x, context=None):
        return self.plain(x)


def couplings(flow):
    return [part for part in flow.modules() if isinstance(part, MaskedCoupling | SplitCoupling)]


def alphas(flow):
    return [part.alpha for part in flow.modules() if isinstance(part, TanhLogScale)]


@pytest.mark.parametrize("packed", [False, True], ids=["boards", "packed"])
@pytest.mark.parametrize("zero", [True, False], ids=["ends-in-zeros", "does-not"])
@pytest.mark.parametrize("network", [Plain, Derived])
def test_scales_of_a_network_that_does_not_say_how_it_starts_move(network, zero, packed):
    flow = Flow(
        StandardNormal(SHAPE), realnvp_transforms(SHAPE, net=lambda *a, **k: network(*a, zero=zero, **k), packed=packed)
    )
    before = {name: value.detach().clone() for name, value in flow.named_parameters()}
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    x = torch.randn(16, *SHAPE).cumsum(-1)
    for _ in range(20):
        optimizer.zero_grad()
        (-flow(x).mean()).backward()
        optimizer.step()
    assert len(alphas(flow)) == len(couplings(flow)) > 0
    for name, value in flow.named_parameters():
        assert value.isfinite().all()
        assert not torch.equal(value, before[name]), f"{name} has not moved"
    for coupling in couplings(flow):  # the second half of the channels is that of the scales
        shift, raw = coupling.conditioner.last.weight.chunk(2)
        start = before[next(n for n, p in flow.named_parameters() if p is coupling.conditioner.last.weight)]
        assert (raw - start.chunk(2)[1]).abs().amax() > 1e-4
        assert (shift - start.chunk(2)[0]).abs().amax() > 1e-4


@pytest.mark.parametrize("zero", [True, False], ids=["ends-in-zeros", "does-not"])
def test_a_flow_of_such_networks_starts_close_to_the_identity_in_scale(zero):
    flow = Flow(
        StandardNormal(SHAPE), realnvp_transforms(SHAPE, scales=1, net=lambda *a, **k: Plain(*a, zero=zero, **k))
    )
    log_det = flow.eval().transforms.inverse_and_log_det(torch.randn(5, *SHAPE))[1]
    assert log_det.abs().max() < 0.2 * 16


def test_resnet_starts_with_alpha_0_at_checkerboards():
    transforms = realnvp_transforms(SHAPE, net=lambda *a, **k: ResNet(*a, hidden=4, blocks=1, **k))
    for coupling in couplings(nn.ModuleList(transforms)):
        expected = 0.0 if isinstance(coupling, MaskedCoupling) else 1.0
        assert coupling.transformer.scale.alpha.item() == expected


def test_networks_that_say_they_start_at_zero_have_alpha_1():
    transforms = realnvp_transforms(SHAPE, net=lambda *a, **k: ConvNet(*a, hidden=4, **k))
    assert {alpha.item() for alpha in alphas(nn.ModuleList(transforms))} == {1.0}
