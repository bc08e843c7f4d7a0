"""The network of Flow++, against the released code's layers written out with plain functions."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pyro_realnvp import GatedAttention, checkerboard
from pyro_realnvp.networks.attention import GatedConvs
from pyro_realnvp.testing import randomize


def small(in_channels=2, out_channels=4, **kwargs):
    kwargs = {"hidden": 8, "blocks": 1, "heads": 2, "size": (3, 4), **kwargs}
    return GatedAttention(in_channels, out_channels, **kwargs)


def random(net):
    net = net.double().eval()
    randomize(net)
    return net


def count(net):
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


# ----------------------------------------- Ho et al. 2019, section 3.3, and the layers of the released code


def concat_elu(x):
    return torch.cat([F.elu(x), F.elu(-x)], 1)


def gate(x):
    a, b = x.chunk(2, 1)
    return a * torch.sigmoid(b)


def conv(layer, x):
    return F.conv2d(x, layer.weight, layer.bias, padding=layer.weight.shape[-1] // 2)


def gated_conv(block, x, context=None):
    h = conv(block.conv1, concat_elu(x))
    if context is not None:
        h = h + conv(block.context, concat_elu(context))
    return x + gate(conv(block.conv2, concat_elu(h)))


def attention(block, x, position):
    batch, width, height, length = x.shape
    dim = width // block.heads
    qkv = conv(block.query_key_value, x + position).reshape(batch, 3, block.heads, dim, height * length)
    mixed = torch.empty(batch, block.heads, dim, height * length, dtype=x.dtype)
    for head in range(block.heads):
        query, key, value = qkv[:, 0, head], qkv[:, 1, head], qkv[:, 2, head]
        weights = torch.softmax(torch.einsum("ndi,ndj->nij", query, key) / math.sqrt(dim), -1)
        mixed[:, head] = torch.einsum("nij,ndj->ndi", weights, value)
    return x + gate(conv(block.out, mixed.reshape(x.shape)))


def layer_norm(layer, x):
    mean, var = x.mean(1, keepdim=True), x.var(1, correction=0, keepdim=True)
    return (x - mean) / (var + 1e-5).sqrt() * layer.weight[:, None, None] + layer.bias[:, None, None]


@pytest.mark.parametrize("blocks", [0, 1, 2])
@pytest.mark.parametrize("context", [{}, {"context_dim": 3}, {"context_shape": (2, 3, 4)}])
def test_the_network_of_the_released_code(blocks, context):
    net = random(small(blocks=blocks, **context))
    x = torch.randn(2, 2, 3, 4, dtype=torch.float64)
    given = torch.randn(2, *net.context_shape, dtype=torch.float64) if net.context_shape else None
    context_map = given[..., None, None].expand(2, 3, 3, 4) if "context_dim" in context else given
    h = conv(net.conv_in, x)
    for block in net.blocks:
        h = layer_norm(block.norm1, gated_conv(block.conv, h, context_map))
        h = layer_norm(block.norm2, attention(block.attention, h, net.position))
    with torch.no_grad():
        torch.testing.assert_close(net(x, given), conv(net.conv_out, h))


def test_the_context_network():
    net = random(GatedConvs(3, hidden=4, blocks=2))
    x = torch.randn(2, 3, 3, 4, dtype=torch.float64)
    h = conv(net.conv_in, x)
    for block in net.blocks:
        assert block.conv2.weight.shape == (8, 8, 3, 3)
        h = gated_conv(block, h)
    torch.testing.assert_close(net(x), h)


def test_shapes_of_the_layers():
    net = GatedAttention(3, 98 * 3, size=(32, 16), context_shape=(32, 32, 16), blocks=2)
    shapes = {key: tuple(p.shape) for key, p in net.named_parameters()}
    assert shapes["conv_in.weight"] == (96, 3, 3, 3)
    assert shapes["position"] == (96, 32, 16)
    assert shapes["conv_out.weight"] == (294, 96, 3, 3)
    for i in range(2):
        assert shapes[f"blocks.{i}.conv.conv1.weight"] == (96, 192, 3, 3)
        assert shapes[f"blocks.{i}.conv.context.weight"] == (96, 64, 1, 1)
        assert shapes[f"blocks.{i}.conv.conv2.weight"] == (192, 192, 1, 1)
        assert shapes[f"blocks.{i}.attention.query_key_value.weight"] == (288, 96, 1, 1)
        assert shapes[f"blocks.{i}.attention.out.weight"] == (192, 96, 1, 1)
        assert shapes[f"blocks.{i}.norm1.weight"] == shapes[f"blocks.{i}.norm2.bias"] == (96,)


@pytest.mark.parametrize(
    ("build", "parameters"),
    [
        (lambda: GatedAttention(3, 98 * 3, size=(32, 16)), 2_805_990),
        (lambda: GatedAttention(6, 588, size=(16, 16)), 3_038_316),
        (lambda: GatedAttention(12, 1176, size=(16, 8)), 3_539_832),
        (lambda: GatedAttention(3, 98 * 3, size=(32, 16), blocks=2, context_shape=(32, 32, 16)), 818_598),
        (lambda: GatedConvs(6), 167_936),
    ],
)
def test_parameters_of_the_cifar_10_networks(build, parameters):
    with torch.device("meta"):
        assert count(build()) == parameters


def test_start():
    torch.manual_seed(0)
    net = GatedAttention(3, 60, size=(4, 4), blocks=1)
    assert net.position.std().item() == pytest.approx(0.01, rel=0.1)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            assert not module.bias.any()
    block = net.blocks[0]
    for layer in (block.conv.conv2, block.attention.out, net.conv_out):
        fan_in = layer.weight[0].numel()
        assert layer.weight.std().item() == pytest.approx(0.1 * fan_in**-0.5, rel=0.05)
    assert not net.starts_at_zero
    out = net.eval()(torch.randn(64, 3, 4, 4))
    assert 0.03 < out.std() < 0.3  # the gain .1 of the last layer


# ------------------------------------------------------------------------------------------------ what it does


@pytest.mark.parametrize("batch", [(), (2,), (2, 3), (0,)])
@pytest.mark.parametrize("context", [{}, {"context_dim": 3}, {"context_shape": (2, 3, 4)}])
def test_shapes(batch, context):
    net = random(small(**context))
    given = torch.randn(*batch, *net.context_shape, dtype=torch.float64) if net.context_shape else None
    x = torch.randn(*batch, 2, 3, 4, dtype=torch.float64)
    out = net(x, given)
    assert out.shape == (*batch, 4, 3, 4)
    if batch == (2, 3):
        torch.testing.assert_close(out[1, 2], net(x[1, 2], None if given is None else given[1, 2]))


def test_every_place_sees_every_other():
    # Two 3x3 convolutions and one more at either end reach 3 places; the corners are 9 apart.
    net = random(small(size=(10, 10)))
    x = torch.randn(1, 2, 10, 10, dtype=torch.float64, requires_grad=True)
    (seen,) = torch.autograd.grad(net(x)[0, :, 0, 0].sum(), x)
    assert (seen.abs().sum(1) > 0).all()


def test_positions_matter():
    net = random(small())
    constant = torch.ones(1, 2, 3, 4, dtype=torch.float64)
    before = net(constant)
    with torch.no_grad():
        net.position[:, 1, 2] += 1
    assert not torch.allclose(before, net(constant))


@pytest.mark.parametrize("context", [{"context_dim": 3}, {"context_shape": (2, 3, 4)}])
def test_context_matters_and_broadcasts(context):
    net = random(small(**context))
    x, given = torch.randn(5, 2, 3, 4).double(), torch.randn(net.context_shape).double()
    torch.testing.assert_close(net(x, given), net(x, given.expand(5, *given.shape)))
    assert not torch.allclose(net(x, given), net(x, given + 1))
    with pytest.raises(ValueError, match="got none"):
        net(x)
    with pytest.raises(ValueError, match="needs a context of shape"):
        net(x, given[:-1])
    with pytest.raises(ValueError, match="without a context"):
        random(small())(x, given)


def test_dropout_only_in_training():
    net = small(dropout=0.5)
    randomize(net)
    x = torch.randn(2, 2, 3, 4)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))
    assert {m.p for m in GatedAttention(1, 1, size=(2, 2), hidden=4).modules() if isinstance(m, nn.Dropout)} == {0.2}


# ---------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(("hidden", "heads"), [(8, 3), (8, 0), (8, -2), (4, 8)])
def test_heads_that_do_not_divide_are_refused(hidden, heads):
    with pytest.raises(ValueError, match=f"GatedAttention.*hidden={hidden}.*heads={heads}"):
        small(hidden=hidden, heads=heads)


def test_the_size_is_needed_and_may_come_from_the_mask():
    with pytest.raises(ValueError, match=r"GatedAttention.*size"):
        small(size=None)
    net = small(size=None, mask=checkerboard((2, 3, 4)))
    assert net.position.shape == (8, 3, 4)
    assert net(torch.randn(5, 2, 3, 4)).shape == (5, 4, 3, 4)


@pytest.mark.parametrize("size", [(4, 3), (3, 5), (1, 1), (6, 8)])
def test_images_of_another_size_are_refused(size):
    with pytest.raises(ValueError, match=r"GatedAttention.*\(3, 4\).*but got"):
        small()(torch.randn(5, 2, *size))


def test_a_context_map_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 1, 1\)"):
        small(context_shape=(2, 1, 1))


def test_context_vector_and_map_exclude_each_other():
    with pytest.raises(ValueError, match=r"GatedAttention.*context_dim=3.*context_shape=\(1, 3, 4\)"):
        small(context_dim=3, context_shape=(1, 3, 4))
