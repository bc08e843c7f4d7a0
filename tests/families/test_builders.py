"""Families of flows: which layers they assemble, and for which shapes."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from pyro_realnvp import (
    MLP,
    BatchNorm,
    Chain,
    Elementwise,
    FactorOut,
    Flow,
    Inverse,
    Lift,
    MaskedCoupling,
    Permute,
    ResNet,
    Sandwich,
    Scale,
    SplitCoupling,
    StandardNormal,
    TanhLogScale,
    checkerboard,
    nice_transforms,
    realnvp_transforms,
    spline_transforms,
)
from pyro_realnvp.testing import randomize

from zoo import alone, mlp, prime, resnet


@pytest.mark.parametrize(
    ("shape", "arguments", "count"),
    [
        ((3, 32, 32), {"scales": 2, "net": partial(ResNet, hidden=64, blocks=8)}, 19_609_545),
        ((3, 32, 32), {}, 19_609_545),  # the default is the paper's network for CIFAR-10
        ((3, 32, 32), {"scales": 4, "net": partial(ResNet, hidden=32, blocks=4)}, 46_220_359),
        ((3, 64, 64), {"scales": 5, "net": partial(ResNet, hidden=32, blocks=2)}, 96_363_237),
    ],
)
def test_parameter_counts_of_the_paper(shape, arguments, count):
    with torch.device("meta"):
        transforms = nn.ModuleList(realnvp_transforms(shape, **arguments))
    assert sum(p.numel() for p in transforms.parameters() if p.requires_grad) == count


def layers_of(transforms):
    """The layers as the papers draw them, data -> latent."""
    assert all(isinstance(t, Inverse) for t in transforms)
    return [t.inv for t in reversed(transforms)]


def kinds(layers):
    return [type(layer) for layer in layers]


def test_the_multi_scale_recursion():
    shape = (3, 8, 8)
    layers = layers_of(realnvp_transforms(shape, scales=3, net=resnet))
    for scale in range(3):
        last = scale == 2
        masked = layers[: 8 if last else 6]
        assert kinds(masked) == [MaskedCoupling, BatchNorm] * (4 if last else 3)
        for index, (coupling, norm) in enumerate(zip(masked[::2], masked[1::2], strict=True)):
            assert torch.equal(coupling.mask, checkerboard(shape, flip=index % 2 == 1))
            assert torch.equal(norm.mask, coupling.mask)
            assert torch.equal(coupling.conditioner.mask[0], coupling.mask[0].float())
            assert coupling.transformer.scale.alpha == 0
        if last:
            assert len(layers) == 8
            return
        squeezed, factored = layers[6:]
        assert kinds([squeezed, factored]) == [Sandwich, Sandwich]
        assert (squeezed.outer.ordered, factored.outer.ordered) == (False, True)
        inner = list(squeezed.bijection)
        assert kinds(inner) == [SplitCoupling, BatchNorm] * 3
        assert [coupling.swap for coupling in inner[::2]] == [False, True, False]  # the second half changes first
        assert all(coupling.transformer.scale.alpha == 1 for coupling in inner[::2])
        assert all(norm.mask.sum() == norm.mask.numel() // 2 for norm in inner[1::2])
        assert isinstance(factored.bijection, FactorOut)
        layers = list(factored.bijection.bijection)
        shape = (2 * shape[0], shape[1] // 2, shape[2] // 2)


def test_how_networks_are_built():
    built = []

    def net(in_channels, out_channels, *, context_dim=0, context_shape=None, mask=None, level=0):
        context = None if context_shape is None else tuple(context_shape)
        built.append((in_channels, out_channels, None if mask is None else tuple(mask.shape), level, context))
        return resnet(in_channels, out_channels, context_shape=context_shape, mask=mask, level=level)

    realnvp_transforms((3, 8, 4), scales=2, net=net, context_shape=(2, 8, 4))
    assert built == [
        *[(3, 6, (3, 8, 4), 0, (2, 8, 4))] * 3,
        *[(6, 12, None, 1, (8, 4, 2))] * 3,
        *[(6, 12, (6, 4, 2), 1, (8, 4, 2))] * 4,
    ]


def test_vector_defaults():
    layers = layers_of(realnvp_transforms(5))
    assert kinds(layers) == [SplitCoupling] * 8
    assert [layer.swap for layer in layers] == [False, True] * 4
    for layer in layers:
        linear = [m for m in layer.conditioner.modules() if isinstance(m, nn.Linear)]
        assert [m.out_features for m in linear[:-1]] == [64, 64]
        assert sum(isinstance(m, nn.Tanh) for m in layer.conditioner.modules()) == 2
    flow = Flow(StandardNormal(5), realnvp_transforms(5))
    assert flow.train()(torch.randn(1, 5)).shape == (1,)  # a batch of one needs no care


@pytest.mark.parametrize("shape", [2, 3, 5, (2,), (1, 4, 4), (2, 2, 4)])
def test_every_coordinate_is_transformed_given_others(shape):
    image = isinstance(shape, tuple) and len(shape) == 3
    flow = prime(Chain(realnvp_transforms(shape, net=resnet if image else mlp))).double().eval()
    randomize(flow)
    x = torch.randn(flow.event_shape, dtype=torch.float64)
    size = x.numel()
    jacobian = torch.autograd.functional.jacobian(flow, x).reshape(size, size).abs()
    off_diagonal = jacobian - torch.diag(jacobian.diagonal())
    assert (off_diagonal.sum(1) > 1e-8).all()
    assert (off_diagonal.sum(0) > 1e-8).all()
    # and its own scale is learned: by how much an element is stretched depends on the place.
    moved = torch.autograd.functional.jacobian(flow, x + 0.5).reshape(size, size).abs()
    assert ((moved - jacobian).diagonal().abs() > 1e-9).all()


@pytest.mark.parametrize("build", [realnvp_transforms, nice_transforms])
@pytest.mark.parametrize("context_dim", [0, 2])
def test_one_dimension(build, context_dim):
    transforms = alone(build, net=mlp, context_dim=context_dim)
    assert isinstance(layers_of(transforms)[0], Elementwise)
    if not context_dim:
        assert all(p.numel() for t in transforms for p in t.parameters())
    flow = Flow(StandardNormal(1), transforms)
    context = torch.randn(4, 2) if context_dim else None
    assert flow(torch.randn(4, 1), context).shape == (4,)


def test_one_dimension_with_a_context_has_no_layer_of_zero_elements():
    transforms = alone(realnvp_transforms, context_dim=2)
    assert all(p.numel() for t in transforms for p in t.parameters())


@pytest.mark.parametrize("build", [realnvp_transforms, nice_transforms])
@pytest.mark.parametrize("context", [3, (1,)])
def test_one_coordinate_of_affine_couplings_warns_with_the_remedy(build, context):
    with pytest.warns(UserWarning, match=r"one affine map.*spline_transforms\(1, \.\.\.\)") as caught:
        build(1, context_shape=context)
    assert caught[0].filename == __file__
    spline_transforms(1, context_shape=context)
    build(1)


@pytest.mark.parametrize("build", [realnvp_transforms, nice_transforms, spline_transforms])
def test_hidden_are_the_widths_of_the_networks(build):
    modules = [module for layer in build(4, hidden=[5, 6, 7]) for module in layer.modules()]
    widths = {module.out_features for module in modules if isinstance(module, nn.Linear)}
    assert {5, 6, 7} <= widths
    with pytest.raises(ValueError, match=r"takes hidden.*or net, but got both; write net=partial\(MLP, hidden=\(8,\)"):
        build(4, hidden=(8,), net=mlp)


@pytest.mark.parametrize("build", [realnvp_transforms, spline_transforms])
def test_images_take_no_hidden(build):
    with pytest.raises(ValueError, match=r"takes no hidden, but got hidden=\(8,\)"):
        build((1, 4, 4), hidden=(8,))


@pytest.mark.parametrize("build", [realnvp_transforms, nice_transforms])
def test_a_new_vector_flow_is_the_identity_and_can_move(build):
    chain = Chain(build(4))
    x = torch.randn(7, 4)
    y = chain(x)
    torch.testing.assert_close(y.sort()[0], x.sort()[0])  # NICE reorders the coordinates
    assert build is nice_transforms or torch.equal(y, x)
    optimizer = torch.optim.SGD(chain.parameters(), lr=0.1)
    start = [p.detach().clone() for p in chain.parameters()]
    for _ in range(2):  # the last layers move first, and the others through them
        optimizer.zero_grad()
        y = chain(x)
        ((y - 1).square().mean() - chain.log_abs_det_jacobian(x, y).mean()).backward()
        optimizer.step()
    for p, q in zip(chain.parameters(), start, strict=True):
        assert not torch.equal(p, q)


@pytest.mark.parametrize("net", [resnet, None], ids=["resnet", "zeros"])
def test_a_new_image_flow_can_move(net):
    class Zeros(ResNet):
        starts_at_zero = True

        def __init__(self, *args, **kwargs):
            super().__init__(*args, hidden=4, blocks=1, **kwargs)
            nn.init.zeros_(self.conv_out.norm)

    flow = Flow(StandardNormal((1, 4, 4)), realnvp_transforms((1, 4, 4), net=net or Zeros))
    flow(2 * torch.randn(16, 1, 4, 4)).mean().backward()
    for coupling in (m for m in flow.modules() if isinstance(m, MaskedCoupling | SplitCoupling)):
        scale = coupling.transformer.scale
        assert isinstance(scale, TanhLogScale)
        reached = [p.grad for p in (scale.alpha, coupling.conditioner.conv_out.norm) if p.grad is not None]
        assert any(bool(g.any()) for g in reached)


def test_the_same_state_loads_into_a_larger_image():
    small = prime(nn.ModuleList(realnvp_transforms((1, 4, 4), net=resnet)))
    randomize(small)
    large = nn.ModuleList(realnvp_transforms((1, 8, 12), net=resnet))
    assert list(small.state_dict()) == list(large.state_dict())
    large.load_state_dict(small.state_dict())
    flow = Flow(StandardNormal((1, 8, 12)), list(large)).eval()
    x = flow.sample((3,))
    assert x.shape == (3, 1, 8, 12)
    assert flow(x).isfinite().all()


# ------------------------------------------------------------------------------------------------------ NICE


def test_nice_is_four_additive_couplings_and_a_scaling():
    layers = layers_of(nice_transforms(6))
    assert kinds(layers) == [Permute, *[SplitCoupling] * 4, Scale]
    assert layers[0].permutation.tolist() == [0, 2, 4, 1, 3, 5]
    assert [layer.swap for layer in layers[1:5]] == [False, True, False, True]


def test_the_volume_of_nice_is_that_of_its_scaling():
    chain = Chain(nice_transforms(5, net=mlp))
    randomize(chain)
    log_scale = next(m for m in chain.modules() if isinstance(m, Scale)).log_scale
    x = torch.randn(3, 5)
    torch.testing.assert_close(chain.inv.log_abs_det_jacobian(x, chain.inv(x)), log_scale.sum().expand(3))


def test_nice_of_images():
    with torch.device("meta"):
        layers = layers_of(nice_transforms((1, 28, 28)))
    assert kinds(layers) == [Lift, Permute, *[SplitCoupling] * 4, Scale, Lift]
    for coupling in layers[2:6]:
        linear = [m for m in coupling.conditioner.modules() if isinstance(m, nn.Linear)]
        assert [m.out_features for m in linear] == [1000] * 5 + [392]
        assert sum(isinstance(m, nn.ReLU) for m in coupling.conditioner.modules()) == 5
    flow = Flow(StandardNormal((1, 2, 3)), nice_transforms((1, 2, 3), net=mlp))
    assert flow.sample((5,)).shape == (5, 1, 2, 3)


def test_the_packed_board_moves_the_same_squares():
    shape = (1, 4, 4)
    (chain,) = realnvp_transforms(shape, scales=1, net=resnet, packed=True)
    faithful = realnvp_transforms(shape, scales=1, net=resnet)
    (coupling, norm, *_), outer = chain.inv.bijection, chain.inv.outer
    masks = [layer.inv.mask for layer in reversed(faithful)]
    assert [type(layer.inv).__name__ for layer in reversed(faithful)] == ["MaskedCoupling", "BatchNorm"] * 4
    assert torch.equal(outer.inv(norm.mask.float()).bool(), masks[0])
    randomize(chain.eval())
    x = torch.randn(3, *shape)
    for index, mask in enumerate(masks[::2]):
        coupling = chain.inv.bijection[2 * index]
        changed = outer.inv(coupling(outer(x))) != x
        assert torch.equal(changed, (~mask).expand_as(x))
    count = sum(p.numel() for p in chain.parameters())  # without the channel by which a network sees the mask
    assert count == sum(p.numel() for layer in faithful for p in layer.parameters()) - 4 * 4 * 9


# --------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: realnvp_transforms(4, scales=2), r"vectors takes no scales.*scales=2"),
        (lambda: realnvp_transforms((1, 4, 4), couplings=2), r"images takes no couplings.*couplings=2"),
        (lambda: realnvp_transforms(4, packed=True), r"vectors takes no packed.*packed=True"),
        (
            lambda: realnvp_transforms((1, 4, 6), net=resnet, packed=True),
            r"SqueezeCheckerboard.*even width.*\(2, 2, 3\)",
        ),
        (lambda: realnvp_transforms(4, couplings=0), "couplings.*got 0"),
        (lambda: realnvp_transforms((1, 4, 4), scales=0), "scales.*got 0"),
        (lambda: nice_transforms(4, couplings=0), "couplings.*got 0"),
        (lambda: realnvp_transforms(0), "got 0"),
        (lambda: realnvp_transforms(-1), "got -1"),
        (lambda: realnvp_transforms(()), r"got \(\)"),
        (lambda: realnvp_transforms((4, 4)), r"got \(4, 4\)"),
        (lambda: nice_transforms((0, 4, 4)), r"got \(0, 4, 4\)"),
        (lambda: realnvp_transforms((3, 31, 32), net=resnet), r"even height and width.*\(3, 31, 32\)"),
        (lambda: realnvp_transforms((1, 4, 6), scales=3, net=resnet), r"even height and width.*\(2, 2, 3\)"),
        (lambda: realnvp_transforms((3, 1, 1), scales=1, net=resnet), r"checkerboard.*\(3, 1, 1\)"),
        (lambda: realnvp_transforms(4, context_dim=3, context_shape=(1, 2, 2)), "context_dim=3.*context_shape"),
        (lambda: realnvp_transforms(4, context_dim=-1), "context_dim.*-1"),
        (lambda: realnvp_transforms((1, 4, 4), net=resnet, context_shape=(2, 2, 2)), r"context.*\(2, 2, 2\)"),
        (lambda: realnvp_transforms((1, 4, 4), net=resnet, context_shape=(2, 3, 3)), r"\(2, 3, 3\)"),
    ],
)
def test_arguments_that_do_not_apply_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_networks_of_two_flows_are_their_own():
    net = partial(MLP, hidden=(4,))
    one, other = nn.ModuleList(realnvp_transforms(2, net=net)), nn.ModuleList(realnvp_transforms(2, net=net))
    assert not {id(p) for p in one.parameters()} & {id(p) for p in other.parameters()}
    assert len({id(p) for p in one.parameters()}) == len(list(copy.deepcopy(one).parameters()))
