"""Couplings: which part moves, and by what."""

import pytest
import torch
from torch import nn

from pyro_realnvp import (
    MLP,
    Additive,
    Affine,
    Chain,
    Elementwise,
    MaskedCoupling,
    SplitCoupling,
    alternating,
    channelwise,
    checkerboard,
)
from pyro_realnvp.testing import randomize

from zoo import masked, mlp, split


@pytest.mark.parametrize("mask", [alternating((5,)), checkerboard((2, 3, 3)), channelwise((2, 2, 2), flip=True)])
def test_masked_coupling_leaves_the_masked_part_alone(mask):
    f = masked(mask).eval()
    randomize(f)
    x = torch.randn(4, *mask.shape)
    for g in (f, f.inv):
        y = g(x.clone())
        assert torch.equal(y[:, mask], x[:, mask])
        assert (y[:, ~mask] != x[:, ~mask]).all()


def test_masked_coupling_does_not_look_at_what_it_changes():
    mask = checkerboard((1, 4, 4))
    f = masked(mask).eval()
    randomize(f)
    x = torch.randn(1, 4, 4, dtype=torch.float32)
    jacobian = torch.autograd.functional.jacobian(f, x).reshape(16, 16)
    inside = jacobian[~mask.flatten()][:, ~mask.flatten()]
    assert torch.equal(inside, torch.diag(inside.diagonal()))


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("shape", [(4,), (5,), (4, 2, 3)])
def test_split_coupling_changes_the_second_part_given_the_first(swap, shape):
    f = split(shape, swap=swap).eval()
    randomize(f)
    x = torch.randn(3, *shape)
    y = f(x)
    middle = shape[0] - shape[0] // 2  # an odd vector is split behind its middle
    first, second = (slice(None), slice(middle)), (slice(None), slice(middle, None))
    kept, changed = (second, first) if swap else (first, second)
    assert torch.equal(y[kept], x[kept])
    assert (y[changed] != x[changed]).all()


def test_the_affine_law():
    # y2 = x2 exp(s(x1)) + t(x1), log-det = sum s: equations 7 and 8.
    shift, raw = torch.tensor([0.5, -1.0]), torch.tensor([0.3, -0.2])
    net = nn.Linear(2, 4)
    with torch.no_grad():
        net.weight.zero_()
        net.bias.copy_(torch.cat([shift, raw]))
    f = SplitCoupling((4,), net, Affine(torch.tanh))
    x = torch.randn(3, 4)
    y = f(x)
    torch.testing.assert_close(y[:, 2:], x[:, 2:] * raw.tanh().exp() + shift)
    torch.testing.assert_close(f.log_abs_det_jacobian(x, y), raw.tanh().sum().expand(3))


def test_a_network_needs_no_context_argument():
    f = SplitCoupling((4,), nn.Linear(2, 4), Affine())
    assert f.context_shape is None
    assert f(torch.randn(3, 4)).shape == (3, 4)


def test_masks_are_not_in_the_state():
    assert not [key for key in masked(checkerboard((1, 4, 4))).state_dict() if "mask" in key]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SplitCoupling((3, 2, 2), nn.Identity(), Affine()), r"even.*\(3, 2, 2\)"),
        (lambda: SplitCoupling((1,), nn.Identity(), Affine()), r"two.*\(1,\)"),
        (lambda: MaskedCoupling(torch.ones(3), nn.Identity(), Affine()), "boolean.*float32"),
        (lambda: MaskedCoupling(torch.ones(3, dtype=torch.bool), nn.Identity(), Affine()), "3 of 3"),
        (lambda: MaskedCoupling(torch.zeros(3, dtype=torch.bool), nn.Identity(), Affine()), "0 of 3"),
    ],
)
def test_parts_that_do_not_fit_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("transformer", [Affine, Additive])
@pytest.mark.parametrize("masked_one", [False, True])
def test_a_network_with_too_few_outputs_is_refused(transformer, masked_one):
    # Broadcasting would let it pass, with a wrong log-determinant.
    if masked_one:
        outputs = transformer().num_parameters  # one element instead of four
        f = MaskedCoupling(alternating((4,)), MLP(4, outputs), transformer())
    else:
        f = SplitCoupling((4,), MLP(2, transformer().num_parameters), transformer())
    with pytest.raises(ValueError, match=r"MLP|conditioner|network|parameters|Coupling"):
        f(torch.randn(3, 4))


def test_elementwise_moves_each_element_by_itself():
    f = Elementwise((3,), Affine())
    randomize(f)
    x = torch.randn(3)
    jacobian = torch.autograd.functional.jacobian(f, x)
    assert torch.equal(jacobian, torch.diag(jacobian.diagonal()))
    assert jacobian.diagonal().unique().numel() == 3


def test_elementwise_starts_as_the_identity_and_refuses_a_context():
    f = Elementwise((3,), Affine())
    x = torch.randn(2, 3)
    assert torch.equal(f(x), x)
    with pytest.raises(ValueError, match="without a context"):
        f.forward_and_log_det(x, torch.randn(2))
    with pytest.raises(ValueError, match="got none"):
        Elementwise((3,), Affine(), mlp(0, 6, context_dim=2))(x)


@pytest.mark.parametrize("wrapped", [False, True])
def test_going_back_in_training_mode_moves_no_statistics_of_the_networks(wrapped):
    coupling = split((4, 2, 2))
    f = (Chain([coupling]) if wrapped else coupling).train()
    before = {name: value.clone() for name, value in f.named_buffers()}
    x = torch.randn(8, 4, 2, 2)
    f.inverse_and_log_det(x)
    assert all(torch.equal(value, before[name]) for name, value in f.named_buffers())
    f.forward_and_log_det(x)
    assert not all(torch.equal(value, before[name]) for name, value in f.named_buffers())
