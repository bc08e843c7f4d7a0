"""What every base is held to, alone and in a flow."""

import copy
import pickle
from functools import partial

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from torch.func import functional_call, vmap

from pyro_realnvp import (
    AutoRealNVP,
    Chain,
    DiagonalNormal,
    Flow,
    MixtureBase,
    NeuTra,
    PathGradientDistribution,
    Scale,
    StandardLogistic,
    StandardNormal,
    StudentTBase,
    fit,
    flowpp_dequantizer,
    importance_sample,
    load,
    realnvp_transforms,
    save,
)
from pyro_realnvp.testing import randomize

from zoo import attention, features, mlp

BASES = {
    "normal": StandardNormal,
    "logistic": StandardLogistic,
    "diagonal": DiagonalNormal,
    "student": StudentTBase,
    "mixture": partial(MixtureBase, components=3),
}
LEARNED = {name: BASES[name] for name in ("diagonal", "student", "mixture")}
every = pytest.mark.parametrize("make", BASES.values(), ids=BASES)
learned = pytest.mark.parametrize("make", LEARNED.values(), ids=LEARNED)
SHAPES = [(), (3,), (1, 2, 3)]


def moved(base):
    """The base with other parameters than at the start."""
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return base


@every
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch", [(), (5,), (2, 0), (2, 3)])
def test_shapes(make, shape, batch):
    base = moved(make(shape))
    distribution = base()
    assert distribution.event_shape == base.event_shape == shape
    assert distribution.batch_shape == ()
    z = distribution.rsample(batch)
    assert z.shape == batch + shape
    assert z.requires_grad == any(p.requires_grad for p in base.parameters())
    log_prob = distribution.log_prob(z)
    assert log_prob.shape == batch
    torch.testing.assert_close(base.log_prob(z), log_prob)
    each = [distribution.log_prob(one) for one in z.reshape(-1, *shape)]
    torch.testing.assert_close(log_prob.flatten(), torch.stack(each) if each else torch.zeros(0))


@every
def test_expanding_and_masking(make):
    base = moved(make((2, 2)))
    wide = base().expand((5, 1)).expand((5, 4))
    assert wide.batch_shape == (5, 4)
    z = wide.rsample((3,))
    assert z.shape == (3, 5, 4, 2, 2)
    torch.testing.assert_close(wide.log_prob(z), base().log_prob(z))
    assert wide.support.check(z).all()
    assert base().mask(False).log_prob(z).eq(0).all()
    torch.testing.assert_close(wide.to_event(1).log_prob(z), base().log_prob(z).sum(-1))


@learned
@pytest.mark.parametrize("shape", SHAPES)
def test_a_context_moves_the_parameters(make, shape):
    base = make(shape, context_shape=2)
    context, z = torch.randn(4, 2), torch.randn(5, 4, *shape)
    torch.testing.assert_close(base(context).log_prob(z), make_without(base, make, shape)().log_prob(z))  # at the start
    moved(base)
    assert base(context).batch_shape == (4,)
    log_prob = base.log_prob(z, context)
    assert base(context).rsample((7,)).shape == (7, 4, *shape)
    for index in range(4):
        alone = base(context[index])
        assert alone.batch_shape == ()
        torch.testing.assert_close(alone.log_prob(z[:, index]), log_prob[:, index])
    assert (base.log_prob(z, context + 1) != log_prob).all()


def make_without(base, make, shape):
    """The base without a context that has the other parameters of a base."""
    plain = make(shape)
    plain.load_state_dict({key: value for key, value in base.state_dict().items() if key != "linear.weight"})
    return plain


@learned
@pytest.mark.parametrize(
    ("context", "message"),
    [
        (None, "got none"),
        (torch.zeros(4, 3), r"\(2,\).*\(4, 3\)"),
        (torch.zeros(4, 2).long(), "floating point.*int64"),
        (torch.zeros(4, 2).double(), "float32.*float64"),
        ([0.0, 1.0], "tensor as context.*list"),
    ],
)
def test_contexts_that_do_not_fit(make, context, message):
    base = make(3, context_shape=2)
    with pytest.raises(ValueError, match=message) as caught:
        base(context)
    assert type(base).__name__ in str(caught.value)


