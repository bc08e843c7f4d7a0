# %% [markdown]
# # A density of a table
#
# 178 wines with 13 measurements each, from scikit-learn. A flow learns their density without seeing which of three
# cultivars a wine is from; held-out wines say whether it has learned something, beside a Gaussian.

# %%
import pyro
import torch
from matplotlib import pyplot as plt
from sklearn.datasets import load_wine

from pyro_realnvp import Flow, StandardNormal, fit, realnvp_transforms

pyro.set_rng_seed(0)
x = torch.tensor(load_wine().data, dtype=torch.float32)
order = torch.randperm(len(x))
train, test = x[order[:142]], x[order[142:]]
mean, sd = train.mean(0), train.std(0)
train, test = (train - mean) / sd, (test - mean) / sd  # by the training rows alone

# %% [markdown]
# Without `steps`, [`fit`][pyro_realnvp.fit] holds out a tenth of the rows, adds noise to the others, halves the noise
# as long as that helps, and ends by itself. The flow has the best averaged state afterwards.

# %%
flow = Flow(StandardNormal(13), realnvp_transforms(13))
history = fit(flow, train, seed=0, progress=False)
print(history.ended_by, int(history.step[-1]), "steps")
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
history.plot(axes).set_title("course of the training")

# %% [markdown]
# The held-out wines, in nats a row, beside the Gaussian with the mean and the covariance of the training rows:

# %%
with torch.no_grad():
    score = flow(test)
gaussian = torch.distributions.MultivariateNormal(train.mean(0), train.T.cov())
print(f"flow     {score.mean():6.2f} +- {score.std() / len(score) ** 0.5:.2f}")
print(f"Gaussian {gaussian.log_prob(test).mean():6.2f}")

# %% [markdown]
# The difference of the two, row by row, has a smaller error than either, as both find the same rows hard:

# %%
gain = score - gaussian.log_prob(test)
print(f"gain     {gain.mean():6.2f} +- {gain.std() / len(gain) ** 0.5:.2f}")

# %% [markdown]
# A density scores anomalies. Here every held-out wine gets the flavanoids of another one: each number is ordinary by
# itself, and the combination is not. The share of pairs in which the true wine has the higher density is the area under
# the ROC curve.

# %%
mixed = test.clone()
mixed[:, 6] = test.roll(7, 0)[:, 6]  # column 6 has the flavanoids
with torch.no_grad():
    wrong = flow(mixed)
print(f"AUC {(score[:, None] > wrong).float().mean():.2f}")

# %% [markdown]
# Samples are new wines. In two of the columns, in their own units:

# %%
samples = flow.sample((500,)) * sd + mean
figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
axes.scatter(samples[:, 6], samples[:, 9], s=4, color="tab:orange", label="samples")
axes.scatter(x[:, 6], x[:, 9], s=8, color="tab:blue", label="wines")
axes.set_title("wines, and samples of the flow")
axes.set(xlabel="flavanoids", ylabel="colour intensity")
axes.legend()

# %% [markdown]
# Next: [choose a flow, its size and its rate](../howto/choose.md) for a table of your own,
# [p(y | x) with two modes](conditional.md) for densities given something, and
# [save, load, deploy](../howto/files.md) to keep the flow.
