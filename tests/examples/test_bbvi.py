"""Nine models of Stan: their densities against the Stan programs, written out by loops, and the reader of their data.

With the environment variable ``BBVI_ROOT``, a folder with ``<name>.data.R``, the densities are compared on these too.
"""

import math
import os
from pathlib import Path

import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO

from pyro_realnvp import AutoRealNVP
from pyro_realnvp.inference.sites import log_joint, log_joints

from shared import bbvi
from shared.rdump import parse_rdump, read_rdump

ROOT = os.environ.get("BBVI_ROOT")

# Every observation has a partner that only a part of the model tells apart: groups of unequal size, a cell without
# trials, one with several, animals that were never seen, children with one measurement.
TINY = {
    "dogs": "n_dogs <- 2\nn_trials <- 4\ny <- structure(c(1, 0, 1, 1, 0, 1, 0, 0), .Dim = c(2, 4))",
    "wells_dist": "N <- 4\nswitched <- c(1, 0, 0, 1)\ndist <- c(16.8, 47.3, 20.9, 0.4)",
    "Mh": "y <- c(5, 3, 1, 0, 0, 2)\nM <- 6L\nT <- 5L",
    "Mth": "y <- structure(c(0, 1, 0, 1, 0, 0, 1, 0, 1, 0, 0, 0), .Dim = c(4L, 3L))\nM <- 4L\nT <- 3L",
    "electric_1c_chr": """
        N <- 5
        n_grade <- 3
        n_grade_pair <- 2
        n_pair <- 3
        grade <- c(1, 2, 3, 3, 1)
        grade_pair <- c(1, 2, 1)
        pair <- c(1, 2, 2, 3, 1)
        pre_test <- c(13.8, 16.5, 18.5, 8.8, 15.3)
        treatment <- c(1, 0, 1, 1, 0)
        y <- c(48.9, 70.5, 89.7, 44.2, 77.5)""",
    "hepatitis": """
        N1 <- 4
        N <- 3
        Yvec1 <- c(4.997, 6.83, 3.951, 6.798)
        tvec1 <- c(6.54, 7.15, 5.9, 6.1)
        idxn1 <- c(1, 3, 3, 2)
        y0 <- c(8.613, 7.105, 6.896)""",
    "radon_vary_si_chr": "N <- 4\ncounty <- c(1, 85, 2, 85)\nx <- c(1, 0, 0, 1)\ny <- c(0.8, 1.1, -0.3, 0.1)",
    "election88": """
        N <- 6
        n_state <- 3
        black <- c(0, 1, 0, 0, 1, 0)
        female <- c(1, 1, 0, 1, 0, 1)
        state <- c(1, 3, 3, 1, 3, 1)
        y <- c(1, 0, 1, 0, 1, 1)""",
    "irt": "J <- 3\nK <- 2\nN <- 6\njj <- c(1, 1, 2, 3, 3, 1)\nkk <- c(1, 2, 2, 1, 2, 1)\ny <- c(1, 0, 0, 1, 1, 0)",
}

BOUNDS = {
    **dict.fromkeys(["omega", "mean_p"], (0.0, 1.0)),
    "sigma": (0.0, 5.0),
    **dict.fromkeys(["sigma_a", "sigma_y", "sigma_a1", "sigma_a2"], (0.0, 100.0)),
    **dict.fromkeys(["sigmasq_y", "sigmasq_alpha", "sigmasq_beta"], (0.0, 10.0)),
}