@learned
def test_contexts_that_are_no_vectors(make):
    with pytest.raises(ValueError, match=r"context vector, but got \(1, 2, 2\)"):
        make(3, context_shape=(1, 2, 2))


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes(make, dtype):
    base = make(3).to(dtype)
    z = base().rsample((4,))
    assert z.dtype == base().log_prob(z).dtype == dtype
    flow = Flow(base, realnvp_transforms(3, couplings=2, net=mlp)).to(dtype)
    assert flow(flow.sample((4,))).dtype == dtype


def integral(value, points=801):
    """Integrates a function of (n, 2) over the plane, by the rectangle rule over t with z = sinh(t)."""
    t = torch.linspace(-30, 30, points, dtype=torch.float64)
    pairs = torch.cartesian_prod(t, t)
    return (value(pairs.sinh()) * pairs.cosh().prod(-1)).sum() * (t[1] - t[0]) ** 2


TESTED = {
    "one": lambda z: torch.ones(len(z), dtype=z.dtype),
    "first": lambda z: z[:, 0].tanh(),
    "second": lambda z: z[:, 1].tanh(),
    "product": lambda z: z[:, 0].tanh() * z[:, 1].tanh(),
    "square": lambda z: 1 / (1 + z[:, 0].square()),
    "far": lambda z: 1 - 1 / (1 + (z[:, 1] / 4) ** 4),
    "wave": lambda z: (z[:, 0] - 2 * z[:, 1]).cos(),
}


@every
@torch.no_grad()
def test_draws_have_the_density(make):
    base = moved(make(2)).double()
    z = base().sample((200_000,))
    for name, function in TESTED.items():
        values = function(z)
        exact = integral(lambda z, function=function: function(z) * base.log_prob(z).exp())
        assert abs(values.mean() - exact) < 4.5 * values.std() / len(z) ** 0.5 + 1e-6, name


@learned
def test_every_parameter_gets_gradients(make):
    base = moved(make((2, 2), context_shape=2))
    context = torch.randn(6, 2)
    for value in (base.log_prob(torch.randn(6, 2, 2), context).sum(), base(context).rsample((3,)).tanh().sum()):
        for gradient in torch.autograd.grad(value, list(base.parameters())):
            assert gradient.isfinite().all()
            assert gradient.any()


class Call(torch.nn.Module):
    """Calls a method of the distribution of a base, for ``functional_call``."""

    def __init__(self, base, method):
        super().__init__()
        self.base, self.method = base, method

    def forward(self, *args):
        return getattr(self.base(), self.method)(*args)


@every
def test_vmap_over_events(make):
    base, z = moved(make((2, 2))), torch.randn(5, 2, 2)
    torch.testing.assert_close(vmap(base.log_prob)(z), base.log_prob(z))


@learned
@pytest.mark.parametrize(("method", "argument"), [("log_prob", torch.ones(5, 3)), ("rsample", torch.Size((5,)))])
def test_vmap_over_parameters_and_gradients(make, method, argument):
    call = Call(moved(make(3)), method)
    states = {key: torch.stack([value, value + 0.1]).detach() for key, value in call.named_parameters()}

    def loss(state):
        return functional_call(call, state, (argument,)).tanh().sum()

    alone = [torch.func.grad(loss)({key: state[index] for key, state in states.items()}) for index in range(2)]
    assert all(value.isfinite().all() and value.any() for value in alone[1].values())
    if method == "log_prob":  # torch draws no normal variables under vmap
        together = vmap(torch.func.grad(loss))(states)
        for index in range(2):
            for key, value in alone[index].items():
                torch.testing.assert_close(together[key][index], value)


@every
def test_copies_and_files(make, tmp_path):
    for context_shape in (None, 2) if make in LEARNED.values() else (None,):
        options = {} if context_shape is None else {"context_shape": context_shape}
        flow = Flow(moved(make(3, **options)), realnvp_transforms(3, couplings=2, net=mlp))
        context = None if context_shape is None else torch.randn(4, 2)
        x = torch.randn(4, 3)
        save(flow, tmp_path / "flow.safetensors")
        for other in (copy.deepcopy(flow), pickle.loads(pickle.dumps(flow)), load(tmp_path / "flow.safetensors")):
            torch.testing.assert_close(other(x, context), flow(x.clone(), context), atol=0, rtol=0)
            torch.manual_seed(1)
            z = other.sample((4,), context)
            torch.manual_seed(1)
            assert torch.equal(z, flow.sample((4,), context))


