# %% [markdown]
# # Your own bijection, checked by the laws
#
# A layer is a `Bijection` with two methods, one for each direction, that return a value and its log-determinant. Here
# `y = sinh(a x) / a` for every coordinate, with one learned number a: near 0 it is the identity, and it stretches the
# tails.

# %%
import pyro
import torch
from matplotlib import pyplot as plt
from torch import nn

from pyro_realnvp import Bijection, Flow, StandardNormal, fit, load, realnvp_transforms, save
from pyro_realnvp.testing import check_bijection


class Sinh(Bijection):
    def __init__(self, size):
        super().__init__((size,))
        self.log_a = nn.Parameter(torch.zeros(()))

    def forward_and_log_det(self, x, context=None):
        a = self.log_a.exp()
        return (a * x).sinh() / a, (a * x).cosh().log().sum(-1)

    def inverse_and_log_det(self, y, context=None):
        a = self.log_a.exp()
        x = (a * y).asinh() / a
        return x, -(a * x).cosh().log().sum(-1)


check_bijection(Sinh(3))

# %% [markdown]
# No output: the layer obeys every law. A mistake is named, with its size. Here the sign of the log-determinant is
# wrong in one direction:


# %%
class Wrong(Sinh):
    def inverse_and_log_det(self, y, context=None):
        x, log_det = super().inverse_and_log_det(y)
        return x, -log_det


try:
    check_bijection(Wrong(3))
except AssertionError as error:
    print(error)

# %% [markdown]
# Everything else follows from the two methods: the inverse, Pyro's `log_abs_det_jacobian`, caching, flows. Data with
# heavier tails than a Gaussian, by a flow of which `Sinh` is the last layer before the data:

# %%
pyro.set_rng_seed(0)
x = torch.distributions.StudentT(3.0).sample((3000, 2))
x = x @ torch.tensor([[1.0, 0.5], [0.0, 1.0]])
x = x / x.std(0)
plain = Flow(StandardNormal(2), realnvp_transforms(2))
with_tails = Flow(StandardNormal(2), [*realnvp_transforms(2), Sinh(2)])
for name, flow in {"couplings": plain, "couplings and sinh": with_tails}.items():
    history = fit(flow, x, steps=500, seed=0, progress=False)
    print(f"{name:20} {-history.best:.3f} nats on the held-out rows")

# %% [markdown]
# One seed, and a small difference. The package's own way to heavy tails is a
# [`StudentTBase`][pyro_realnvp.StudentTBase], which learns how heavy they are.
#
# [`save`][pyro_realnvp.save] describes flows of the package's own layers by itself. For yours it takes the arguments of
# a function that builds the flow:


# %%
def build(dim):
    return Flow(StandardNormal(dim), [*realnvp_transforms(dim), Sinh(dim)])


save(with_tails, "tails.safetensors", build={"dim": 2})
loaded = load("tails.safetensors", build=build)
print(torch.equal(loaded(x), with_tails(x)))

# %%
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
samples = loaded.sample((30000,))[:, 0]
bins = {"bins": 80, "range": (-6, 6), "density": True, "log": True}
axes.hist(x[:, 0].numpy(), **bins, alpha=0.4, label="data")
axes.hist(samples.numpy(), **bins, histtype="step", label="samples")
axes.set(xlabel="first coordinate", title="tails of the data and of samples")
axes.legend()

# %% [markdown]
# Next: [architecture](../architecture.md) says how a layer becomes part of the package, and
# [concepts](../concepts.md#the-laws) what the laws are.
