"""Tries an installed package outside of its repository: fit, save, load in another process, and a guide.

pip install 'pyro_realnvp-0.2.0-py3-none-any.whl[train]' && python .ci/smoke.py
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch

import pyro_realnvp
from pyro_realnvp import AutoRealNVP, Flow, StandardNormal, fit, fit_guide, realnvp_transforms, save

LOAD = "import sys, torch, pyro_realnvp; x, log_p = torch.load(sys.argv[2]); print((pyro_realnvp.load(sys.argv[1])(x) - log_p).abs().max().item())"  # noqa: E501


def density(folder: Path) -> None:
    """Fits a flow to a correlated Gaussian, and loads it in another process."""
    torch.manual_seed(0)
    x = torch.randn(2000, 2) @ torch.tensor([[1.0, 0.8], [0.0, 0.6]])
    flow = Flow(StandardNormal(2), realnvp_transforms(2))
    before = flow(x).mean()
    fit(flow, x, steps=300, progress=False, seed=0)
    with torch.no_grad():
        log_p = flow(x)
    assert log_p.mean() > before + 0.2, f"fit did not learn: {before} before, {log_p.mean()} after."
    save(flow, folder / "flow.safetensors")
    torch.save((x, log_p), folder / "expected.pt")
    command = [sys.executable, "-c", LOAD, str(folder / "flow.safetensors"), str(folder / "expected.pt")]
    difference = float(subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder).stdout)
    assert difference < 1e-4, f"The loaded flow differs by {difference}."


def guide() -> None:
    """Trains a guide for a Gaussian whose posterior is known."""

    def model(y: torch.Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    pyro.set_rng_seed(0)
    y = 1 + torch.randn(15)
    made = AutoRealNVP(model)
    fit_guide(model, made, y, steps=300, progress=False)
    mean = made.sample_posterior((5000,))["loc"].mean()
    assert abs(mean - y.sum() / 16) < 0.05, f"The posterior mean is {y.sum() / 16}, but the guide has {mean}."


def main() -> None:
    place = Path(pyro_realnvp.__file__)
    assert "site-packages" in place.parts, f"This is not the installed package, but {place}."
    assert (place.parent / "py.typed").is_file(), "The package has no py.typed."
    with tempfile.TemporaryDirectory() as folder:
        density(Path(folder))
    guide()
    print(f"pyro_realnvp {pyro_realnvp.__version__} works, from {place.parent}")


if __name__ == "__main__":
    main()
