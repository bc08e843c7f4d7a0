"""Defines six posteriors of posteriordb as Pyro models, and reads the draws that they are judged by.

Magnusson, Buerkner, Vehtari, "posteriordb: a set of posteriors for Bayesian inference" (2021),
https://github.com/stan-dev/posteriordb. Eight schools is complete here: its numbers are eight pairs, and its exact
posterior is drawn on a grid. The others read ``ROOT/<name>/data.json`` and ``ROOT/<name>/reference_draws.json.zip``.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from shared.options import fail

Data = Mapping[str, Any]
Draws = dict[str, Tensor]


@dataclass(frozen=True)
class Posterior:
    """A model, reference draws of its scalars, and the scalars as functions of its sites.

    Attributes:
        name: in posteriordb.
        model: without arguments; its batch dimensions are declared by plates.
        scalars: maps sites (S, ...) to scalars (S,) by the names of the reference.
        reference: draws of every scalar.
    """

    name: str
    model: Callable[[], None]
    scalars: Callable[[Draws], Draws]
    reference: Draws


def load(name: str, root: Path | None = None) -> Posterior:
    """Returns the posterior called ``name``; all but eight schools need the folder of a posteriordb."""
    if name not in POSTERIORS:
        fail(f"There is no posterior {name}; the choices are {', '.join(POSTERIORS)}.")
    build = POSTERIORS[name]
    if root is None:
        if build is not eight_schools:
            fail(f"The posterior {name} needs --root, a folder with {name}/data.json and its reference_draws.json.zip.")
        model, scalars = eight_schools(EIGHT_SCHOOLS)
        return Posterior(name, model, scalars, eight_schools_draws(10_000))
    folder = root / name
    for file in (folder / "data.json", folder / "reference_draws.json.zip"):
        if not file.is_file():
            fail(f"There is no file {file}.")
    model, scalars = build(json.loads((folder / "data.json").read_text()))
    with zipfile.ZipFile(folder / "reference_draws.json.zip") as archive:
        chains = json.loads(archive.read(archive.namelist()[0]))
    reference = {key: torch.tensor([value for chain in chains for value in chain[key]]) for key in chains[0]}
    return Posterior(name, model, scalars, reference)


def flat(name: str, start: dist.Distribution) -> Tensor:
    """Samples a site with the improper uniform prior; ``start`` gives its support, and where a guide may begin."""
    value: Tensor = pyro.sample(name, start)
    pyro.factor(f"{name}_flat", -start.log_prob(value))
    return value


def vector(value: Any) -> Tensor:
    return torch.tensor(value, dtype=torch.get_default_dtype())


def named(name: str, value: Tensor) -> Draws:
    """Splits a vector site (S, ..., n) into its elements, under the names of Stan."""
    return {f"{name}[{index + 1}]": value[..., index].flatten() for index in range(value.shape[-1])}


# ------------------------------------------------------------------------------------------------------ eight schools

EIGHT_SCHOOLS: Data = {"y": [28, 8, -3, 7, -1, 1, 18, 12], "sigma": [15, 10, 16, 11, 9, 11, 10, 18]}


def eight_schools(data: Data) -> tuple[Callable[[], None], Callable[[Draws], Draws]]:
    """Models the effects of coaching in eight schools, not centred: theta = mu + tau theta_trans. Rubin (1981)."""
    y, sigma = vector(data["y"]), vector(data["sigma"])

    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("schools", len(y)):
            theta_trans = pyro.sample("theta_trans", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(mu + tau * theta_trans, sigma), obs=y)

    def scalars(sites: Draws) -> Draws:
        mu, tau = sites["mu"].reshape(-1, 1), sites["tau"].reshape(-1, 1)
        theta = mu + tau * sites["theta_trans"].reshape(len(mu), -1)
        return named("theta", theta) | {"mu": mu[:, 0], "tau": tau[:, 0]}

    return model, scalars


def eight_schools_draws(count: int) -> Draws:
    """Draws exactly: (mu, log tau) from a fine grid of their marginal posterior, then theta, which is Gaussian."""
    y, sigma = (torch.tensor(EIGHT_SCHOOLS[key], dtype=torch.float64) for key in ("y", "sigma"))
    mu = torch.linspace(-25, 35, 1201, dtype=torch.float64)[:, None]
    log_tau = torch.linspace(-12, 7, 1901, dtype=torch.float64)
    tau = log_tau.exp()
    log_p = dist.Normal(0.0, 5.0).log_prob(mu) + dist.HalfCauchy(5.0).log_prob(tau) + log_tau
    for effect, error in zip(y, sigma, strict=True):
        log_p = log_p + dist.Normal(mu, (tau**2 + error**2).sqrt()).log_prob(effect)
    index = torch.multinomial((log_p - log_p.max()).exp().flatten(), count, replacement=True)
    mu, tau = mu[index // len(tau)], tau[index % len(tau), None]
    weight = tau**2 / (tau**2 + sigma**2)
    theta = mu + weight * (y - mu) + (weight * sigma**2).sqrt() * torch.randn(count, len(y), dtype=torch.float64)
    return named("theta", theta) | {"mu": mu[:, 0], "tau": tau[:, 0]}


# ------------------------------------------------------------------------------------------------------- the others


def blr(data: Data) -> tuple[Callable[[], None], Callable[[Draws], Draws]]:
    """Models a linear regression on five predictors, with hardly any noise."""
    x, y = vector(data["X"]), vector(data["y"])

    def model() -> None:
        beta = pyro.sample("beta", dist.Normal(0.0, 10.0).expand([data["D"]]).to_event(1))
        sigma = pyro.sample("sigma", dist.HalfNormal(10.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal((x * beta).sum(-1), sigma), obs=y)

    return model, lambda sites: named("beta", sites["beta"]) | {"sigma": sites["sigma"].flatten()}


def ark(data: Data) -> tuple[Callable[[], None], Callable[[Draws], Draws]]:
    """Models an autoregression of order five."""
    y, order = vector(data["y"]), data["K"]
    lagged = torch.stack([y[order - k : len(y) - k] for k in range(1, order + 1)], -1)

    def model() -> None:
        alpha = pyro.sample("alpha", dist.Normal(0.0, 10.0))
        beta = pyro.sample("beta", dist.Normal(0.0, 10.0).expand([order]).to_event(1))
        sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
        with pyro.plate("data", len(y) - order):
            pyro.sample("y", dist.Normal(alpha + (lagged * beta).sum(-1), sigma), obs=y[order:])

    def scalars(sites: Draws) -> Draws:
        return named("beta", sites["beta"]) | {key: sites[key].flatten() for key in ("alpha", "sigma")}

    return model, scalars


def garch(data: Data) -> tuple[Callable[[], None], Callable[[Draws], Draws]]:
    """Models GARCH(1, 1): alpha1 in (0, 1), beta1 in (0, 1 - alpha1), both flat: two weights of a flat Dirichlet."""
    y, first = vector(data["y"]), float(data["sigma1"]) ** 2

    def model() -> None:
        mu = flat("mu", dist.Normal(0.0, 10.0))[..., None]
        alpha0 = flat("alpha0", dist.LogNormal(0.0, 1.0))[..., None]
        alpha1, beta1, _ = pyro.sample("weights", dist.Dirichlet(torch.ones(3))).split(1, -1)
        gain = alpha0 + alpha1 * (y[:-1] - mu).square()
        variance = [torch.full_like(mu, first)]
        for step in gain.split(1, -1):
            variance.append(torch.addcmul(step, beta1, variance[-1]))
        pyro.sample("y", dist.Normal(mu, torch.cat(variance, -1).sqrt()).to_event(1), obs=y)

    def scalars(sites: Draws) -> Draws:
        weights = sites["weights"]
        return {"mu": sites["mu"], "alpha0": sites["alpha0"], "alpha1": weights[..., 0], "beta1": weights[..., 1]}

    return model, scalars


def gp_pois_regr(data: Data) -> tuple[Callable[[], None], Callable[[Draws], Draws]]:
    """Models a Poisson regression on a Gaussian process at eleven points. Its covariance needs double precision."""
    x, k = vector(data["x"]).double(), vector(data["k"])
    square = (x[:, None] - x).square()

    def process(rho: Tensor, alpha: Tensor, f_tilde: Tensor) -> Tensor:
        rho, alpha = rho.double()[..., None, None], alpha.double()[..., None, None]
        covariance = alpha**2 * (-0.5 * square / rho**2).exp() + 1e-10 * torch.eye(len(x), dtype=x.dtype)
        return (torch.linalg.cholesky(covariance) @ f_tilde.double()[..., None])[..., 0].to(f_tilde)

    def model() -> None:
        rho = pyro.sample("rho", dist.Gamma(25.0, 4.0))
        alpha = pyro.sample("alpha", dist.HalfNormal(2.0))
        f_tilde = pyro.sample("f_tilde", dist.Normal(0.0, 1.0).expand([len(x)]).to_event(1))
        pyro.sample("k", dist.Poisson(process(rho, alpha, f_tilde).exp()).to_event(1), obs=k)

    def scalars(sites: Draws) -> Draws:
        return named("f", process(**sites)) | {key: sites[key] for key in ("rho", "alpha")}

    return model, scalars


def kidscore(data: Data) -> tuple[Callable[[], None], Callable[[Draws], Draws]]:
    """Models a regression in the raw units of two test scores: intercept and slope have a correlation of -0.99."""
    score, iq = vector(data["kid_score"]), vector(data["mom_iq"])

    def model() -> None:
        beta = flat("beta", dist.Normal(0.0, 10.0).expand([2]).to_event(1))
        sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
        with pyro.plate("data", len(score)):
            pyro.sample("score", dist.Normal(beta[..., 0] + beta[..., 1] * iq, sigma), obs=score)

    return model, lambda sites: named("beta", sites["beta"]) | {"sigma": sites["sigma"].flatten()}


POSTERIORS: dict[str, Callable[[Data], tuple[Callable[[], None], Callable[[Draws], Draws]]]] = {
    "eight_schools-eight_schools_noncentered": eight_schools,
    "sblrc-blr": blr,
    "arK-arK": ark,
    "garch-garch11": garch,
    "gp_pois_regr-gp_pois_regr": gp_pois_regr,
    "kidiq-kidscore_momiq": kidscore,
}


def errors(draws: Draws, reference: Draws) -> dict[str, float]:
    """Computes the largest error of a marginal mean, in reference sds, and of a marginal sd, relative."""
    deviations = []
    for key, truth in reference.items():
        value, truth = draws[key].double(), truth.double()
        deviations.append(torch.stack([(value.mean() - truth.mean()) / truth.std(), value.std() / truth.std() - 1]))
    mean_error, sd_error = torch.stack(deviations).abs().amax(0).tolist()
    return {"mean_error": mean_error, "sd_error": sd_error}