SIZES = {  # the parameters as the Stan programs declare them; None: one real number
    "dogs": {"beta": 3},
    "wells_dist": {"beta": 2},
    "Mh": {"omega": None, "mean_p": None, "sigma": None, "eps_raw": "M"},
    "Mth": {"omega": None, "mean_p": "T", "sigma": None, "eps_raw": "M"},
    "electric_1c_chr": {
        "eta_a": "n_pair",
        "mu_a": "n_grade_pair",
        "sigma_a": "n_grade_pair",
        "sigma_y": "n_grade",
        "b": "n_grade",
        "c": "n_grade",
    },
    "hepatitis": {
        **dict.fromkeys(["sigmasq_y", "sigmasq_alpha", "sigmasq_beta", "gamma", "alpha0", "beta0"]),
        **dict.fromkeys(["alpha", "beta"], "N"),
    },
    "radon_vary_si_chr": {
        **dict.fromkeys(["eta1", "eta2"], 85),
        **dict.fromkeys(["mu_a1", "mu_a2", "sigma_a1", "sigma_a2", "sigma_y"]),
    },
    "election88": {"a": "n_state", "b": 2, "sigma_a": None, "mu_a": None},
    "irt": {"delta": None, "alpha": "J", "beta": "K"},
}


def point(name, data):
    """Random values of all parameters, in double precision."""
    at = {}
    for parameter, size in SIZES[name].items():
        size = int(data[size]) if isinstance(size, str) else size
        shape = () if size is None else (size,)
        if parameter in BOUNDS:
            low, high = BOUNDS[parameter]
            at[parameter] = low + (high - low) * torch.rand(shape, dtype=torch.float64)
        else:
            at[parameter] = torch.randn(shape, dtype=torch.float64)
    return at


# ------------------------------------------------------------------------ what the Stan programs compute, by loops


def normal(x, loc, scale):  # scale is a parameter: Stan drops sqrt(2 pi) alone
    return -0.5 * ((x - loc) / scale) ** 2 - math.log(scale)


def square(x, loc, scale):  # scale is a number
    return -0.5 * ((x - loc) / scale) ** 2


def log_sum_exp(a, b):
    return max(a, b) + math.log1p(math.exp(-abs(a - b)))


def bernoulli_logit(y, logit):
    return -log_sum_exp(0, -logit if y == 1 else logit)


def logit(p):
    return math.log(p / (1 - p))


def stan_dogs(d, beta):
    total = sum(square(b, 0, 100) for b in beta)
    for dog in d["y"]:
        avoided = shocks = 0
        for y in dog:
            total += bernoulli_logit(y, beta[0] + beta[1] * avoided + beta[2] * shocks)
            avoided, shocks = avoided + 1 - y, shocks + y
    return total


def stan_wells_dist(d, beta):
    return sum(bernoulli_logit(y, beta[0] + beta[1] * x) for y, x in zip(d["switched"], d["dist"], strict=True))


def stan_mh(d, omega, mean_p, sigma, eps_raw):
    total, occasions = sum(square(e, 0, 1) for e in eps_raw), int(d["T"])
    for y, raw in zip(d["y"], eps_raw, strict=True):
        eps = logit(mean_p) + sigma * raw
        log_p = math.log(math.comb(occasions, int(y)))
        log_p += y * bernoulli_logit(1, eps) + (occasions - y) * bernoulli_logit(0, eps)
        exists = math.log(omega) + log_p
        total += exists if y > 0 else log_sum_exp(exists, math.log(1 - omega))
    return total


def stan_mth(d, omega, mean_p, sigma, eps_raw):
    total = sum(square(e, 0, 1) for e in eps_raw)
    for row, raw in zip(d["y"], eps_raw, strict=True):
        logits = [logit(p) + sigma * raw for p in mean_p]
        if sum(row) > 0:
            total += math.log(omega) + sum(bernoulli_logit(y, each) for y, each in zip(row, logits, strict=True))
        else:
            never = math.log(omega) + sum(bernoulli_logit(0, each) for each in logits)
            total += log_sum_exp(never, math.log(1 - omega))
    return total


def stan_electric(d, eta_a, mu_a, sigma_a, sigma_y, b, c):
    total = sum(square(x, 0, 1) for x in [*eta_a, *mu_a]) + sum(square(x, 0, 100) for x in [*b, *c])
    a = []
    for i, grade in enumerate(d["grade_pair"]):
        a.append(50 * mu_a[int(grade) - 1] + sigma_a[int(grade) - 1] * eta_a[i])
    for i, y in enumerate(d["y"]):
        grade, pair = int(d["grade"][i]) - 1, int(d["pair"][i]) - 1
        total += normal(y, a[pair] + b[grade] * d["treatment"][i] + c[grade] * d["pre_test"][i], sigma_y[grade])
    return total


