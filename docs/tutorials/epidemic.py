# %% [markdown]
# # A simulator, and whether its posterior is calibrated
#
# A simulator makes data x from parameters theta, and nobody need write down p(x | theta). A conditional flow that is
# fitted to simulated pairs learns p(theta | x) (Papamakarios, Murray 2016, "Fast epsilon-free inference of simulation
# models with Bayesian conditional density estimation"). Can it be trusted? The simulator here is an epidemic of which
# everything is counted, so that the exact posterior is at hand to judge the judges.
#
# Of 1,000 people 10 are infected. Every day each susceptible one is infected with probability 1 - exp(-beta I / 1000),
# and each infected one recovers with probability 1 - exp(-gamma). x has the two counts of each of 20 days; theta has
# the logarithms of beta and gamma, standardised, so that the prior is N(0, I).

# %%
import pyro
import pyro.distributions as dist
import torch
from matplotlib import pyplot as plt
from scipy.stats import chisquare

from pyro_realnvp import Flow, StandardNormal, fit, realnvp_transforms, spline_transforms

pyro.set_rng_seed(0)
PEOPLE, FIRST, DAYS = 1000, 10, 20


def rates(theta):
    return (torch.tensor([-0.7, -1.6]) + 0.5 * theta).exp().unbind(-1)


def simulate(rows):
    theta = torch.randn(rows, 2)
    beta, gamma = rates(theta)
    susceptible, infected = torch.full((rows,), PEOPLE - FIRST), torch.full((rows,), FIRST)
    counts = []
    for _ in range(DAYS):
        new = torch.binomial(susceptible.float(), 1 - (-beta * infected / PEOPLE).exp()).long()
        recovered = torch.binomial(infected.float(), 1 - (-gamma).exp()).long()
        susceptible, infected = susceptible - new, infected + new - recovered
        counts.append(torch.stack([new, recovered], -1))
    return theta, torch.stack(counts, 1).float()  # (rows, 2) and (rows, 20, 2)


# %% [markdown]
# The exact posterior, for the judgement alone: the counts are binomial given theta, and a grid sums up the evidence.


# %%
def before(x):  # the susceptible and the infected at the start of every day
    new, recovered = (x.cumsum(1) - x).unbind(-1)
    return PEOPLE - FIRST - new, FIRST + new - recovered


def log_joint(theta, x):  # of either parameter, (..., 2): they are independent given x
    beta, gamma = rates(theta)
    susceptible, infected = before(x)
    infections = dist.Binomial(susceptible, 1 - (-beta[..., None] * infected / PEOPLE).exp()).log_prob(x[..., 0])
    recoveries = dist.Binomial(infected, 1 - (-gamma[..., None]).exp()).log_prob(x[..., 1])
    return torch.stack([infections.sum(-1), recoveries.sum(-1)], -1) + dist.Normal(0.0, 1.0).log_prob(theta)


grid = torch.linspace(-5, 5, 501)
new_theta, new_x = simulate(rows=500)
evidence = (log_joint(grid[:, None, None].expand(-1, 1, 2), new_x)).logsumexp(0) + (grid[1] - grid[0]).log()
exact = (log_joint(new_theta, new_x) - evidence).sum(-1)

# %% [markdown]
# Four estimates. What is known of the simulator may go into a summary of x: here the infections for every meeting of a
# susceptible with an infected one, the recoveries for every infected one, and the numbers that these are made of.


# %%
def series(x):
    return (x.log1p() - 2.0).flatten(1)


def summary(x):
    susceptible, infected = before(x)
    meetings, days = (susceptible * infected / PEOPLE).sum(-1), infected.sum(-1)
    totals = [(x[..., 0].sum(-1) + 0.5).log(), (x[..., 1].sum(-1) + 0.5).log(), meetings.log(), days.log()]
    return torch.stack([totals[0] - totals[2], totals[1] - totals[3], *totals[2:]], -1) - torch.tensor([-1, -2, 5, 5])


