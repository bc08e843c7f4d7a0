"""Figures in the pages are those of the files of runs."""

import json
from pathlib import Path

import pytest

import figures
import results


def test_no_page_differs_from_the_files() -> None:
    """python docs/results.py would change nothing."""
    made = figures.figures_of(results.load_runs())
    named = set()
    for path in results.PAGES:
        page = path.read_text()
        assert results.fill(page, made) == page, f"{path} has figures that no run has; run python docs/results.py"
        assert page.count("<!--result ") == page.count("<!--/result-->") == len(results.MARK.findall(page))
        named |= {name for name, _ in results.MARK.findall(page)}
    assert named == set(made), "every figure stands in some page"


def test_a_figure_by_hand_is_found() -> None:
    page = "NICE has <!--result nice-->1985.1<!--/result--> nats."
    assert results.fill(page, {"nice": "1985.1"}) == page
    assert results.fill(page, {"nice": "1979.9"}) == "NICE has <!--result nice-->1979.9<!--/result--> nats."
    with pytest.raises(ValueError, match=r"no figure 'nice'; docs/figures.py has mnist"):
        results.fill(page, {"mnist": "1"})


def test_a_table_stands_on_its_own_lines() -> None:
    page = "before\n<!--result t-->old<!--/result-->\nafter"
    filled = results.fill(page, {"t": "| a |\n| --- |\n| 1 |"})
    assert "-->\n\n| a |\n| --- |\n| 1 |\n\n<!--/" in filled
    assert results.fill(filled, {"t": "| a |\n| --- |\n| 1 |"}) == filled


def test_taking_over_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "RUNS", tmp_path / "results")
    (tmp_path / "run.json").write_text(json.dumps({"command": "python a.py", "commit": "abc"}))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "nats": 2.0}\n{"step": 2, "nats": 1.5}\n')
    results.add("one", tmp_path)
    assert results.load_runs() == {
        "one": {
            "run": {"command": "python a.py", "commit": "abc"},
            "rows": [{"step": 1, "nats": 2.0}, {"step": 2, "nats": 1.5}],
        }
    }


@pytest.mark.parametrize("name", sorted(path.stem for path in results.RUNS.glob("*.json")))
def test_every_run_says_where_it_comes_from(name: str) -> None:
    run = results.load_runs()[name]["run"]
    assert run["command"].startswith("python ")
    assert "/home" not in run["command"]
    assert "/tmp" not in run["command"]
    assert len(run["commit"]) >= 7
    assert "dirty" not in run["commit"], "the code of this run is in no commit"


RUN = {"command": "python examples/a.py", "commit": "abcdef1", "torch": "2.14.1", "device": "CPU", "threads": 2}


def test_a_published_figure_beside_ours() -> None:
    rows = [
        {"step": 1, "validation_nats": 1.0},
        {"step": 1, "test_nats": 2059.56, "test_nats_error": 5.15, "seconds": 2585.3},
    ]
    found = figures.comparison(figures.VECTORS, {"nice": {"run": RUN, "rows": rows}}, unit="nats")
    assert "1980.5 (Dinh et al. (2014), figure 3) | **2059.6 ± 10.3** | 44 min |" in found
    assert found.endswith("* `python examples/a.py`, seed 0; commit abcdef1, torch 2.14.1, CPU, 2 threads")
    assert "RealNVP" not in found  # of which there is no run


def test_images_have_a_curve() -> None:
    last = {"test_bits_per_dim": 1.2, "test_bits_per_dim_error": 0.002, "test_bits_per_dim_of_8_draws": 1.1}
    rows = [{"step": 10 * i, "validation_bits_per_dim": 2 - i / 10} for i in range(1, 9)]
    rows.append({**last, "trainable_parameters": 163972, "histogram_bits_per_dim": 4.588, "seconds": 600.0})
    runs = {name: {"run": RUN, "rows": rows} for name in ("mnist-glow", "fashion-mnist-glow", "fashion-mnist-flowpp")}
    made = figures.figures_of(runs)
    line = "| Glow | 163,972 | 80 | 10 | 1.200 ± 0.004 | **1.100** | 1.800, 1.600, 1.400, 1.200 |"
    assert made["mnist-images"].splitlines()[2:] == [line]
    assert made["fashion-mnist-images"].splitlines()[2:] == [line, line.replace("Glow", "Flow++")]
    assert made["fashion-mnist-glow"] == "1.100"
    assert made["fashion-mnist-pixels"] == "4.59"
    assert made["mnist-commands"] == figures.command(RUN)
    rows[-1]["test_bits_per_dim_of_8_draws_error"] = 0.003
    assert "| **1.100** ± 0.006 |" in figures.figures_of(runs)["mnist-images"]


