"""The networks inside couplings."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pyro_realnvp import MLP, ResNet, checkerboard

from zoo import prime


def test_mlp_starts_at_zero_and_takes_what_it_does_not_need():
    net = MLP(3, 4, hidden=(5, 6), activation=nn.Tanh, mask=torch.ones(3, dtype=torch.bool), level=2)
    assert not net(torch.randn(2, 3)).any()
    assert [m.out_features for m in net.modules() if isinstance(m, nn.Linear)] == [5, 6, 4]
    assert sum(isinstance(m, nn.Tanh) for m in net.modules()) == 2


def test_mlp_without_hidden_layers():
    assert MLP(3, 4, hidden=())(torch.randn(2, 3)).shape == (2, 4)


@pytest.mark.parametrize("context_dim", [0, 2])
def test_gain_and_skip_of_an_mlp(context_dim):
    torch.manual_seed(0)
    plain = MLP(3, 4, hidden=(5, 6), context_dim=context_dim)
    nn.init.normal_(plain.layers[-1].weight)
    net = MLP(3, 4, hidden=(5, 6), context_dim=context_dim, gain=0.5, skip=0.2)
    context = torch.randn(2, 7, context_dim) if context_dim else None
    x = torch.randn(2, 7, 3)
    assert not net(x, context).any()
    linear = torch.randn(4, 3 + context_dim)
    for ours, theirs in zip(plain.layers[:-1], net.layers[:-1], strict=True):
        theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        net.layers[-1].weight.copy_(torch.cat([plain.layers[-1].weight, linear], 1))
    read = x if context is None else torch.cat([x, context], -1)
    torch.testing.assert_close(net(x, context), 0.5 * plain(x, context) + 0.2 * read @ linear.T)


def test_a_gain_without_a_skip():
    torch.manual_seed(0)
    net = MLP(3, 4, hidden=(5,), gain=0.5)
    nn.init.normal_(net.layers[-1].weight)
    x = torch.randn(2, 3)
    torch.testing.assert_close(net(x), 0.5 * net.layers(x))


@pytest.mark.parametrize("batch", [(), (2,), (2, 3), (0,)])
@pytest.mark.parametrize("context", [{}, {"context_dim": 3}, {"context_shape": (2, 4, 6)}])
@pytest.mark.parametrize("masked", [False, True])
def test_resnet_shapes(batch, context, masked):
    net = ResNet(2, 5, hidden=4, blocks=1, mask=checkerboard((2, 4, 6)) if masked else None, **context).eval()
    given = torch.randn(*batch, *net.context_shape) if net.context_shape else None
    assert net(torch.randn(*batch, 2, 4, 6), given).shape == (*batch, 5, 4, 6)


@pytest.mark.parametrize("masked", [False, True])
def test_resnet_is_the_network_of_the_paper(masked):
    # Dinh et al. 2017, section 3.7, and the released code, written out once more with plain functions.
    mask = checkerboard((2, 4, 4)) if masked else None
    net = prime(ResNet(2, 3, hidden=4, blocks=2, mask=mask)).double().eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.normal_()

    def conv(layer, x):
        norms = layer.direction.flatten(1).norm(dim=1)[:, None, None, None]
        weight = layer.direction / norms
        if layer.norm is not None:
            weight = weight * layer.norm[..., None, None]
        return F.conv2d(x, weight, layer.bias, padding=layer.direction.shape[-1] // 2)

    def norm(layer, x):
        mean, var = (s[:, None, None] for s in (layer.running_mean, layer.running_var))
        return (x - mean) / (var + 1e-4).sqrt() + layer.bias[:, None, None]

    x = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    if masked:
        x = x * mask
    a = norm(net.norm_in, x) * (2 if masked else 1)
    features = [a, -a, *([mask[:1].double().expand(3, 1, 4, 4)] if masked else [])]
    h = conv(net.conv_in, torch.cat(features, 1).relu())
    out = conv(net.skips[0], h)
    for block, skip in zip(net.blocks, net.skips[1:], strict=True):
        norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm2d)]
        convs = [m for m in block.modules() if hasattr(m, "direction")]
        r = conv(convs[0], norm(norms[0], h).relu())
        h = h + conv(convs[1], norm(norms[1], r).relu())
        out = out + conv(skip, h)
    want = conv(net.conv_out, norm(net.norm_out, out).relu())
    torch.testing.assert_close(net(x), want)


def test_resnet_start_and_parameters():
    net = ResNet(3, 6, hidden=8, blocks=2, mask=checkerboard((3, 4, 4)), level=1)
    convs = {name: m for name, m in net.named_modules() if hasattr(m, "direction")}
    assert convs["conv_in"].direction.shape == (16, 2 * 3 + 1, 3, 3)
    for name, layer in convs.items():
        fan, size = layer.direction.shape[1], layer.direction.shape[-1]
        assert layer.direction.abs().max() <= math.sqrt(2 / fan)
        if layer.norm is not None:
            torch.testing.assert_close(layer.norm, torch.full_like(layer.norm, math.sqrt(size**2 / 6)))
        first_of_block = name.endswith("layers.2")
        assert (layer.norm is None) == (first_of_block or name == "conv_in")
        assert (layer.bias is None) == first_of_block
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.eps == 1e-4
            assert module.momentum == 0.1
            assert module.weight is None
            assert not module.bias.any()


def test_each_convolution_runs_once():
    net = ResNet(2, 4, hidden=4, blocks=2)
    calls = []
    for module in net.modules():
        if hasattr(module, "direction"):
            module.register_forward_hook(lambda module, *_: calls.append(module))
    net(torch.randn(2, 2, 4, 4))
    assert len(calls) == len(set(calls)) == 1 + 2 * 2 + 3 + 1


def test_the_mask_is_no_part_of_the_state():
    mask = checkerboard((1, 4, 4))
    net = ResNet(1, 2, hidden=4, blocks=1, mask=mask)
    assert "mask" not in net.state_dict()
    larger = ResNet(1, 2, hidden=4, blocks=1, mask=checkerboard((1, 8, 8)))
    larger.load_state_dict(net.state_dict())


def test_dropout_only_in_training():
    net = ResNet(1, 2, hidden=8, blocks=1, dropout=0.5)
    x = torch.randn(4, 1, 4, 4)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


@pytest.mark.parametrize("make", [MLP, ResNet])
def test_context_vector_and_map_exclude_each_other(make):
    with pytest.raises(ValueError, match=f"{make.__name__}.*context_dim=3.*context_shape=\\(1, 2, 2\\)"):
        make(2, 2, context_dim=3, context_shape=(1, 2, 2))


@pytest.mark.parametrize("context", [{"context_dim": 3}, {"context_shape": (2, 4, 4)}])
@pytest.mark.parametrize("make", [MLP, ResNet])
def test_context_matters_and_broadcasts(make, context):
    torch.manual_seed(0)
    net = make(2, 2, **context)
    for p in net.parameters():
        nn.init.normal_(p)
    net.eval()
    x = torch.randn(5, 2) if make is MLP else torch.randn(5, 2, 4, 4)
    given = torch.randn(net.context_shape)
    torch.testing.assert_close(net(x, given), net(x, given.expand(5, *given.shape)))
    assert not torch.equal(net(x, given), net(x, given + 1))
    with pytest.raises(ValueError, match="got none"):
        net(x)
    with pytest.raises(ValueError, match="needs a context of shape"):
        net(x, given[:-1])
    with pytest.raises(ValueError, match="without a context"):
        make(2, 2)(x, given)


def test_dropout_of_an_mlp_is_a_matter_of_training_mode():
    torch.manual_seed(0)
    net = MLP(3, 2, hidden=(50, 50), dropout=0.5)
    nn.init.normal_(net.layers[-1].weight)
    x = torch.randn(4, 3)
    assert not torch.equal(net(x), net(x))
    assert torch.equal(net.eval()(x), net(x))
    with pytest.raises(ValueError, match=r"dropout of MLP must lie in \[0, 1\), but got 1\.0"):
        MLP(3, 2, dropout=1.0)
