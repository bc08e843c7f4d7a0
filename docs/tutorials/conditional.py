# %% [markdown]
# # p(y | x) with two modes
#
# A regression predicts one number; here y has two likely values for every x, and noise that grows with x. A conditional
# flow learns the whole density of y given x. A single coordinate needs
# [`spline_transforms`][pyro_realnvp.spline_transforms]: affine couplings leave it Gaussian. With several modes splines
# are the choice for two or three coordinates, too.
#
# Here x and y are of order one. Other data are standardised, the context too:
# [condition on anything](../howto/condition.md) shows how, with densities and samples in the units of y. The pair
# (y, x) below has y, whose density is learned, in front; `fit(flow, y, context=x)` does the same. With a number of
# steps the learning rate falls to 0 at the end; without, `fit` ends when held-out rows no longer improve.

# %%
import pyro
import torch
from matplotlib import pyplot as plt

from pyro_realnvp import Flow, StandardNormal, fit, spline_transforms

pyro.set_rng_seed(0)


def simulate(rows):
    x = 6 * torch.rand(rows, 1) - 3
    side = torch.where(torch.rand(rows, 1) < 0.5, 1.0, -1.0)
    return x, side * (1 + 0.3 * x) + (0.1 + 0.05 * (x + 3)) * torch.randn(rows, 1)


x, y = simulate(rows=4000)
flow = Flow(StandardNormal(1), spline_transforms(1, context_shape=1))
history = fit(flow, (y, x), steps=3000, seed=0, progress=False)

# %% [markdown]
# On new rows, beside the density that they were drawn from, in nats a row:

# %%
new_x, new_y = simulate(rows=2000)
with torch.no_grad():
    learned = flow(new_y, new_x)


def true_log_density(y, x):
    noise = torch.distributions.Normal(0.0, 0.1 + 0.05 * (x + 3))
    upper, lower = noise.log_prob(y - (1 + 0.3 * x)), noise.log_prob(y + (1 + 0.3 * x))
    both = torch.stack([upper, lower])
    return (both.logsumexp(0) - torch.tensor(2.0).log()).squeeze(-1)


loss = true_log_density(new_y, new_x) - learned
error = loss.std() / len(loss) ** 0.5
print(f"flow {learned.mean():.3f}, lost to the truth {loss.mean():.3f} +- {error:.3f}")

# %% [markdown]
# Predictive intervals are quantiles of samples given x. An interval of 90 % should cover nine of ten new rows. The
# error of a share near 0.9 of 2,000 rows is 0.007.

# %%
draws = flow.sample((500,), context=new_x)  # (500, 2000, 1)
low, high = draws.quantile(torch.tensor([0.05, 0.95]), 0)
print(f"covered {((new_y > low) & (new_y < high)).float().mean():.3f}")

# %% [markdown]
# With two modes an interval between quantiles also covers the gap between them. The smallest region with a
# probability of 90 % is where the density is above a level; the level is the quantile of 10 % of the density at
# samples:

# %%
with torch.no_grad():
    at_draws = flow(draws[:200], new_x)  # (200, 2000)
    level = at_draws.quantile(0.1, 0)
print(f"covered {(flow(new_y, new_x) > level).float().mean():.3f}")

# %%
axis = torch.linspace(-3, 3, 150)
grid = torch.cartesian_prod(axis, axis)
with torch.no_grad():
    density = flow(grid[:, 1:], grid[:, :1]).exp().reshape(150, 150)
figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
axes.pcolormesh(axis.numpy(), axis.numpy(), density.T.numpy(), cmap="Blues")
axes.scatter(x[:300], y[:300], s=3, color="tab:orange")
axes.set(xlabel="x", ylabel="y", title="p(y | x), and 300 of the rows")

# %% [markdown]
# Next: [condition on anything](../howto/condition.md) has classes, series and images as the context;
# [choose a flow](../howto/choose.md) what to change, and when.
