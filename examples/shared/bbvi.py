"""Defines nine example models of Stan as Pyro models, on which black-box variational inference has been compared.

Agrawal, Sheldon, Domke, "Advances in black-box VI: normalizing flows, importance weighting, and optimization" (NeurIPS
2020), publish ELBOs of the densities that Stan computes, without the constants that its ``~`` drops. Here every prior
and likelihood is normalised, unless it is flat, so that

    log p_Pyro(sites, data) = log p_Stan(parameters, data) + dropped_constant,
    ELBO_Stan = ELBO_Pyro - dropped_constant,

at all values of the parameters; the Jacobians of the maps from unconstrained parameters are in both ELBOs. The data are
read from ``ROOT/<name>.data.R``, of https://github.com/stan-dev/example-models.

No model has a plate: its sites are vectors, and the particles are the one batch dimension, in front of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.nn.functional import pad, softplus

from shared.options import fail
from shared.rdump import read_rdump

Data = Mapping[str, Tensor]

LOG_SQRT_2_PI = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class Program:
    """A model, and what Stan leaves out of its density.

    Attributes:
        model: without arguments; its sites have the names and shapes of the parameters of the Stan program.
        dropped_constant: log p_Pyro - log p_Stan, in nats.
    """

    model: Callable[[], None]
    dropped_constant: float


def load(name: str, root: Path) -> Program:
    """Returns the model called ``name`` with the data that the folder ``root`` has for it."""
    if name not in PROGRAMS:
        fail(f"There is no model {name}; the choices are {', '.join(PROGRAMS)}.")
    file = root / f"{name}.data.R"
    if not file.is_file():
        fail(f"There is no file {file}.")
    return PROGRAMS[name](read_rdump(file))


def normals(count: int, scale: float = 1.0) -> float:
    """Returns the constant of so many normal densities; of one whose scale is a parameter, Stan keeps the scale."""
    return -count * (math.log(scale) + LOG_SQRT_2_PI)


def uniforms(count: int, width: float) -> float:
    """Returns the constant of so many densities that are uniform on an interval, which Stan takes for 1."""
    return -count * math.log(width)


def normal(name: str, size: int, scale: float = 1.0) -> Tensor:
    value: Tensor = pyro.sample(name, dist.Normal(torch.zeros(size), scale).to_event(1))
    return value


def uniform(name: str, high: float, *shape: int) -> Tensor:
    base = dist.Uniform(torch.zeros(shape), high)
    value: Tensor = pyro.sample(name, base.to_event(len(shape)))
    return value


def flat(name: str, support: constraints.Constraint, *shape: int) -> Tensor:
    value: Tensor = pyro.sample(name, dist.ImproperUniform(support, (), shape))
    return value


def floats(value: Tensor) -> Tensor:
    return value.to(torch.get_default_dtype())


def indices(value: Tensor) -> Tensor:
    return value.long() - 1  # those of Stan start at 1


def observe_trials(name: str, logits: Tensor, successes: Tensor, trials: Tensor) -> None:
    """Adds log-densities of Bernoulli trials (\\*batch, n) that share their logit with others, by their numbers."""
    pyro.factor(name, (successes * logits - trials * softplus(logits)).sum(-1))


def observe_captures(name: str, omega: Tensor, log_p: Tensor, seen: Tensor) -> None:
    """Adds log-densities of animals that exist with probability omega, and that only exist for sure if once seen.

    Args:
        omega: (\\*batch).
        log_p: (\\*batch, n), of the captures of every animal, given that it exists.
        seen: (n), whether there was any capture.
    """
    exists = omega[..., None].log() + log_p
    either = torch.logaddexp(exists, torch.log1p(-omega[..., None]))
    pyro.factor(name, torch.where(seen, exists, either).sum(-1))


def dogs(data: Data) -> Program:
    """Models how dogs learn to avoid a shock, by a logistic regression on what has happened to each before."""
    y = floats(data["y"])
    shocks = pad(y.cumsum(1)[:, :-1], (1, 0))
    avoided = torch.arange(y.shape[1]) - shocks
    x = torch.stack([torch.ones_like(y), avoided, shocks], -1).reshape(-1, 3)

    def model() -> None:
        beta = normal("beta", 3, 100.0)
        pyro.sample("y", dist.Bernoulli(logits=beta @ x.T).to_event(1), obs=y.flatten())

    return Program(model, normals(3, 100.0))


def wells_dist(data: Data) -> Program:
    """Models which households switch to another well, by a logistic regression on its distance in metres."""
    y, distance = floats(data["switched"]), floats(data["dist"])

    def model() -> None:
        beta = flat("beta", constraints.real, 2)
        logits = beta[..., :1] + beta[..., 1:] * distance
        pyro.sample("switched", dist.Bernoulli(logits=logits).to_event(1), obs=y)

    return Program(model, 0.0)


def capture(data: Data) -> Program:
    """Models the size of a population from how often animals were captured, which are unequally shy (``Mh``)."""
    y, occasions = floats(data["y"]), float(data["T"])
    coefficient = torch.lgamma(torch.tensor(occasions + 1)) - torch.lgamma(y + 1) - torch.lgamma(occasions - y + 1)

    def model() -> None:
        omega = uniform("omega", 1.0)
        mean_p = uniform("mean_p", 1.0)
        sigma = uniform("sigma", 5.0)
        eps = mean_p.logit()[..., None] + sigma[..., None] * normal("eps_raw", len(y))
        observe_captures("y", omega, coefficient + y * eps - occasions * softplus(eps), y > 0)

    return Program(model, uniforms(1, 5.0) + normals(len(y)))


def capture_by_time(data: Data) -> Program:
    """Models the size of a population as ``Mh`` does, with another probability at every occasion (``Mth``)."""
    y = floats(data["y"])
    animals, occasions = y.shape

    def model() -> None:
        omega = uniform("omega", 1.0)
        mean_p = uniform("mean_p", 1.0, occasions)
        sigma = uniform("sigma", 5.0)
        eps = sigma[..., None] * normal("eps_raw", animals)
        logits = mean_p.logit()[..., None, :] + eps[..., None]
        observe_captures("y", omega, (y * logits - softplus(logits)).sum(-1), y.sum(-1) > 0)

    return Program(model, uniforms(1, 5.0) + normals(animals))


def electric_1c_chr(data: Data) -> Program:
    """Models what a television show does to reading, in pairs of classes of four grades."""
    y, treatment, pre_test = floats(data["y"]), floats(data["treatment"]), floats(data["pre_test"])
    grade, pair, grade_of_pair = indices(data["grade"]), indices(data["pair"]), indices(data["grade_pair"])
    pairs, grades, grades_of_pairs = int(data["n_pair"]), int(data["n_grade"]), int(data["n_grade_pair"])

    def model() -> None:
        eta_a = normal("eta_a", pairs)
        mu_a = normal("mu_a", grades_of_pairs)
        sigma_a = uniform("sigma_a", 100.0, grades_of_pairs)
        sigma_y = uniform("sigma_y", 100.0, grades)
        b, c = normal("b", grades, 100.0), normal("c", grades, 100.0)
        a = 50 * mu_a[..., grade_of_pair] + sigma_a[..., grade_of_pair] * eta_a
        mean = a[..., pair] + b[..., grade] * treatment + c[..., grade] * pre_test
        pyro.sample("y", dist.Normal(mean, sigma_y[..., grade]).to_event(1), obs=y)

    priors = normals(pairs + grades_of_pairs) + normals(2 * grades, 100.0) + uniforms(grades_of_pairs + grades, 100.0)
    return Program(model, priors + normals(len(y)))


def hepatitis(data: Data) -> Program:
    """Models how the antibodies of children decline after a vaccination, on a line for each."""
    y, time, child = floats(data["Yvec1"]), floats(data["tvec1"]) - 6.5, indices(data["idxn1"])
    baseline = floats(data["y0"] - data["y0"].mean())
    children, shape = len(baseline), 0.001

    def variance(name: str) -> Tensor:
        # An inverse gamma site would begin at its median, which no floating-point number can hold.
        value = flat(name, constraints.positive)
        pyro.factor(f"{name}_prior", dist.InverseGamma(shape, shape).log_prob(value))
        return value[..., None]

    def model() -> None:
        sigma_y, sigma_alpha, sigma_beta = (variance(f"sigmasq_{name}").sqrt() for name in ("y", "alpha", "beta"))
        gamma, alpha0, beta0 = (
            pyro.sample(name, dist.Normal(0.0, 1000.0))[..., None] for name in ("gamma", "alpha0", "beta0")
        )
        alpha = pyro.sample("alpha", dist.Normal(alpha0.expand(*alpha0.shape[:-1], children), sigma_alpha).to_event(1))
        beta = pyro.sample("beta", dist.Normal(beta0.expand(*beta0.shape[:-1], children), sigma_beta).to_event(1))
        mean = alpha[..., child] + beta[..., child] * time + gamma * baseline[child]
        pyro.sample("Yvec1", dist.Normal(mean, sigma_y).to_event(1), obs=y)

    inverse_gammas = 3 * (shape * math.log(shape) - math.lgamma(shape))
    return Program(model, normals(len(y) + 2 * children) + inverse_gammas + normals(3, 1000.0))


def radon_vary_si_chr(data: Data) -> Program:
    """Models radon in houses by a line for every county: on x, which tells a basement from a first floor."""
    x, y, county = floats(data["x"]), floats(data["y"]), indices(data["county"])
    counties = 85

    def model() -> None:
        eta1, eta2 = normal("eta1", counties), normal("eta2", counties)
        mu_a1, mu_a2 = (pyro.sample(name, dist.Normal(0.0, 1.0))[..., None] for name in ("mu_a1", "mu_a2"))
        sigma_a1, sigma_a2, sigma_y = (uniform(f"sigma_{name}", 100.0)[..., None] for name in ("a1", "a2", "y"))
        a1, a2 = mu_a1 + sigma_a1 * eta1, 0.1 * mu_a2 + sigma_a2 * eta2
        pyro.sample("y", dist.Normal(a1[..., county] + a2[..., county] * x, sigma_y).to_event(1), obs=y)

    return Program(model, normals(2 * counties + 2) + uniforms(3, 100.0) + normals(len(y)))


def election88(data: Data) -> Program:
    """Models votes by race, sex and state; voters who share these share a probability, and are counted together."""
    states, y = int(data["n_state"]), data["y"].long()
    voters = torch.stack([data["black"], data["female"], data["state"]], -1)
    cells, cell = voters.unique(dim=0, return_inverse=True)
    trials = floats(torch.bincount(cell, minlength=len(cells)))
    votes = floats(torch.bincount(cell[y == 1], minlength=len(cells)))
    black, female, state = floats(cells[:, 0]), floats(cells[:, 1]), indices(cells[:, 2])

    def model() -> None:
        mu_a = pyro.sample("mu_a", dist.Normal(0.0, 1.0))[..., None]
        sigma_a = uniform("sigma_a", 100.0)[..., None]
        a = pyro.sample("a", dist.Normal(mu_a.expand(*mu_a.shape[:-1], states), sigma_a).to_event(1))
        b = normal("b", 2, 100.0)
        observe_trials("y", b[..., :1] * black + b[..., 1:] * female + a[..., state], votes, trials)

    return Program(model, normals(1 + states) + uniforms(1, 100.0) + normals(2, 100.0))


def irt(data: Data) -> Program:
    """Models which students answer which questions: the Rasch model, on the table of students by questions."""
    students, questions, y = int(data["J"]), int(data["K"]), data["y"].long()
    cell = questions * indices(data["jj"]) + indices(data["kk"])
    table = (students, questions)
    trials = floats(torch.bincount(cell, minlength=students * questions)).reshape(table)
    right = floats(torch.bincount(cell[y == 1], minlength=students * questions)).reshape(table)

    def model() -> None:
        delta = pyro.sample("delta", dist.Normal(0.75, 1.0))[..., None, None]
        alpha, beta = normal("alpha", students), normal("beta", questions)
        logits = alpha[..., None] - beta[..., None, :] + delta
        observe_trials("y", logits.flatten(-2), right.flatten(), trials.flatten())

    return Program(model, normals(students + questions + 1))


PROGRAMS: dict[str, Callable[[Data], Program]] = {
    "dogs": dogs,
    "wells_dist": wells_dist,
    "Mh": capture,
    "Mth": capture_by_time,
    "electric_1c_chr": electric_1c_chr,
    "hepatitis": hepatitis,
    "radon_vary_si_chr": radon_vary_si_chr,
    "election88": election88,
    "irt": irt,
}
