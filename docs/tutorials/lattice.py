# %% [markdown]
# # An unnormalised density: a lattice field
#
# A field phi on 8 sites of a ring, with the density exp(-S) / Z for the action
#
#     S = sum_i (phi_(i+1) - phi_i)^2 / 2 + m2 phi_i^2 / 2 + g phi_i^4,   m2 < 0:
#
# the sites want to be alike, and far from 0 on either side, so that their mean, the magnetisation, has two modes. A
# Markov chain of small steps hardly ever crosses from one to the other. A flow is trained without any sample of the
# density, by the reverse KL divergence, and proposes a whole field at once (Albergo, Kanwar, Shanahan 2019,
# "Flow-based generative models for Markov chain Monte Carlo in lattice field theory").
#
# In Pyro it is a model without data: a flat site, and the action as a factor. The base of the flow is a mixture of two
# Gaussians, one for each mode, and `annealing` begins with a density that is almost flat.

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
report = fit_guide(field, guide, steps=1500, annealing=0.1, progress=False)
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
magnetisation = samples.samples["phi"].mean(-1)
positive, between = weight[magnetisation > 0].sum(), weight[magnetisation.abs() < 0.5].sum()
exact_between = density_of_magnetisation(torch.linspace(-0.5, 0.5, 101, dtype=torch.float64)).mean()
print(f"k-hat {samples.pareto_k:.2f}, effective draws {samples.effective_sample_size:.0f} of {len(weight)}")
relative = (1 / samples.effective_sample_size - 1 / len(weight)) ** 0.5  # standard error of the mean weight
print(f"log Z {samples.log_evidence:.3f} +- {relative:.3f}, exact {exact_log_z:.3f}")
print(f"<phi^2> {estimate:.4f} +- {error:.4f}, exact {exact_phi2:.4f}")
print(
    f"share of the positive side {positive:.3f}, exact 0.5; between the modes {between:.4f}, exact {exact_between:.4f}"
)

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
# Weights and chain correct what the flow draws too rarely, but not what it hardly draws at all. log Z is short of the
# truth by more than its error, and more than half of that are fields with a magnetisation between -0.5 and 0.5, up in
# one part of the ring and down in the other.
#
# A whole mode can be missing as well. A flow whose base is a single Gaussian, which begins in the positive mode, stays
# there. The mean of phi^2 does not show it, as it is the same in both modes, and k-hat judges the weights where the
# flow draws. log Z is short by about log 2 = 0.69, but who knows Z? The report has climbed the density from far draws,
# and names the place:

# %%
one_sided = AutoRealNVP(field, init_loc_fn=lambda site: torch.ones(SITES), name="one_sided")
print(fit_guide(field, one_sided, steps=700, progress=False))

# %%
at = torch.linspace(-3, 3, 200, dtype=torch.float64)
figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
one_mode = one_sided.sample_posterior((10000,))["phi"]
for label, draws in {"Metropolis-Hastings": chain, "flow of one mode": one_mode}.items():
    axes.hist(draws.mean(-1).numpy(), 80, range=(-3, 3), density=True, histtype="step", label=label)
axes.plot(at, density_of_magnetisation(at), "k--", label="exact")
axes.set(xlabel="magnetisation", title="magnetisation of 8 sites")
axes.set_ylim(top=1.6)
axes.legend()