def stan_hepatitis(d, sigmasq_y, sigmasq_alpha, sigmasq_beta, gamma, alpha0, beta0, alpha, beta):
    total = sum(square(x, 0, 1000) for x in (alpha0, beta0, gamma))
    total += sum(-(0.001 + 1) * math.log(x) - 0.001 / x for x in (sigmasq_y, sigmasq_alpha, sigmasq_beta))
    total += sum(
        normal(a, alpha0, math.sqrt(sigmasq_alpha)) + normal(b, beta0, math.sqrt(sigmasq_beta))
        for a, b in zip(alpha, beta, strict=True)
    )
    mean = sum(d["y0"]) / len(d["y0"])
    for y, t, index in zip(d["Yvec1"], d["tvec1"], d["idxn1"], strict=True):
        child = int(index) - 1
        loc = alpha[child] + beta[child] * (t - 6.5) + gamma * (d["y0"][child] - mean)
        total += normal(y, loc, math.sqrt(sigmasq_y))
    return total


def stan_radon(d, eta1, eta2, mu_a1, mu_a2, sigma_a1, sigma_a2, sigma_y):
    total = sum(square(x, 0, 1) for x in [mu_a1, mu_a2, *eta1, *eta2])
    for y, x, index in zip(d["y"], d["x"], d["county"], strict=True):
        county = int(index) - 1
        slope = 0.1 * mu_a2 + sigma_a2 * eta2[county]
        total += normal(y, mu_a1 + sigma_a1 * eta1[county] + slope * x, sigma_y)
    return total


def stan_election88(d, a, b, sigma_a, mu_a):
    total = square(mu_a, 0, 1) + sum(normal(x, mu_a, sigma_a) for x in a) + sum(square(x, 0, 100) for x in b)
    for y, black, female, state in zip(d["y"], d["black"], d["female"], d["state"], strict=True):
        total += bernoulli_logit(y, b[0] * black + b[1] * female + a[int(state) - 1])
    return total


def stan_irt(d, delta, alpha, beta):
    total = square(delta, 0.75, 1) + sum(square(x, 0, 1) for x in [*alpha, *beta])
    for y, j, k in zip(d["y"], d["jj"], d["kk"], strict=True):
        total += bernoulli_logit(y, alpha[int(j) - 1] - beta[int(k) - 1] + delta)
    return total


STAN = {
    "dogs": stan_dogs,
    "wells_dist": stan_wells_dist,
    "Mh": stan_mh,
    "Mth": stan_mth,
    "electric_1c_chr": stan_electric,
    "hepatitis": stan_hepatitis,
    "radon_vary_si_chr": stan_radon,
    "election88": stan_election88,
    "irt": stan_irt,
}


# ----------------------------------------------------------------------------------------------------------- densities


def assert_only_the_constant_differs(name, data):
    plain = {key: value.tolist() for key, value in data.items()}
    torch.set_default_dtype(torch.float64)
    try:
        program = bbvi.PROGRAMS[name](data)
        for _ in range(4):
            at = point(name, data)
            trace = poutine.trace(poutine.condition(program.model, data=at)).get_trace()
            latents = {key for key, site in trace.nodes.items() if site["type"] == "sample" and key in at}
            assert latents == set(SIZES[name])
            stan = STAN[name](plain, **{key: value.tolist() for key, value in at.items()})
            found = float(trace.log_prob_sum())
            assert found - stan == pytest.approx(program.dropped_constant, abs=1e-8 * (1 + min(abs(stan), 1e3)))
            assert found == pytest.approx(stan + program.dropped_constant, rel=1e-11)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", bbvi.PROGRAMS)