few, many = simulate(rows=500), simulate(rows=20000)
estimates = {}
for name, build, pairs, features, size in [
    ("few", realnvp_transforms, few, series, 2 * DAYS),
    ("many", realnvp_transforms, many, series, 2 * DAYS),
    ("few, summary", realnvp_transforms, few, summary, 4),
    ("many, summary, splines", spline_transforms, many, summary, 4),
]:
    flow = Flow(StandardNormal(2), build(2, context_shape=size))
    fit(flow, (pairs[0], features(pairs[1])), steps=1000, seed=0, progress=False)
    estimates[name] = (flow, features)

# %% [markdown]
# Simulation-based calibration (Talts et al. 2018, "Validating Bayesian inference algorithms with simulation-based
# calibration") needs no exact posterior: if theta comes from the prior and x from the simulator, the rank of theta
# among draws given x is uniform. So for each parameter, and for the density of the estimate itself, whose rank says how
# often the regions of highest density cover theta. A small p-value says that ranks are not uniform. Beside it the KL
# divergence to the exact posterior, in nats. The prior is an estimate as well, which takes no notice of x:


# %%
def judge(name, draws, log_density, at_theta):
    ranks = {f"theta_{i}": (draws[..., i] < new_theta[:, i]).sum(0) for i in (0, 1)}
    ranks["density"] = (log_density < at_theta).sum(0)
    p = {part: chisquare(torch.histc(rank.float(), 10, 0, 100).numpy()).pvalue for part, rank in ranks.items()}
    covered, lost = (ranks["density"] >= 10).float().mean(), exact - at_theta
    values = "  ".join(f"p({part}) {value:.3f}" for part, value in p.items())
    print(
        f"{name:22}  KL {lost.mean():.2f} +- {lost.std() / len(lost) ** 0.5:.2f}  {values}  90 % region {covered:.3f}"
    )
    return ranks["density"]


ranks = {}
for name, (flow, features) in estimates.items():
    context = features(new_x)
    draws = flow.sample((99,), context=context)
    with torch.no_grad():
        ranks[name] = judge(name, draws, flow(draws, context), flow(new_theta, context))
prior = StandardNormal(2)()
draws = prior.sample((99, len(new_theta)))
ranks["prior"] = judge("prior", draws, prior.log_prob(draws), prior.log_prob(new_theta))

# %% [markdown]
# 500 series of 40 numbers are too few to learn from: the estimate is too sure of itself, its regions cover theta too
# rarely, and the ranks say so. What to do: give the flow a summary of what is known of the simulator, which is worth
# the most here, even to 500 simulations; simulate more; and take splines, which bend more than affine maps.
#
# More simulations alone make the estimate calibrated, but not sharp, and ranks cannot tell: the prior, which has
# learned nothing, passes too. So read them beside the mean of log q(theta | x) on new pairs. It needs no exact
# posterior, and differs between two estimates by as much as their KL divergences do.
#
# In the pictures are draws for one x of medium difficulty, and contours of the exact posterior, at 5 % and at half of
# its highest density.

# %%
figure, axes = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
for name in ("few", "many, summary, splines", "prior"):
    axes[0].hist(ranks[name].numpy(), 20, range=(0, 100), histtype="step", label=name)
axes[0].set(title="ranks of the density", xlabel="rank of theta among 99 draws")
axes[0].legend(fontsize="small", loc="upper right")
one = int((exact - exact.median()).abs().argmin())
sides = torch.linspace(-4, 4, 801)
p = (log_joint(sides[:, None].expand(-1, 2), new_x[one : one + 1]) - evidence[one]).exp()
middle = (p * sides[:, None]).sum(0) / p.sum(0)
wide = 8 * ((p * (sides[:, None] - middle) ** 2).sum(0) / p.sum(0)).sqrt()
for axis, name in zip(axes[1:], ("few", "many, summary, splines"), strict=True):
    flow, features = estimates[name]
    draws = flow.sample((1000,), context=features(new_x[one : one + 1])[0])
    axis.scatter(*draws.T, s=2, color="tab:orange")
    density = p[:, None, 1] * p[None, :, 0]
    axis.contour(sides, sides, density, levels=(density.max() * torch.tensor([0.05, 0.5])).tolist(), colors="black")
    axis.set(xlabel="log beta", ylabel="log gamma", title=name)
    low, high = (middle - wide).tolist(), (middle + wide).tolist()
    axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
