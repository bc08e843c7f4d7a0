"""examples/neutra.py: a tiny run writes everything it promises, its targets are what it says, its errors are clear."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from pyro import poutine

import neutra

TINY = ["--steps", "4", "--particles", "4"]
TINY += ["--samples", "6", "--warmup", "4", "--chains", "2"]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_writes_rows_and_picture(tmp_path: Path) -> None:
    neutra.main([*TINY, "--targets", "banana", "bimodal", "--out", str(tmp_path)])
    rows = {(row["target"], row["sampler"]): row for row in rows_of(tmp_path) if "sampler" in row}
    assert list(rows) == [
        *(("banana", sampler) for sampler in ("guide", "nuts", "neutra")),
        *(("bimodal", sampler) for sampler in ("guide", "nuts", "independence")),
    ]
    for (target, sampler), row in rows.items():
        if sampler in ("nuts", "neutra"):
            # At least one evaluation for every sample and chain.
            assert row["gradients"] >= 12
            assert row["gradients_warmup"] >= 8
            assert row["ess_per_gradient"] == pytest.approx(row["min_bulk_ess"] / row["gradients"])
            total = row["gradients"] + row["gradients_warmup"] + row["gradients_training"]
            assert row["ess_per_gradient_total"] == pytest.approx(row["min_bulk_ess"] / total)
            assert row["divergences"] >= 0
        if sampler != "guide":
            assert ("right_mode" if target == "bimodal" else "sd_ratio") in row
    plain, warped = rows["banana", "nuts"], rows["banana", "neutra"]
    for gain, of in (("gain", "ess_per_gradient"), ("gain_total", "ess_per_gradient_total")):
        assert warped[gain] == pytest.approx(warped[of] / plain[of])
    assert plain["gradients_training"] == 0
    # 16 draws of the training, and two hundred batches of 32 at least of the search for the start.
    assert warped["gradients_training"] == rows["banana", "guide"]["gradients_training"] >= 6416
    assert 0 < rows["bimodal", "independence"]["acceptance_rate"] <= 1
    assert (tmp_path / "neutra.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["funnel", "banana", "bimodal"])
def test_the_contours_are_those_of_the_model(name: str) -> None:
    """The log-densities differ by a constant; for the funnel, once the other coordinates are left out."""
    target = neutra.TARGETS[name]
    differences = []
    for _ in range(4):
        trace = poutine.trace(target.model).get_trace()
        sites = {name: site["value"] for name, site in trace.nodes.items() if site["type"] == "sample"}
        sites = {name: sites[name] for name in ("v", "x", "a", "b", "z") if name in sites}
        point = torch.cat([value.reshape(-1) for value in sites.values()])
        log_p = trace.log_prob_sum()
        if name == "funnel":
            log_p = log_p - neutra.log_normal(point[2:], 0.0, (point[0] / 2).exp()).sum()
        differences.append(log_p - target.log_density(point[None, :2])[0])
    torch.testing.assert_close(torch.stack(differences), differences[0].expand(4), rtol=0, atol=1e-4)


def test_the_bimodal_density_has_the_share_it_promises() -> None:
    first, second = torch.linspace(-9, 11, 1001), torch.linspace(-7, 7, 701)
    density = neutra.log_bimodal(torch.cartesian_prod(first, second)).double().exp().view(1001, 701) * 0.02 * 0.02
    assert float(density.sum()) == pytest.approx(1, abs=1e-4)
    assert float(density[first > 0].sum()) == pytest.approx(0.7, abs=1e-4)


def test_gradients_are_counted() -> None:
    """A tree of depth d has 2^d - 1 leapfrog steps: at depth 1 a sample costs one gradient, but for the first."""
    counted = neutra.Counted()
    kernel = neutra.NUTS(neutra.banana, max_tree_depth=1, step_size=0.1, adapt_step_size=False)
    mcmc = neutra.MCMC(kernel, 20, 10, hook_fn=counted.watch, disable_progbar=True)
    with patch("pyro.infer.mcmc.hmc.initialize_model", counted.initialize_model):
        mcmc.run()
    assert counted.calls - counted.warmup_calls == 20
    assert 10 <= counted.warmup_calls <= 12


def test_the_search_for_a_start_is_counted() -> None:
    """Where it does not take place, nothing is."""
    assert neutra.make_guide("bimodal")[1] == 0
    assert neutra.make_guide("banana")[1] > 6400


def test_annealing_goes_from_flat_to_the_target() -> None:
    betas = [neutra.TARGETS["bimodal"].arguments(share)[0] for share in (0.0, 0.35, 0.7, 1.0)]
    assert betas == pytest.approx([0.01, 0.1, 1.0, 1.0])
    assert neutra.TARGETS["banana"].arguments(0.0) == pytest.approx((0.2,))
    for model in (neutra.banana, neutra.bimodal):
        start = poutine.condition(model, {"a": torch.ones(()), "b": torch.zeros(()), "z": torch.ones(2)})
        tempered, full = (poutine.trace(start).get_trace(beta).log_prob_sum() for beta in (0.25, 1.0))
        assert float(tempered) == pytest.approx(0.25 * float(full))


def test_side_by_side() -> None:
    samples = {"v": torch.arange(3.0), "x": torch.arange(6.0).view(3, 2)}
    expected = torch.tensor([[0.0, 0, 1], [1, 2, 3], [2, 4, 5]])
    torch.testing.assert_close(neutra.side_by_side(samples), expected)


def test_smallest_effective_sample_size_is_that_of_the_worst_coordinate() -> None:
    good, noise = torch.randn(4, 200), torch.randn(4, 200)
    bad = torch.stack([noise[:, : index + 1][:, -40:].mean(1) for index in range(200)], -1)
    chains = neutra.Chains(torch.stack([good, bad], -1), 1, 1, 0)
    alone = neutra.Chains(good[..., None], 1, 1, 0)
    assert chains.min_bulk_ess < 100 < 500 < alone.min_bulk_ess < 1100


def test_a_guide_finds_its_start_where_the_density_has_no_mode() -> None:
    """The funnel rises without bound into its neck, until numbers overflow and the model can no longer be run."""
    guide = neutra.AutoRealNVP(neutra.funnel)
    guide.initialize()
    assert torch.cat([value.flatten() for value in guide.state_dict().values()]).isfinite().all()
