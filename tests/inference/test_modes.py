"""Components of a mixture base on the modes of a density, each step by itself."""

import pytest
import torch
from pyro import distributions as dist

from pyro_realnvp import Chain, MixtureBase, Scale
from pyro_realnvp.inference.modes import place_components, rebalance, root_at_mode

LOC = torch.tensor([[-4.0, 0.0], [4.0, 1.0]])
DEVIATION = torch.tensor([[0.5, 0.5], [1.0, 2.0]])
SHARE = torch.tensor([0.2, 0.8])


def log_density(x):
    """Two Gaussians, not normalised."""
    each = dist.Normal(LOC.to(x), DEVIATION.to(x)).to_event(1).log_prob(x.unsqueeze(-2))
    return (each + SHARE.to(x).log()).logsumexp(-1) + 7


@pytest.mark.parametrize("components", [2, 3])
def test_components_are_placed_with_their_shares(components):
    torch.manual_seed(0)
    wide = Chain([Scale((2,))])
    with torch.no_grad():
        wide[0].log_scale.fill_(1.4)
    base = MixtureBase(2, components=components)
    assert place_components(base, wide, log_density) == 2
    with torch.no_grad():
        z = base().sample((20_000,))
        x = wide(z)
    assert (x[:, 0] < 0).double().mean().item() == pytest.approx(0.2, abs=0.03)
    if components > 2:
        return  # of two components of one mode, one is moved a little, so that they can part
    right = x[x[:, 0] > 0]
    torch.testing.assert_close(right.mean(0), LOC[1], atol=0.3, rtol=0)
    torch.testing.assert_close(right.std(0), DEVIATION[1], atol=0.3, rtol=0)


def test_a_single_mode_leaves_the_base_as_it_is():
    torch.manual_seed(0)
    base = MixtureBase(2, components=3)
    before = {key: value.clone() for key, value in base.state_dict().items()}
    one = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    assert place_components(base, Chain([Scale((2,))]), one.log_prob) == 1
    assert all(torch.equal(value, before[key]) for key, value in base.state_dict().items())


def test_weights_balance_the_components():
    torch.manual_seed(0)
    base = MixtureBase(2, components=2)
    with torch.no_grad():
        base.loc.copy_(LOC)
        base.log_scale.copy_(DEVIATION.log())
    z = base().sample((20_000,))  # of equal shares
    with torch.no_grad():
        rebalance(base, z, log_density(z) - base().log_prob(z))
    torch.testing.assert_close(base.logits.softmax(0), SHARE, atol=0.01, rtol=0)


def test_curvature_of_a_gaussian():
    root = torch.tensor([[2.0, 0.0], [-1.5, 0.01]])
    q = dist.MultivariateNormal(torch.tensor([3.0, -1.0]).double(), scale_tril=root.double())
    reach = torch.tensor([5.0, 5.0]).double()
    found = root_at_mode(q.log_prob, q.loc + 0.5 * root[:, 1], reach)
    torch.testing.assert_close(found, root.double(), rtol=1e-6, atol=1e-8)
    assert root_at_mode(q.log_prob, q.loc + 2 * root[:, 1], reach) is None  # two deviations from it
    assert root_at_mode(lambda x: x.square().sum(-1), torch.zeros(2), torch.ones(2)) is None
