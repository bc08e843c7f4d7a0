# %% [markdown]
# # A population: a flow as prior
#
# Every object has two true properties z, and is measured with an error, x = z + e, e ~ N(0, s^2 I), where s is known
# and differs from object to object. What is the density of the population, p(z), without the errors? That is
# deconvolution (Bovy, Hogg, Roweis 2011, "Extreme deconvolution"), and p(z) is the prior of every object. Here the
# truth is a ring with a clump in its centre.

# %%
import math

import pyro
import pyro.distributions as dist
import torch
from matplotlib import pyplot as plt
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.optim import ClippedAdam

from pyro_realnvp import DiagonalNormal, Flow, StandardNormal, realnvp_transforms, spline_transforms

pyro.set_rng_seed(0)


def simulate(rows):
    angle = 2 * math.pi * torch.rand(rows, 1)
    ring = 1.2 * torch.cat([angle.cos(), angle.sin()], -1)
    z = torch.where(torch.rand(rows, 1) < 0.3, 0.0, ring) + 0.1 * torch.randn(rows, 2)
    s = 0.05 + 0.2 * torch.rand(rows, 1)
    return z + s * torch.randn(rows, 2), s


def true_log_density(x, s):
    angle = 2 * math.pi * torch.arange(400)[:, None, None] / 400
    noise = dist.Normal(0.0, (0.1**2 + s**2).sqrt())
    ring = noise.log_prob(x - 1.2 * torch.cat([angle.cos(), angle.sin()], -1)).sum(-1).logsumexp(0) - math.log(400)
    return torch.logaddexp(noise.log_prob(x).sum(-1) + math.log(0.3), ring + math.log(0.7))


x, s = simulate(rows=5000)
new_x, new_s = simulate(rows=2000)

# %% [markdown]
# The prior is a `Flow`, and so is the guide q(z | x, s), which learns the posteriors of all objects at once. SVI
# trains both, as the ELBO is a bound on log p(x) for the prior too. Two Gaussian priors are the yardstick: N(0, I), and
# one with a learned mean and learned deviations.


# %%
class Population(torch.nn.Module):
    def __init__(self, prior):
        super().__init__()
        self.prior = prior
        self.posterior = Flow(StandardNormal(2), realnvp_transforms(2, context_shape=3))

    def p_of_z(self):
        return self.prior.distribution() if isinstance(self.prior, Flow) else self.prior()

    def model(self, s, x=None):
        pyro.module("population", self)
        with pyro.plate("objects", len(s)):
            z = pyro.sample("z", self.p_of_z())
            pyro.sample("x", dist.Normal(z, s).to_event(1), obs=x)

    def q_of_z(self, s, x):  # in units of the error from the measurement, which is a good start
        from_x = self.posterior.distribution(torch.cat([x, s], -1))
        shift = dist.transforms.AffineTransform(x, s.expand(x.shape), event_dim=1)
        return dist.TransformedDistribution(from_x, shift)

    def guide(self, s, x):
        with pyro.plate("objects", len(s)):
            pyro.sample("z", self.q_of_z(s, x))

    @torch.no_grad()
    def log_weights(self, s, x, draws):
        q = self.q_of_z(s, x)
        z = q.sample((draws,))
        return self.p_of_z().log_prob(z) + dist.Normal(z, s).log_prob(x).sum(-1) - q.log_prob(z)


def train(population, steps):
    pyro.clear_param_store()
    optimizer = ClippedAdam({"lr": 2e-3, "lrd": 0.1 ** (1 / steps), "clip_norm": 1000.0})
    svi = SVI(population.model, population.guide, optimizer, Trace_ELBO())
    for _ in range(steps):
        rows = torch.randint(len(x), (256,))
        svi.step(s[rows], x[rows])
    return population


populations = {
    "N(0, I)": train(Population(StandardNormal(2)), steps=700),
    "Gaussian": train(Population(DiagonalNormal(2)), steps=700),
    "flow": train(Population(Flow(StandardNormal(2), spline_transforms(2, couplings=4))), steps=1500),
}

# %% [markdown]
# On new objects: the ELBO, and the bound on log p(x) by 100 importance weights (Burda, Grosse, Salakhutdinov 2016,
# "Importance weighted autoencoders"), beside log p(x) under the truth, in nats an object. The gap between the two
# bounds is what the guide loses; what is lost to the truth is mostly the prior's.

# %%
truth = true_log_density(new_x, new_s)
print(f"truth                   {truth.mean():.3f}")
for name, population in populations.items():
    weights = population.log_weights(new_s, new_x, draws=100)
    bound = weights.logsumexp(0) - math.log(len(weights))
    lost = truth - bound
    print(
        f"{name:8} ELBO {weights.mean():.3f}, bound {bound.mean():.3f}, "
        f"lost to the truth {lost.mean():.3f} +- {lost.std() / len(lost) ** 0.5:.3f}"
    )

# %% [markdown]
# A learned prior is an ordinary Pyro distribution. Held fixed, it serves in any other model, here in that of one object
# with an uncertain measurement, by NUTS, beside the guide. With the prior N(0, I) the posterior is a Gaussian, which
# knows nothing of the ring:

# %%
flow = populations["flow"].eval().requires_grad_(False).prior
one_x, one_s = torch.tensor([1.0, 0.7]), torch.tensor([0.25])


def one_object():
    z = pyro.sample("z", flow.distribution())
    pyro.sample("x", dist.Normal(z, one_s).to_event(1), obs=one_x)


mcmc = MCMC(NUTS(one_object), num_samples=300, warmup_steps=100, disable_progbar=True)
mcmc.run()
exact = mcmc.get_samples()["z"]
guessed = populations["flow"].q_of_z(one_s, one_x).sample((2000,))
shrunk = one_x / (1 + one_s**2) + one_s / (1 + one_s**2).sqrt() * torch.randn(2000, 2)
for name, z in {"NUTS": exact, "guide": guessed, "N(0, I)": shrunk}.items():
    print(f"{name:8} radius {z.norm(dim=-1).mean():.2f} +- {z.norm(dim=-1).std():.2f}")

# %% [markdown]
# `Predictive` draws new objects and their measurements from the model. The second of the three pictures shows what
# nobody has measured, the population without errors. The thin veil between ring and clump is not in the truth: the flow
# carries one connected Gaussian there, which cannot fall apart into two pieces, and so loses a part of its nats.

# %%
drawn = Predictive(populations["flow"].model, num_samples=10)(new_s)
figure, axes = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained", sharex=True, sharey=True)
axes[0].scatter(*x[:2000].T, s=2)
axes[0].set_title("measured objects")
axes[1].scatter(*drawn["z"][0].T, s=2, color="tab:orange")
axes[1].set_title("draws of the prior")
axes[2].scatter(*guessed[:300].T, s=3, color="tab:green", label="guide")
axes[2].scatter(*exact.T, s=3, color="tab:red", label="NUTS")
axes[2].scatter(*one_x, marker="x", color="black", label="measured")
axes[2].set_title("one object given x")
axes[2].legend()
axes[2].set(xlim=(-2.2, 2.2), ylim=(-2.2, 2.2), aspect="equal")
