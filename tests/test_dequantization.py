"""From integer images to densities: dequantization, bits per dimension."""

import math

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro.infer import SVI, Trace_ELBO

from pyro_realnvp import Dequantized, Flow, Logit, StandardNormal, bits_per_dim, realnvp_transforms
from pyro_realnvp.testing import randomize

from zoo import mlp, prime, resnet


def uniform(*shape):
    return dist.Uniform(torch.zeros(shape), torch.ones(shape)).to_event(len(shape))


def pixels(seed=0):
    """A density on the unit square that is far from constant within each quarter."""
    torch.manual_seed(seed)
    flow = Flow(StandardNormal(2), [*realnvp_transforms(2, couplings=2, net=mlp), Logit(0.05).inv]).double()
    randomize(flow)
    for p in flow.parameters():
        p.data.mul_(0.6)
    return flow.requires_grad_(False)


# ------------------------------------------------------------------------------------------------- Dequantized


def cells(flow, levels=2, points=200):
    """log P(k) of every pair of pixels, by the midpoint rule in each cell."""
    u = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    grid = torch.cartesian_prod(u, u)
    values = torch.cartesian_prod(torch.arange(levels), torch.arange(levels))
    return values, torch.stack([flow((k + grid) / levels).exp().mean().log() for k in values]) - 2 * math.log(levels)


def test_the_bound_approaches_the_probability_from_below():
    flow = pixels()
    values, exact = cells(flow)
    assert exact.exp().sum().item() == pytest.approx(1, abs=0.02)  # the flow puts a little outside of the square
    repeated = values.repeat(4000, 1)
    gaps = []
    for num_samples in (1, 4, 16, 128):
        bound = Dequantized(flow.distribution(), levels=2, num_samples=num_samples).log_prob(repeated.double())
        bound = bound.reshape(4000, 4)
        error = bound.std(0) / 4000**0.5
        assert (bound.mean(0) <= exact + 4 * error + 1e-6).all()
        gaps.append((exact - bound.mean(0)).max().item())
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 0.05
    assert gaps[-1] < 0.1 * gaps[0]


def test_a_constant_density_has_an_exact_bound():
    d = Dequantized(uniform(1, 2, 3), levels=8, num_samples=5)
    x = torch.randint(8, (4, 1, 2, 3))
    torch.testing.assert_close(d.log_prob(x), torch.full((4,), -6 * math.log(8)))
    bits = bits_per_dim(d, x)
    assert bits.value == pytest.approx(3, abs=1e-6)
    assert bits.error == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_the_noise_stays_within_its_level(levels):
    class Recording(dist.Uniform):
        def log_prob(self, value):
            seen.append(value)
            return super().log_prob(value).sum(-1)

    seen = []
    k = torch.arange(levels).repeat(100)[:, None]
    density = Recording(torch.zeros(1), torch.ones(1), validate_args=False)
    d = Dequantized(density, levels)
    d._event_shape, d._batch_shape = torch.Size((1,)), torch.Size()
    d.log_prob(k)
    d.log_prob(k)
    assert torch.equal((seen[0] * levels).floor().long().clamp(0, levels - 1), k)
    assert not torch.equal(seen[0], seen[1])  # drawn anew at every call


INTEGERS = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", INTEGERS + FLOATS)
@pytest.mark.parametrize("model_dtype", [torch.float32, torch.float64])
def test_any_dtype_that_holds_integers(dtype, model_dtype):
    flow = pixels().to(model_dtype)
    d = Dequantized(flow.distribution(), levels=2, num_samples=2)
    x = torch.randint(2, (3, 2)).to(dtype)
    torch.manual_seed(0)
    log_prob = d.log_prob(x)
    assert log_prob.dtype == model_dtype
    assert log_prob.shape == (3,)
    assert log_prob.isfinite().all()


def test_half_precision_images_get_noise_of_full_precision():
    # In float16 the noise on level 250 would have steps of 1/8.
    flow = pixels().float()
    d = Dequantized(flow.distribution(), levels=256)
    x = torch.full((2000, 2), 250.0)
    assert d.log_prob(x.half()).unique().numel() > 1000


@pytest.mark.parametrize(
    ("value", "named"), [(0.5, "0.5"), (2, "2"), (-1, "-1"), (float("nan"), "nan"), (float("inf"), "inf")]
)
def test_values_that_are_no_level_are_refused(value, named):
    d = Dequantized(uniform(2), levels=2)
    x = torch.zeros(3, 2)
    x[1, 0] = value
    with pytest.raises(ValueError, match=f"integers from 0 to 1.*got {named}"):
        d.log_prob(x)
    assert not d.support.check(x)[1]


