"""Senseless values on a command line end in one sentence of argparse, before anything is computed or written."""

import importlib
from pathlib import Path

import pytest

SCRIPTS = ("images", "two_moons", "conditional", "simulator", "vae", "energies", "posterior", "neutra")
OF_ALL = {
    "--steps": ("0", "-5", "1.5", "many"),
    "--seed": ("-1", str(2**32), "x"),
}
WRONG = {
    "images": {
        "--batch-size": ("0", "-1"),
        "--hidden": ("0", "x"),
        "--blocks": ("0",),
        "--scales": ("0", "9"),
        "--dropout": ("2", "-0.1", "nan", "1"),
        "--alpha": ("0.7", "0.5", "-1", "nan"),
        "--warmup": ("0",),
        "--minutes": ("nan", "0", "-1"),
        "--learning-rate": ("-1", "nan", "inf"),
        "--ema": ("1", "-0.5"),
        "--clip": ("0", "nan"),
        "--weight-decay": ("-1",),
        "--patience": ("0",),
        "--interval": ("0",),
        "--epochs": ("0",),
        "--temperature": ("-1", "nan"),
        "--size": ("0",),
        "--data": ("moons",),
        "--flow": ("glew",),
        "--sample": ("no such file",),
        "--levels": ("2",),  # of Glow
    },
    "two_moons": {
        "--batch": ("0",),
        "--hidden": ("0",),
        "--couplings": ("0",),
        "--lr": ("-1", "nan"),
        "--ema": ("1",),
        "--points": ("-1", "3"),
        "--jitter": ("-1",),
        "--interval": ("0",),
        "--patience": ("0",),
    },
    "conditional": {"--epochs": ("0",), "--draws": ("0",), "--hidden": ("0",)},
    "simulator": {
        "--simulations": ("3", "-1"),
        "--draws": ("18", "0"),
        "--calibration": ("0",),
        "--c2st": ("-1",),
        "--batch": ("0",),
        "--lr": ("nan",),
    },
    "vae": {
        "--latent": ("0",),
        "--dropout": ("2",),
        "--decay": ("-1",),
        "--flow-lr": ("-1",),
        "--max-norm": ("0",),
        "--draws": ("0",),
        "--decoder": ("0",),
        "--width": ("0",),
    },
    "energies": {"--anneal": ("1", "-0.1"), "--start": ("0", "2"), "--batch": ("0",)},
    "posterior": {},
    "neutra": {
        "--samples": ("0",),
        "--chains": ("0",),
        "--accept": ("0", "1", "nan"),
        "--particles": ("0",),
        "--warmup": ("-1",),
    },
}
CASES = [
    (script, option, value)
    for script in SCRIPTS
    for option, values in {**OF_ALL, **WRONG[script]}.items()
    for value in values
]


def refused(script: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The last line of what a script prints that ends with code 2."""
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(script).main(arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(("script", "option", "value"), CASES)
def test_a_wrong_value(
    script: str, option: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(script, [option, value, "--out", str(tmp_path / "out")], capsys)
    assert f"error: argument {option}" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_folder_that_cannot_be_one(script: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for out in (file, file / "below", tmp_path / "link"):
        assert "error: argument --out: must be a folder" in refused(script, ["--out", str(out)], capsys)
    assert file.read_text() == "kept"


def test_limits_are_allowed() -> None:
    from shared.option_types import COUNT, LIMIT, RATE, SEED, SHARE

    assert [COUNT("1"), SEED("0"), SEED(str(2**32 - 1)), RATE("0"), SHARE("0"), LIMIT("inf")] == [
        1,
        0,
        2**32 - 1,
        0.0,
        0.0,
        float("inf"),
    ]
