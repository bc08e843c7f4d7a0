"""examples/images.py in two processes writes the files of one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_images_under_torchrun(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = ["--hidden", "4", "--blocks", "1", "--scales", "1", "--steps", "2", "--memory", "rebuild"]
    script = [ROOT / "examples/images.py", *options, "--device", "cpu", "--out", tmp_path]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, *script], env=environment, check=True, capture_output=True, timeout=300)
    *_, interval, last = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert interval["step"] == 2
    assert 2 < last["test_bits_per_dim"] < 8
    assert {file.name for file in tmp_path.iterdir()} == {
        "metrics.jsonl",
        "samples.png",
        "interpolation.png",
        "checkpoint.safetensors",
        "checkpoint.json",
    }