@pytest.mark.parametrize("shape", [(3,), (3, 3), (3, 2, 1), ()])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"Dequantized.*\(2,\)") as caught:
        Dequantized(uniform(2), levels=2).log_prob(torch.zeros(shape))
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize(("arguments", "message"), [({"levels": 1}, "got 1"), ({"num_samples": 0}, "got 0")])
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=f"Dequantized.*{message}"):
        Dequantized(uniform(2), **arguments)


def test_samples_are_integers_in_the_support():
    d = Dequantized(pixels().float().distribution(), levels=5)
    x = d.sample((1000,))
    assert x.dtype == torch.int64
    assert x.shape == (1000, 2)
    assert d.support.check(x).all()
    assert d.support.event_dim == 1
    assert d.support.is_discrete
    assert set(x.unique().tolist()) == set(range(5))
    assert d.log_prob(x).isfinite().all()


def test_samples_follow_the_probabilities():
    flow = pixels()
    values, exact = cells(flow)
    x = Dequantized(flow.distribution(), levels=2).sample((20_000,))
    frequencies = torch.stack([(x == k).all(-1).double().mean() for k in values])
    torch.testing.assert_close(frequencies, exact.exp(), atol=0.025, rtol=0)


@pytest.mark.parametrize("num_samples", [1, 2, 3])
def test_expand_and_batches(num_samples):
    base = dist.Uniform(torch.zeros(3, 2), torch.ones(3, 2)).to_event(1)
    d = Dequantized(base, levels=4, num_samples=num_samples)
    assert d.batch_shape == (3,)
    wide = d.expand((5, 3))
    assert wide.batch_shape == (5, 3)
    assert (wide.levels, wide.num_samples) == (4, num_samples)
    assert wide.sample().shape == (5, 3, 2)
    for values, shape in (((6, 5, 3), (6, 5, 3)), ((5, 3), (5, 3)), ((3,), (5, 3)), ((), (5, 3))):
        log_prob = wide.log_prob(torch.zeros(*values, 2))
        torch.testing.assert_close(log_prob, torch.full(shape, -2 * math.log(4)))


def test_it_is_an_observation_in_pyro():
    flow = Flow(StandardNormal((1, 2, 4)), [*realnvp_transforms((1, 2, 4), scales=1, net=resnet), Logit(0.05).inv])
    prime(flow)
    data = torch.randint(17, (6, 1, 2, 4))

    def model():
        pyro.module("flow", flow)
        with pyro.plate("images", 6):
            return pyro.sample("x", Dequantized(flow.distribution(), levels=17), obs=data)

    before = [p.detach().clone() for p in flow.parameters()]
    svi = SVI(model, lambda: None, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    losses = [svi.step() / 6 for _ in range(40)]
    assert sum(losses[-5:]) < sum(losses[:5])
    assert any(not torch.equal(p, q) for p, q in zip(flow.parameters(), before, strict=True))
    trace = pyro.poutine.trace(pyro.poutine.uncondition(model)).get_trace()
    assert trace.nodes["x"]["value"].dtype == torch.int64
    assert trace.nodes["x"]["value"].shape == (6, 1, 2, 4)


# ------------------------------------------------------------------------------------------------ bits_per_dim


def test_bits_per_dim_formula():
    flow = pixels()
    x = flow.sample((50,)).clamp(0, 1)
    bits = bits_per_dim(flow.distribution(), x)
    each = -flow(x) / (2 * math.log(2))
    assert bits.value == pytest.approx(each.mean().item())
    assert bits.error == pytest.approx(each.std().item() / 50**0.5)
    for batch_size in (1, 7, 50, 100):
        assert bits_per_dim(flow.distribution(), x, batch_size=batch_size) == pytest.approx(bits)


def test_bits_of_a_density_on_the_unit_cube_miss_log2_of_the_levels():
    flow = pixels()
    k = torch.randint(256, (500, 2))
    continuous = bits_per_dim(flow.distribution(), (k + 0.5).double() / 256).value
    discrete = bits_per_dim(Dequantized(flow.distribution(), 256), k.double()).value
    assert discrete == pytest.approx(continuous + 8, abs=0.02)


def test_bits_of_one_and_of_no_event():
    d = Dequantized(uniform(2), 4)
    assert bits_per_dim(d, torch.zeros(1, 2)).error == math.inf
    with pytest.raises(ValueError, match="at least one event"):
        bits_per_dim(d, torch.zeros(0, 2))


def test_bits_keep_no_graph():
    flow = pixels().requires_grad_(True)
    bits_per_dim(flow.distribution(), torch.rand(3, 2, dtype=torch.float64))
    assert all(p.grad is None for p in flow.parameters())