@every
def test_printing(make):
    base = make((2, 2))
    flow = Flow(base, [Scale((2, 2))])
    count = sum(p.numel() for p in base.parameters())
    assert repr(base).startswith(f"{type(base).__name__}((2, 2)")
    last = repr(flow).splitlines()[-1].split()
    assert (last[0], last[-1]) == (type(base).__name__, str(count))
    assert flow.summary().splitlines()[-1].split()[-1] == str(count)


@every
def test_a_flow_and_its_distribution(make):
    flow = Flow(moved(make(3)), realnvp_transforms(3, couplings=2, net=mlp))
    randomize(flow.transforms)
    x = flow.distribution().rsample((6,))
    torch.testing.assert_close(flow(x), flow.distribution().log_prob(x.clone()))
    assert flow.sample((2, 5)).shape == (2, 5, 3)
    assert not flow.sample((2,)).requires_grad


@every
def test_temperature(make):
    base = moved(make(3))
    flow = Flow(base, [Scale((3,))])
    torch.manual_seed(1)
    warm = flow.sample((5,), temperature=0.5)
    torch.manual_seed(1)
    assert torch.equal(flow.sample((5,), temperature=0.5), warm)
    spread = flow.sample((4000,)).quantile(0.9, 0) - flow.sample((4000,)).quantile(0.1, 0)
    cool = flow.sample((4000,), temperature=0.5)
    assert (cool.quantile(0.9, 0) - cool.quantile(0.1, 0) < 0.9 * spread).all()
    cold = flow.sample((50,), temperature=0.0)
    assert len(cold.unique(dim=0)) == (3 if isinstance(base, MixtureBase) else 1)


@every
def test_layers_from_latent_to_data_are_initialised_by_draws(make):
    flow = Flow(
        make((1, 4, 4)), flowpp_dequantizer((1, 4, 4), couplings=1, components=2, net=attention, embedding=features)
    )
    flow.initialize(torch.rand(4, 1, 4, 4), torch.rand(4, 1, 4, 4))
    assert flow(torch.rand(4, 1, 4, 4), torch.rand(4, 1, 4, 4)).isfinite().all()


@every
def test_fitting(make):
    flow = Flow(make(2), realnvp_transforms(2, couplings=2, net=mlp))
    x = torch.randn(400, 2) @ torch.tensor([[2.0, 0.0], [1.5, 0.5]]) + 1
    untrained = -flow(x).mean()
    before = {key: value.clone() for key, value in flow.base.named_parameters()}
    history = fit(flow, x, steps=150, learning_rate=1e-2, progress=False)
    assert min(history.validation) < untrained - 0.5
    assert all(not torch.equal(value, before[key]) for key, value in flow.base.named_parameters())


@pytest.mark.parametrize("make", [DiagonalNormal, partial(MixtureBase, components=2), StudentTBase])
def test_weight_decay_leaves_bases_alone(make):
    """Gradients of the base are zero here, and the decay is strong."""
    base = make((1, 2, 2))
    before = {key: value.clone() for key, value in base.named_parameters()}
    for parameter in base.parameters():
        parameter.register_hook(torch.zeros_like)
    flow = Flow(base, [torch.distributions.ReshapeTransform((1, 2, 2), (4,)), *realnvp_transforms(4, net=mlp)])
    weights = [p for p in flow.transforms.parameters() if p.dim() > 1]
    size = sum(float(weight.detach().square().sum()) for weight in weights)
    fit(flow, torch.randn(40, 4), steps=20, weight_decay=10.0, learning_rate=0.01, ema=0.0, progress=False)
    assert all(torch.equal(value, before[key]) for key, value in base.named_parameters())
    assert sum(float(weight.detach().square().sum()) for weight in weights) < 0.9 * size


# -------------------------------------------------------------------------------------------------------- in inference


def targets(x):
    """An unnormalised log-density over (\\*batch, 2)."""
    return -0.5 * (x - 0.5).square().sum(-1) - 0.1 * x[..., 0] ** 4


