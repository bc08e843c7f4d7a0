"""The network of Glow, and the convolution of its learned priors."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pyro_realnvp import Affine, Chain, ConvNet, Elementwise, Flow, SplitCoupling, StandardNormal
from pyro_realnvp.networks.channel_norm import ChannelNorm
from pyro_realnvp.networks.convnet import ZeroConv
from pyro_realnvp.testing import randomize

from zoo import convnet


def random(net):
    net = net.double().eval()
    randomize(net)
    return net


def with_edge(x):
    """Zero-padded by one, and one more channel that is 1 on the padding."""
    edge = F.pad(torch.zeros_like(x[:, :1]), (1, 1, 1, 1), value=1.0)
    return torch.cat([F.pad(x, (1, 1, 1, 1)), edge], 1)


def zero_conv(net, x):
    """Kingma and Dhariwal 2018, section 3.3, and the released code: (conv + bias) exp(3 gain)."""
    out = F.conv2d(with_edge(x), net.conv.weight) + net.bias[:, None, None]
    return out * (3 * net.gain).exp()[:, None, None]


def norm(layer, x):
    shift, log_scale = layer.shift[:, None, None], layer.log_scale[:, None, None]
    return (x - shift) * log_scale.exp()


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (4, 5)])
def test_zero_conv_against_the_explicit_padding(size):
    net = random(ZeroConv(3, 4))
    assert net.conv.weight.shape == (4, 4, 3, 3)
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(net(x), zero_conv(net, x))


@pytest.mark.parametrize("size", [(1, 1), (3, 4)])
def test_zero_conv_of_nothing_sees_the_edge_alone(size):
    net = random(ZeroConv(0, 2))
    out = net(torch.zeros(5, 0, *size, dtype=torch.float64))
    assert out.shape == (5, 2, *size)
    edge = F.pad(torch.zeros(1, 1, *size, dtype=torch.float64), (1, 1, 1, 1), value=1.0)
    want = (F.conv2d(edge, net.conv.weight) + net.bias[:, None, None]) * (3 * net.gain).exp()[:, None, None]
    torch.testing.assert_close(out, want.expand(5, -1, -1, -1))


@pytest.mark.parametrize("context", [{}, {"context_dim": 3}, {"context_shape": (2, 3, 4)}])
def test_the_network_of_the_paper(context):
    net = random(ConvNet(2, 3, hidden=5, **context))
    x = torch.randn(4, 2, 3, 4, dtype=torch.float64)
    given = torch.randn(4, *net.context_shape, dtype=torch.float64) if net.context_shape else None
    features = torch.cat([x, given], 1) if "context_shape" in context else x
    h = norm(net.norm1, F.conv2d(with_edge(features), net.conv1.weight))
    if "context_dim" in context:
        h = h + (given @ net.context_in.weight.T + net.context_in.bias)[..., None, None]
    h = norm(net.norm2, F.conv2d(h.relu(), net.conv2)).relu()
    torch.testing.assert_close(net(x, given), zero_conv(net.conv3, h))


def test_parameters_of_the_paper():
    net = ConvNet(6, 12, mask=torch.ones(6, 4, 4, dtype=torch.bool), level=2)  # taken and ignored
    shapes = {key: tuple(p.shape) for key, p in net.named_parameters()}
    assert shapes == {
        "conv1.weight": (512, 7, 3, 3),
        "norm1.shift": (512,),
        "norm1.log_scale": (512,),
        "conv2": (512, 512, 1, 1),
        "norm2.shift": (512,),
        "norm2.log_scale": (512,),
        "conv3.conv.weight": (12, 513, 3, 3),
        "conv3.bias": (12,),
        "conv3.gain": (12,),
    }
    for weight in (net.conv1.weight, net.conv2):
        assert weight.std().item() == pytest.approx(0.05, rel=0.05)
        assert weight.mean().item() == pytest.approx(0.0, abs=0.005)


@pytest.mark.parametrize("context", [{}, {"context_dim": 3}, {"context_shape": (2, 3, 4)}])
@pytest.mark.parametrize("make", [convnet, ZeroConv])
def test_they_start_at_zero_and_can_move(make, context):
    net = make(2, 3, **context)
    assert net.starts_at_zero
    given = torch.randn(4, *net.context_shape) if net.context_shape else None
    out = net(torch.randn(4, 2, 3, 4), given)
    assert not out.any()
    (out * torch.randn_like(out)).sum().backward()
    last = net.conv3 if isinstance(net, ConvNet) else net
    assert last.conv.weight.grad.any()
    assert last.bias.grad.any()


@pytest.mark.parametrize("batch", [(), (2,), (2, 3), (0,)])
@pytest.mark.parametrize("context", [{}, {"context_dim": 3}, {"context_shape": (2, 4, 6)}])
@pytest.mark.parametrize(("make", "channels"), [(convnet, 2), (ZeroConv, 2), (ZeroConv, 0)])
def test_shapes(make, channels, batch, context):
    net = random(make(channels, 5, **context))
    given = torch.randn(*batch, *net.context_shape, dtype=torch.float64) if net.context_shape else None
    x = torch.randn(*batch, channels, 4, 6, dtype=torch.float64)
    out = net(x, given)
    assert out.shape == (*batch, 5, 4, 6)
    if batch == (2, 3):
        one = net(x[1, 2], None if given is None else given[1, 2])
        torch.testing.assert_close(out[1, 2], one)


@pytest.mark.parametrize("context", [{"context_dim": 3}, {"context_shape": (2, 4, 4)}])
@pytest.mark.parametrize("make", [convnet, ZeroConv])
def test_context_matters_and_broadcasts(make, context):
    net = random(make(2, 2, **context))
    x, given = torch.randn(5, 2, 4, 4).double(), torch.randn(net.context_shape).double()
    torch.testing.assert_close(net(x, given), net(x, given.expand(5, *given.shape)))
    assert not torch.equal(net(x, given), net(x, given + 1))
    with pytest.raises(ValueError, match="got none"):
        net(x)
    with pytest.raises(ValueError, match="needs a context of shape"):
        net(x, given[:-1])
    with pytest.raises(ValueError, match="without a context"):
        make(2, 2).double()(x, given)


@pytest.mark.parametrize("make", [ConvNet, ZeroConv])
def test_context_vector_and_map_exclude_each_other(make):
    with pytest.raises(ValueError, match=f"{make.__name__}.*context_dim=3.*context_shape=\\(1, 2, 2\\)"):
        make(2, 2, context_dim=3, context_shape=(1, 2, 2))


# ------------------------------------------------------------------------------- data-dependent initialisation


def norms(module):
    return [m for m in module.modules() if isinstance(m, ChannelNorm)]


def started(module):
    return [bool(m.initialized) for m in norms(module)]


def statistics_of(channels):
    """Mean and standard deviation of every channel of (batch, C, H, W)."""
    flat = channels.transpose(0, 1).flatten(1)
    return flat.mean(1), flat.std(1, correction=0)


def test_the_first_training_batch_normalizes_both_hidden_layers():
    net = ConvNet(2, 4, hidden=6)
    seen = []
    for layer in norms(net):
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    net(3 * torch.randn(8, 2, 4, 4) + 1)
    assert started(net) == [True, True]
    for output in seen:
        mean, std = statistics_of(output.detach())
        torch.testing.assert_close(mean, torch.zeros(6), atol=1e-4, rtol=0)
        torch.testing.assert_close(std, torch.ones(6), atol=1e-3, rtol=0)
    before = copy.deepcopy(net.state_dict())
    net(torch.randn(8, 2, 4, 4))
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def coupling(**kwargs):
    return SplitCoupling((4, 2, 3), convnet(2, 4, **kwargs), Affine())


FLOWS = {
    "coupling": (coupling, None),
    "coupling of a chain": (lambda: Chain([coupling(), coupling()]), None),
    "elementwise": (lambda: Elementwise((4, 2, 3), Affine(), convnet(0, 8, context_dim=2)), 2),
}


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("how", ["eval", "inverse", "inverse in eval", "sample"])
def test_only_training_in_the_data_direction_initializes(name, how):
    make, context_dim = FLOWS[name]
    f = make()
    context = None if context_dim is None else torch.randn(6, context_dim)
    f.train("eval" not in how)
    x = torch.randn(6, 4, 2, 3)
    if how == "sample":
        Flow(StandardNormal((4, 2, 3)), [f.inv]).train().sample((6,) if context is None else (), context)
    else:
        (f.forward_and_log_det if how == "eval" else f.inverse_and_log_det)(x, context)
    assert not any(started(f))
    f.train().forward_and_log_det(x, context)
    assert all(started(f))


@pytest.mark.parametrize("how", ["load", "assign", "deepcopy", "pickle"])
def test_loading_never_initializes_again(how):
    f = coupling()
    f(torch.randn(6, 4, 2, 3))
    other = {"deepcopy": copy.deepcopy(f), "pickle": pickle.loads(pickle.dumps(f))}.get(how, coupling())
    if how in ("load", "assign"):
        other.load_state_dict(f.state_dict(), assign=how == "assign")
    other.train()(10 * torch.randn(6, 4, 2, 3) + 3)
    for a, b in zip(norms(f), norms(other), strict=True):
        assert torch.equal(a.shift, b.shift)
        assert torch.equal(a.log_scale, b.log_scale)


def test_flow_initializes_its_networks_in_evaluation_mode():
    flow = Flow(StandardNormal((4, 2, 3)), [coupling().inv]).eval()
    flow.initialize(torch.randn(6, 4, 2, 3))
    assert all(started(flow))
    assert not any(m.training for m in flow.modules())


@pytest.mark.parametrize("x", [torch.full((4, 2, 3, 3), torch.nan), torch.full((4, 2, 3, 3), torch.inf)])
def test_data_that_is_not_finite_initializes_nothing(x):
    net = convnet(2, 4)
    with pytest.raises(ValueError, match="NaN or infinite"):
        net(x)
    assert not any(started(net))
    assert not any(p.isnan().any() for p in net.parameters())
    net(torch.randn(4, 2, 3, 3))
    assert all(started(net))


def test_an_empty_batch_in_training_is_refused_before_anything_changes():
    net = convnet(2, 4)
    with pytest.raises(ValueError, match="at least 1"):
        net(torch.zeros(0, 2, 3, 3))
    assert not any(started(net))


@pytest.mark.parametrize("shape", [(3,), (3, 2, 4)])
def test_channel_norm_of_several_dimensions(shape):
    layer = ChannelNorm(*shape)
    x = 3 * torch.randn(40, *shape, *[5] * (3 - len(shape))) + 2
    y = layer(x)
    over = (0, *range(1 + len(shape), x.dim()))
    torch.testing.assert_close(y.mean(over), torch.zeros(shape), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.std(over, correction=0), torch.ones(shape), atol=1e-4, rtol=0)
    assert isinstance(layer.shift, nn.Parameter)
    assert layer.shift.shape == layer.log_scale.shape == shape
