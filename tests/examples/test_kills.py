"""Scripts that are killed and go on give what they give in one go, to the last bit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
IMAGES = ["--hidden", "4", "--batch-size", "32", "--interval", "13", "--warmup", "10", "--patience", "100"]
SCRIPTS = {
    "two_moons": ["--steps", "300", "--couplings", "4", "--interval", "40"],
    "two_moons, few points": ["--points", "200", "--steps", "300", "--couplings", "4", "--interval", "20"],
    "simulator": ["--steps", "200", "--couplings", "2", "--interval", "30", "--calibration", "100", "--c2st", "0"],
    "energies": ["--energy", "u1", "u2", "--steps", "150", "--couplings", "4", "--interval", "20"],
    "vae": ["--steps", "120", "--draws", "2", "--interval", "20", "--couplings", "2"],
    "conditional": ["--steps", "40", "--hidden", "4", "--draws", "1"],
    "images": [*IMAGES, "--steps", "60", "--flips", "--scales", "1", "--blocks", "1", "--weight-decay", "1e-3"],
    "images, Flow++": [*IMAGES, "--flow", "flowpp", "--couplings", "1", "--steps", "40"],
    "images, Glow": [*IMAGES, "--flow", "glow", "--levels", "1", "--level-steps", "2", "--steps", "60"],
    "images, SVI": [*IMAGES, "--objective", "svi", "--scales", "1", "--blocks", "1", "--steps", "40"],
    "posterior": ["--steps", "120"],
    "neutra": ["--targets", "funnel", "--steps", "60", "--samples", "20", "--warmup", "20", "--chains", "2"],
}


def run(name: str, kills: int, one: Path, out: Path, *more: str, seconds: float, every: float = 0.1) -> int:
    """Runs a script in one go and with so many kills; returns how many there were before it ended."""
    script = name.split(",")[0]
    command = [sys.executable, HERE / "kill_often.py", script, str(kills), str(seconds), str(every), one, "--"]
    arguments = [*SCRIPTS[name], *more, "--device", "cpu", "--out", str(out)]
    result = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    return int(result.stdout.split()[-2])


def content(out: Path) -> dict:
    """Everything that a run has written, but for the seconds and the states of trainings."""
    files = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.name == "metrics.jsonl":
            rows = [json.loads(row) for row in path.read_text().splitlines()]
            files[name] = [{key: row[key] for key in row if not key.endswith("seconds")} for row in rows]
        elif path.suffix == ".safetensors" and path.name != "training.safetensors":
            files[name] = {key: value.numpy().tobytes() for key, value in load_file(path).items()}
        elif path.suffix in (".png", ".json"):
            files[name] = path.read_bytes()
    return files


def same(one: Path, other: Path) -> None:
    first, second = content(one), content(other)
    assert first.keys() == second.keys()
    for name in first:
        assert first[name] == second[name], name
    assert not list(other.rglob("*.part"))


@pytest.mark.parametrize(("name", "steps"), [("two_moons", "150"), ("images", "30")])
def test_killed_a_few_times(name: str, steps: str, tmp_path: Path) -> None:
    one, killed = tmp_path / "one", tmp_path / "killed"
    assert run(name, 3, one, killed, "--steps", steps, seconds=0.8) >= 2
    same(one, killed)


@pytest.mark.slow
@pytest.mark.parametrize("every", [0.1, 0.0], ids=["saved often", "saved after every step"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_killed_twenty_times(name: str, every: float, tmp_path: Path) -> None:
    one, kills, seconds = tmp_path / "one", 0, 0.4
    while kills < 20:  # shorter attempts until the script does not end before
        kills = run(name, 20, one, tmp_path / f"killed {seconds}", seconds=seconds, every=every)
        seconds *= 0.6
        last = sorted(tmp_path.glob("killed *"), key=lambda path: path.stat().st_mtime)[-1]
        same(one, last)
    print(f"{name}: {kills} kills, saved every {every} s")