def test_density_is_that_of_the_stan_program_but_for_the_constant(name):
    assert_only_the_constant_differs(name, parse_rdump(TINY[name]))


@pytest.mark.skipif(ROOT is None, reason="BBVI_ROOT names no folder with the data of the Stan programs")
@pytest.mark.parametrize("name", bbvi.PROGRAMS)
def test_density_is_that_of_the_stan_program_on_its_data(name):
    assert_only_the_constant_differs(name, read_rdump(Path(ROOT) / f"{name}.data.R"))


@pytest.mark.parametrize("name", bbvi.PROGRAMS)
def test_models_run_on_many_draws_at_once(name):
    model = bbvi.PROGRAMS[name](parse_rdump(TINY[name])).model
    guide = AutoRealNVP(model, init_scale=0.1)
    guide.initialize()
    x = 0.3 * torch.randn(4, guide.latent_dim)
    together = log_joints(guide, x, (), {}, nesting=0)
    apart = torch.stack([log_joint(guide, row, (), {}) for row in x])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)
    assert math.isfinite(Trace_ELBO(32, vectorize_particles=True).loss(model, guide))


def test_loads_from_a_folder(tmp_path):
    (tmp_path / "dogs.data.R").write_text(TINY["dogs"])
    program = bbvi.load("dogs", tmp_path)
    assert program.dropped_constant == pytest.approx(-3 * math.log(100 * math.sqrt(2 * math.pi)), rel=1e-12)
    with pytest.raises(SystemExit, match=r"There is no file .*irt\.data\.R"):
        bbvi.load("irt", tmp_path)
    with pytest.raises(SystemExit, match="There is no model cats"):
        bbvi.load("cats", tmp_path)


# ---------------------------------------------------------------------------------------------------------- dumps of R


def test_reads_every_kind_of_value():
    found = parse_rdump(
        """# a comment
        "N" <-
          11566
        J = 7L; x <- c(1, -2.5e-1, .5,
        3., 4L)
        range <- 3:6
        down <- 2:0
        both <- c(1:3, 9)
        one <- c(5)
        none <- c()
        y <-
        structure(c(1, 2, 3, 4, 5, 6),
        .Dim = c(2L, 3L))
        z <- structure(1:24, .Dim = 2:4)
        b.c_d <- c(NA, Inf, -Inf)"""
    )
    assert {key: value.tolist() for key, value in found.items() if key not in ("z", "b.c_d")} == {
        "N": 11566,
        "J": 7,
        "x": [1, -0.25, 0.5, 3, 4],
        "range": [3, 4, 5, 6],
        "down": [2, 1, 0],
        "both": [1, 2, 3, 9],
        "one": [5],
        "none": [],
        "y": [[1, 3, 5], [2, 4, 6]],
    }
    assert found["z"].shape == (2, 3, 4)
    assert found["z"][1, 2, 3] == 24
    assert found["z"][0, 1, 2] == 1 + 2 * 1 + 6 * 2
    assert all(value.dtype == torch.float64 for value in found.values())
    assert found["b.c_d"].isnan().tolist() == [True, False, False]
    assert found["b.c_d"][1:].tolist() == [math.inf, -math.inf]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("x <- c(1, 2", r"needs \) here, but has its end"),
        ("x 3", "needs <- or = here, but has '3'"),
        ("3 <- x", "needs the name of a variable here, but has '3'"),
        ("x <- c(1, TRUE)", "The variable x needs a number here, but has 'TRUE'"),
        ("x <- list(1)", "The variable x needs a number here, but has 'list'"),
        ("x <- structure(c(1, 2, 3), .Dim = c(2, 2))", r"x has dimensions \[2, 2\], but 3 numbers"),
        ("x <- {1}", r"No dump of R has '\{1\}'"),
    ],
)
def test_says_what_is_no_dump(text, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        parse_rdump(text)
    (tmp_path / "x.data.R").write_text(text)
    with pytest.raises(ValueError, match=r"x\.data\.R: .*"):
        read_rdump(tmp_path / "x.data.R")
