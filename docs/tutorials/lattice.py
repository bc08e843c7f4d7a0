# %% [markdown]
# # An unnormalised density: a chain of phi^4
#
# A field phi on 8 sites of a ring, with the density exp(-S) / Z for the action
#
#     S = sum_i (phi_(i+1) - phi_i)^2 / 2 + m2 phi_i^2 / 2 + g phi_i^4,   m2 < 0:
#
# the sites want to be alike, and far from 0 on either side, so that their mean, the magnetisation, has two modes. A
# chain that takes small steps hardly ever crosses from one to the other. A flow is trained without any sample of the
# density, by the reverse KL divergence, and proposes a whole field at once (Albergo, Kanwar, Shanahan 2019,
# "Flow-based generative models for Markov chain Monte Carlo in lattice field theory").
#
# In Pyro it is a model without data: a flat site, and the action as a factor.

# %%
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from matplotlib import pyplot as plt
from pyro.infer import MCMC

from pyro_realnvp import AutoRealNVP, IndependenceMH, MixtureBase, fit_guide

pyro.set_rng_seed(0)
SITES, M2, G = 8, -1.0, 0.06


def potential(phi):
    return M2 * phi**2 / 2 + G * phi**4


def field():
    phi = pyro.sample("phi", dist.ImproperUniform(dist.constraints.real_vector, (), (SITES,)))
    coupling = (phi.roll(1, -1) - phi) ** 2 / 2
    pyro.factor("action", -(coupling + potential(phi)).sum(-1))


guide = AutoRealNVP(field, base=partial(MixtureBase, components=2), init_scale=2.0)
report = fit_guide(field, guide, steps=2000, annealing=0.1, progress=False)
print(report)

# %% [markdown]
# In one dimension the answer is known: Z is the trace of the 8th power of a transfer matrix between neighbours, here
# on a grid of 151 values. With phi^2 in one place it gives the mean of phi^2, and with exp(i k phi / 8) at every site
# the characteristic function of the magnetisation, and so its density.

# %%
grid = torch.linspace(-5, 5, 151, dtype=torch.float64)
neighbours = (grid[:, None] - grid) ** 2 / 2 + (potential(grid)[:, None] + potential(grid)) / 2
transfer = (-neighbours).exp() * (grid[1] - grid[0])
power = transfer.matrix_power(SITES).diagonal()
exact_log_z, exact_phi2 = power.sum().log(), (power * grid**2).sum() / power.sum()


def density_of_magnetisation(at, period=10.0):
    k = 2 * torch.pi / period * torch.arange(-40, 41)
    traces = [(transfer * (1j * each * grid / SITES).exp()).matrix_power(SITES).trace() for each in k]
    return ((-1j * k * at[:, None]).exp() @ torch.stack(traces)).real / power.sum() / period


# %% [markdown]
# Importance weights exp(-S) / q correct the draws of the flow: the mean of the weights estimates Z, and weighted
# averages estimate anything else. The action does not know the sign of phi, but the flow need not be symmetric.

# %%
samples = report.samples
weight = samples.log_weights.double().softmax(0)
phi2 = (samples.samples["phi"].double() ** 2).mean(-1)
estimate = (weight * phi2).sum()
error = (weight**2 * (phi2 - estimate) ** 2).sum().sqrt()
positive = weight[samples.samples["phi"].mean(-1) > 0].sum()
print(f"k-hat {samples.pareto_k:.2f}, effective draws {samples.effective_sample_size:.0f} of {len(weight)}")
print(f"log Z {samples.log_evidence:.3f}, exact {exact_log_z:.3f}")
print(f"<phi^2> {estimate:.4f} +- {error:.4f}, exact {exact_phi2:.4f}; share of the positive mode {positive:.3f}")

# %% [markdown]
# Or the flow proposes to Metropolis-Hastings, which takes or leaves every field as a whole. Its error comes from the
# spread of the means of 20 stretches of the chain.

# %%
mcmc = MCMC(IndependenceMH(field, guide, parallel=True), num_samples=10000, warmup_steps=100, disable_progbar=True)
mcmc.run()
chain = mcmc.get_samples()["phi"].double()
stretches = (chain**2).mean(-1).reshape(20, -1).mean(-1)
print(f"accepted {mcmc.diagnostics()['acceptance rate']['chain 0']:.2f}")
print(f"<phi^2> {stretches.mean():.4f} +- {stretches.std() / 20**0.5:.4f}, exact {exact_phi2:.4f}")

# %% [markdown]
# Why two components, and why the exact result? A flow of one piece may end in one of the two modes. Neither k-hat nor
# the effective draws can tell, as they look where the flow draws, and phi^2 is the same in both modes. The evidence is
# short by log 2, which only the exact Z shows, and `fit_guide` has found the other mode by climbing from far draws:

# %%
one_sided = AutoRealNVP(field, init_loc_fn=lambda site: torch.ones(SITES), name="one_sided")
print(fit_guide(field, one_sided, steps=1000, progress=False))

# %%
at = torch.linspace(-3, 3, 200, dtype=torch.float64)
figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
for label, draws in {"chain": chain, "flow of one piece": one_sided.sample_posterior((10000,))["phi"]}.items():
    axes.hist(draws.mean(-1).numpy(), 80, range=(-3, 3), density=True, histtype="step", label=label)
axes.plot(at, density_of_magnetisation(at), "k--", label="exact")
axes.set(xlabel="magnetisation", title="the magnetisation of the chain")
axes.legend()
