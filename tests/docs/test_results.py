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