def test_simulators_are_counted() -> None:
    task = {"bounded": True, "dropout": 0.2, "weight_decay": 1.0, "seconds": 300, "mean_c2st_error": 0.01}
    rows = [{"task": "two_moons", "observation": 1, "c2st": 0.5}]
    rows += [
        {"task": name, "mean_c2st": c2st, "published_npe": 0.6, **task} for name, c2st in (("a", 0.5), ("b", 0.62))
    ]
    half = {**rows[-1], "task": "c", "mean_c2st": 0.65}
    made = figures.figures_of({"simulators": {"run": RUN, "rows": rows}, "simulators-b": {"run": RUN, "rows": [half]}})
    assert made["simulators-below"] == "1 of 3"
    assert made["simulators-gap"] == "0.010 below"
    assert made["simulators-command"].count("\n") == 1
    assert "| a | 0.600 | **0.500** ± 0.020 | on the box, dropout 0.2, decay 1 | 5 min |" in made["simulators"]


def test_words() -> None:
    assert figures.listed(["98", "100", "94"]) == "98, 100 and 94"
    assert figures.listed(["98"]) == "98"
    assert figures.minutes(119) == "119 s"
    assert figures.minutes(121) == "3 min"


def test_posteriors_and_samplers() -> None:
    bbvi = {"model": "dogs", "latents": 3, "elbo": -298.258, "pareto_k": 0.19, "seconds": 8.4}
    plain = {"target": "funnel", "sampler": "nuts", "min_bulk_ess": 56.0, "sd_ratio": 0.8, "gradients": 1000}
    plain |= {"gradients_warmup": 200, "gradients_training": 0}
    neutra = {**plain, "sampler": "neutra", "min_bulk_ess": 5600.0, "gradients_training": 300, "gain_total": 80.2}
    training = {"target": "funnel", "step": 100, "loss": 1.0}
    energies = [{"energy": name, "ess": ess, "forward_ess": ess} for name, ess in (("u1", 98.4), ("u2", 99.7))]
    made = figures.figures_of(
        {
            "bbvi": {"run": RUN, "rows": [{**bbvi, "published": {"ADVI": -298.45}}]},
            "neutra": {"run": RUN, "rows": [training, plain, neutra]},
            "energies": {"run": RUN, "rows": [{"step": 1}, *energies]},
            "simulator": {"run": RUN, "rows": [{"test_kl": 0.0912, "c2st": [0.5, 0.494]}]},
        }
    )
    assert made["bbvi"].endswith("| dogs | 3 | -298.26 | 0.19 | 8 | -298.45 |")
    assert made["neutra"].splitlines()[2:] == [
        "| funnel | nuts | 56 | 1,200 | 1 | 0.80 |",
        "| funnel | neutra | 5,600 | 1,500 | 80 | 0.80 |",
    ]
    assert made["neutra-funnel"] == "80"
    assert made["energies"] == "98 and 100 %"
    assert (made["simulator-kl"], made["simulator-c2st"]) == ("0.09", "0.50, 0.49")


def test_autoencoders_gain_by_a_flow() -> None:
    row = {"test_elbo": -150.123, "test_elbo_error": 0.5, "test_bound": -148.5, "test_bound_error": 0.4}
    row |= {"best_step": 2900, "seconds": 30.2}
    rows = [{"step": 100, "loss": 160.0}]
    rows.append({"model": "normal prior, normal posterior", **row, "gain": 0.0, "gain_error": 0.0})
    rows.append({"model": "flow prior, normal posterior", **row, "gain": -1.1, "gain_error": 0.25})
    made = figures.figures_of({"vae": {"run": RUN, "rows": rows}})
    first, second = made["vae"].splitlines()[2:]
    assert first.startswith("| normal prior, normal posterior | -150.12 ± 1.00 | -148.50 ± 0.80 |  | 2,900 |")
    assert second.endswith("| -1.1 ± 0.5 | 2,900 | 30 s |")
    assert made["vae-gain"] == "-1.1 ± 0.5"