@learned
def test_the_path_gradient_is_that_of_the_divergence_with_less_noise(make):
    """Of the same draws: the path gradient less the total one has mean zero, for the parameters of the base, too."""
    base = moved(make(2)).double()
    chain = Chain(realnvp_transforms(2, couplings=2, net=mlp)).double()
    randomize(chain)
    parameters = [*base.parameters(), *chain.parameters()]

    def gradient(kind):
        q = kind(base(), [chain])
        x = q.rsample((100,))
        found = torch.autograd.grad((q.log_prob(x) - targets(x)).mean(), parameters, materialize_grads=True)
        return torch.cat([part.flatten() for part in found])

    differences = []
    for seed in range(200):
        torch.manual_seed(seed)
        one = gradient(PathGradientDistribution)
        torch.manual_seed(seed)
        differences.append(one - gradient(dist.TransformedDistribution))
    difference = torch.stack(differences)
    error = difference.std(0) / len(differences) ** 0.5
    assert (error > 1e-9).sum() > 20
    assert (difference.mean(0).abs() <= 4.5 * error + 1e-12).all()


@learned
def test_the_path_gradient_vanishes_at_the_target(make):
    base = moved(make(2)).double()
    target = copy.deepcopy(base).requires_grad_(False)
    q = PathGradientDistribution(base(), [Scale((2,)).double()])
    x = q.rsample((50,))
    loss = (q.log_prob(x) - target().log_prob(x)).mean()
    for gradient in torch.autograd.grad(loss, list(base.parameters())):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-9, rtol=0)


def model():
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    with pyro.plate("two", 2):
        pyro.sample("x", dist.Normal(1.0, scale))


@every
def test_guides(make):
    guide = AutoRealNVP(model, partial(realnvp_transforms, couplings=2, net=mlp), base=make, init_scale=0.5)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 1e-2}), Trace_ELBO(16, vectorize_particles=True))
    losses = [svi.step() for _ in range(150)]
    assert sum(losses[-20:]) < sum(losses[:20])
    weights = importance_sample(model, guide, num_samples=500, parallel=True).log_weights
    assert abs(float(weights.exp().mean()) - 1) < 0.3
    names = {name for name in pyro.get_param_store() if name.startswith("AutoRealNVP.base$$$")}
    assert names == {f"AutoRealNVP.base$$${key}" for key, _ in guide.flow.base.named_parameters()}
    medians, draws = guide.median(), guide.sample_posterior((4000,))
    for name, value in medians.items():
        torch.testing.assert_close(value, draws[name].median(0).values, atol=0.15, rtol=0)
    other = AutoRealNVP(model, partial(realnvp_transforms, couplings=2, net=mlp), base=make, name="other")
    other.load_state_dict(guide.state_dict())
    for each in (copy.deepcopy(guide), pickle.loads(pickle.dumps(guide)), other):
        if each is other:
            other.initialize()
        for name, value in each.median().items():
            assert torch.equal(value, medians[name])


@learned
def test_the_parameter_store_of_a_guide_comes_back(make, tmp_path):
    made = partial(AutoRealNVP, model, partial(realnvp_transforms, couplings=2, net=mlp), base=make, init_scale=0.5)
    guide = made()
    guide()
    with torch.no_grad():
        moved(guide.flow.base)
    medians = guide.median()
    pyro.get_param_store().save(tmp_path / "store")
    pyro.clear_param_store()
    pyro.get_param_store().load(tmp_path / "store")
    again = made()
    again()
    for name, value in again.median().items():
        torch.testing.assert_close(value, medians[name])


@every
def test_neutra(make):
    guide = AutoRealNVP(model, partial(realnvp_transforms, couplings=2, net=mlp), base=make, init_scale=0.5)
    guide()
    neutra = NeuTra(model, guide)
    mcmc = MCMC(NUTS(neutra), num_samples=20, warmup_steps=20, disable_progbar=True)
    mcmc.run()
    samples = neutra.get_samples(mcmc)
    assert samples["x"].shape == (20, 2)
    assert samples["x"].isfinite().all()


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (lambda dim: StandardNormal(dim + 1), r"events \(3,\).*\(4,\)"),
        (lambda dim: DiagonalNormal(dim, context_shape=2), r"without a context.*contexts \(2,\)"),
        (lambda dim: dist.Normal(0, 1), "base must build a Base"),
        (lambda: None, "base was called with"),
    ],
)
def test_bases_that_do_not_fit_a_guide(base, message):
    guide = AutoRealNVP(model, base=base, init_scale=0.5)
    with pytest.raises((ValueError, TypeError), match=message):
        guide()
