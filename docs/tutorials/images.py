# %% [markdown]
# # Images: bits, samples, and scores that mislead
#
# The 1,797 digits of scikit-learn have 8 x 8 pixels of 17 grey levels, 0 to 16. A flow is a density of real numbers, so
# each pixel gets noise from [0, 1) and is divided by 17. The mean of log p over the noise is then a bound on the
# log-probability of the integers (Theis, van den Oord, Bethge 2016, "A note on the evaluation of generative models").
# `ImageFlow` does this.

# %%
import math
from functools import partial

import pyro
import torch
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits

from pyro_realnvp import (
    Flow,
    ImageFlow,
    Logit,
    ResNet,
    StandardNormal,
    bits_per_dim,
    fit,
    load,
    realnvp_transforms,
    save,
)

pyro.set_rng_seed(0)
images = torch.tensor(load_digits().images, dtype=torch.uint8)[:, None]
order = torch.randperm(len(images))
train, test = images[order[:1400]], images[order[1400:]]

# %% [markdown]
# The architecture is that of section 3.6 of Dinh, Sohl-Dickstein, Bengio (2017), "Density estimation using Real NVP":
# couplings with checkerboard masks, half of the variables factored out, more couplings at half the size. The last layer
# carries the real line to the unit cube.

# %%
shape = (1, 8, 8)
net = partial(ResNet, hidden=32, blocks=1, dropout=0.2)
model = ImageFlow(Flow(StandardNormal(shape), [*realnvp_transforms(shape, net=net, packed=True), Logit(0.005).inv]), 17)
model.initialize(train[:256])
history = fit(model, train, steps=500, batch_size=64, learning_rate=2e-3, seed=0, progress=False)
print("{:.2f} +- {:.2f} bits a pixel".format(*bits_per_dim(model, test)))
counts = torch.stack([(train == level).sum(0) for level in torch.arange(17)]) + 1.0
independent = -(counts / counts.sum(0)).log2().gather(0, test.long()).mean()
print(f"{independent:.2f} by the histogram of each pixel, {math.log2(17):.2f} by no model at all")

# %% [markdown]
# A file has the weights and how the model was built; `load` needs nothing else. The loaded model draws new digits.

# %%
save(model, "digits.safetensors")
model = load("digits.safetensors")


def show(axes, images, title):
    tiles = torch.nn.functional.pad(images, (1, 1, 1, 1)).reshape(8, 8, 10, 10)
    axes.imshow(tiles.permute(0, 2, 1, 3).reshape(80, 80).numpy(), cmap="gray_r", vmin=0, vmax=16)
    axes.set(title=title, xticks=[], yticks=[])


figure, axes = plt.subplots(1, 3, figsize=(9, 3.3), layout="constrained")
show(axes[0], test[:64], "held-out digits")
show(axes[1], model.sample((64,)), "samples")
with torch.no_grad():
    z1, z2, z3, z4 = model.flow.transforms.inv((test[:4] + 0.5) / 17)
    angle = torch.arange(8) * math.pi / 4
    a, b = (angle.reshape(size) for size in ((8, 1, 1, 1, 1), (1, 8, 1, 1, 1)))
    z = a.cos() * (b.cos() * z1 + b.sin() * z2) + a.sin() * (b.cos() * z3 + b.sin() * z4)
    show(axes[2], 17 * model.flow.transforms(z.flatten(0, 1)), "between four digits")

# %% [markdown]
# The third picture is the manifold of equation 19 there: four held-out digits, carried to their latents, mixed, and
# carried back.
#
# Does log p find images that are no digits? Here are scores in bits a pixel, where a low one is a likely image, and how
# often a held-out digit is more likely than such an image:

# %%
strangers = {
    "noise": torch.randint(0, 17, (200, 1, 8, 8)),
    "pixels in random order": test[:200].flatten(1)[:, torch.randperm(64)].reshape(-1, 1, 8, 8),
    "upside down": test[:200].flip(-2),
    "all pixels 8": torch.full((200, 1, 8, 8), 8),
    "all pixels 0": torch.full((200, 1, 8, 8), 0),
}
with torch.no_grad():
    digits = -model(test) / (64 * math.log(2))
    print(f"{'held-out digits':22} {digits.mean():6.2f}")
    for name, these in strangers.items():
        score = -model(these) / (64 * math.log(2))
        print(f"{name:22} {score.mean():6.2f}, more likely {(digits[:, None] < score).float().mean():.2f}")

# %% [markdown]
# Noise is found, but an empty image is more likely than nearly every digit, though none is empty, and digits upside
# down are not far behind: each pixel is as predictable as in a digit, or more so (Nalisnick, Matsukawa, Teh, Gorur,
# Lakshminarayanan 2019, "Do deep generative models know what they don't know?"). As a detector take what does not
# depend on that, such as the ratio to a second density of plainer images (Ren et al. 2019, "Likelihood ratios for
# out-of-distribution detection"), or a test of whether log p is too high as well as too low (Nalisnick et al. 2019,
# "Detecting out-of-distribution inputs to deep generative models using typicality").
