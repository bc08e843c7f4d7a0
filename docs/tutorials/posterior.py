# %% [markdown]
# # A posterior: eight schools
#
# The effect of a course in each of eight schools, with its standard error (Rubin 1981, "Estimation in parallel
# randomized experiments"). The effects come from a normal distribution whose mean and scale are unknown. A guide,
# [`AutoRealNVP`][pyro_realnvp.AutoRealNVP], is trained by [`fit_guide`][pyro_realnvp.fit_guide], asked how far it can
# be trusted, corrected, and compared with NUTS.

# %%
import pyro
import pyro.distributions as dist
import torch
from matplotlib import pyplot as plt
from pyro.infer import MCMC

from pyro_realnvp import AutoRealNVP, NeuTra, fit_guide

pyro.set_rng_seed(0)
y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
error = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def schools():
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", 8):
        standardised = pyro.sample("standardised", dist.Normal(0.0, 1.0))
        effect = pyro.deterministic("effect", mu + tau * standardised)
        pyro.sample("y", dist.Normal(effect, error), obs=y)


guide = AutoRealNVP(schools)
report = fit_guide(schools, guide, steps=3000, progress=False)
print(report)

# %% [markdown]
# k-hat is the shape of the tail of the importance weights. Below 0.7 weighted draws correct what the guide has wrong.
# Above, the guide is too poor for that, and the report says so. It is blind to a mode that the guide never visits,
# which is why the report also runs an optimiser from widely scattered points, and lists modes that the guide misses.
#
# Draws from the posterior, corrected by their weights:

# %%
posterior = report.samples.resample(4000)
for name in ("mu", "tau"):
    print(f"{name:4} {posterior[name].mean():6.2f} +- {posterior[name].std():.2f}")

# %% [markdown]
# [`NeuTra`][pyro_realnvp.NeuTra] runs NUTS on the latents of the flow, where the posterior looks like a standard
# Gaussian if the guide is good. It samples the exact posterior whatever the guide; the better the guide, the more
# effective draws a second. Check R-hat as always. It starts at draws of the guide, so that a short warm-up is enough:

# %%
neutra = NeuTra(schools, guide)
kernel = neutra.kernel()
mcmc = MCMC(kernel, num_samples=1000, warmup_steps=100, disable_progbar=True)
mcmc.run()
exact = neutra.get_samples(mcmc)
for name in ("mu", "tau"):
    print(f"{name:4} {exact[name].mean():6.2f} +- {exact[name].std():.2f}")

# %%
figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
for name, draws in {"guide, weighted": posterior, "NUTS through the guide": exact}.items():
    axes.scatter(draws["mu"][:1000], draws["tau"][:1000].log(), s=3, label=name)
axes.set_title("the posterior of the common mean and scale")
axes.set(xlabel="mu", ylabel="log tau")
axes.legend()

# %% [markdown]
# Next: [guides](../guides.md) has several modes, centred hierarchies, many latents, and what is not solved.
# [Save, load, deploy](../howto/files.md) says how a guide is kept.
