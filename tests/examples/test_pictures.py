"""Every picture of examples/pictures.py: the law that its latents obey, and that its file shows something."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from matplotlib import image
from torch import Tensor

import pictures
import two_moons
from pyro_realnvp import Flow, ImageFlow, StandardNormal, realnvp_transforms, save
from pyro_realnvp.testing import randomize

from shared import image_figures, latent_figures
from shared.image_data import load_images, load_labels
from shared.image_models import MODELS, build
from shared.larger_flow import depends_on_size, enlarge, larger_configuration
from shared.latent_depths import drawn_anew, latent_depths
from shared.latents import cooled, decode, encode, manifold, moved, straight_line
from shared.options import Config
from shared.picture_checks import PICTURES, why_not

OLD = Path(__file__).parents[1] / "checkpoints"
DIGITS = {"data": "digits", "image_shape": [1, 8, 8], "event_shape": [1, 8, 8], "pixel_levels": 17, "alpha": 0.005}
SMALL: dict[str, Config] = {
    "realnvp": {"flow": "realnvp", "scales": 3, "hidden": 2, "blocks": 1, "dropout": 0.0},
    "packed": {"flow": "realnvp", "scales": 2, "hidden": 2, "blocks": 1, "dropout": 0.0, "packed": True},
    "glow": {"flow": "glow", "levels": 3, "steps": 1, "hidden": 2},
    "spline": {"flow": "spline", "levels": 2, "steps": 1, "hidden": 2, "bins": 2},
    "nice": {"flow": "nice", "couplings": 2, "hidden": 4, "blocks": 1},
    "flowpp": {**MODELS["flowpp"]["digits"], "flow": "flowpp", "couplings": [1, 1, 1], "hidden": 4},
}
CONVOLUTIONAL = ("realnvp", "packed", "glow", "spline")


@pytest.fixture(scope="module")
def digits() -> Tensor:
    return load_images("digits", Path("none"), download=False)[2]


@pytest.fixture
def make() -> Callable[[str], tuple[ImageFlow, Config]]:
    """Builds a small flow whose weights are random, so that nothing is the identity."""

    def made(name: str, **changes: object) -> tuple[ImageFlow, Config]:
        torch.manual_seed(1)
        config = {**DIGITS, **SMALL[name], **changes}
        model = build(config)
        randomize(model)
        return model.eval(), config

    return made


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """What has been drawn, by the name of the file."""
    found: dict[str, Tensor] = {}
    for module, name in (
        (image_figures, "save_grids"),
        (latent_figures, "save_grids"),
        (latent_figures, "save_table"),
    ):
        original = getattr(module, name)

        def watched(path: Path, images: object, *args: object, original=original, **options: object) -> None:
            parts = images.values() if isinstance(images, dict) else [images]
            found[path.stem] = [*parts][-1]
            original(path, images, *args, **options)

        monkeypatch.setattr(module, name, watched)
    return found


# ------------------------------------------------------------------------------------------------- the latents


@pytest.mark.parametrize("name", ["realnvp", "glow", "nice"])
def test_decoding_undoes_encoding(name: str, make, digits: Tensor) -> None:
    model, config = make(name)
    assert torch.equal(decode(model.flow, encode(model.flow, digits[:300], config), config), digits[:300].float())


def test_corners_of_the_manifold_are_the_four_images(make, digits: Tensor) -> None:
    model, config = make("realnvp")
    z = encode(model.flow, digits[:4], config)
    spanned = manifold(z, torch.tensor([0.0, math.pi / 2, 0.6]))
    corners = decode(model.flow, spanned[:2, :2].flatten(0, 1), config)
    assert torch.equal(corners, digits[:4].float())
    a, b, c, d = (float(f(torch.tensor(0.6))) for f in (torch.cos, torch.sin) for _ in range(2))
    assert torch.allclose(spanned[2, 2], a * a * z[0] + b * c * z[1] + d * a * z[2] + d * d * z[3], atol=1e-5)


def test_ends_of_a_line_are_the_two_images_and_the_middle_is_their_mean(make, digits: Tensor) -> None:
    model, config = make("glow")
    start, end = encode(model.flow, digits[:6], config).chunk(2)
    line = straight_line(start, end, 5)
    images = decode(model.flow, line, config)
    assert torch.equal(images[:, 0], digits[:3].float())
    assert torch.equal(images[:, -1], digits[3:6].float())
    assert torch.allclose(line[:, 2], (start + end) / 2, atol=1e-5)
    assert not torch.equal(images[:, 2], images[:, 0])


def test_an_attribute_moved_by_nothing_is_the_image(make, digits: Tensor) -> None:
    model, config = make("glow")
    z = encode(model.flow, digits[:5], config)
    direction = encode(model.flow, digits[5:9], config).mean(0)
    changed = moved(z, direction, torch.tensor([-1.0, 0.0, 2.0]))
    images = decode(model.flow, changed, config)
    assert torch.equal(images[:, 1], digits[:5].float())
    assert torch.allclose(changed[:, 2] - changed[:, 0], 3 * direction.expand(5, 1, 8, 8), atol=1e-4)
    assert (images[:, 2] != images[:, 1]).any()


@pytest.mark.parametrize("classes", [0, 10])
def test_temperatures_move_the_same_latents_to_one_image(classes: int, make) -> None:
    model, config = make("glow", **({"classes": classes} if classes else {}))
    context = torch.eye(10)[:1].expand(4, 10) if classes else None
    z = cooled(model.flow, 4, [0.0, 0.5, 1.0], context)
    images = decode(model.flow, z, config, None if context is None else context[:, None])
    assert (images[:, 0] == images[0, 0]).all()
    assert (images[:, 2] != images[0, 2]).flatten(1).any(1)[1:].all()
    assert torch.allclose(z[:, 1], (z[:, 0] + z[:, 2]) / 2, atol=1e-5)


# -------------------------------------------------------------------------------------------------- the depths


@pytest.mark.parametrize(("name", "counts"), [("realnvp", [32, 16, 16]), ("packed", [32, 32]), ("glow", [32, 16, 16])])
def test_every_scale_factors_half_out(name: str, counts: list[int], make) -> None:
    assert latent_depths(make(name)[0].flow).flatten().bincount().tolist() == counts


def test_depths_of_two_scales_are_a_checkerboard(make) -> None:
    """Dinh et al. (2017), section 3.6: what is factored out of one channel are the pixels of one colour."""
    board = torch.arange(8)[:, None] + torch.arange(8)
    assert torch.equal(latent_depths(make("packed")[0].flow)[0], (board + 1) % 2)


@pytest.mark.parametrize("name", ["realnvp", "packed", "glow"])
def test_what_is_factored_out_is_no_longer_computed_with(name: str, make) -> None:
    """Latents of a depth do not depend on the weights of deeper scales: these are changed, and those stay."""
    model, _ = make(name)
    depths, x = latent_depths(model.flow), torch.rand(3, 1, 8, 8)
    before = model.flow.transforms.inv(x)
    scales = [module.bijection for module in model.modules() if type(module).__name__ == "FactorOut"]
    for depth in range(len(scales), 0, -1):
        for parameter in scales[depth - 1].parameters():
            parameter.data.add_(0.1)
        model.flow.transforms.clear_cache()
        changed = (model.flow.transforms.inv(x) != before).any(0)
        assert not changed[depths < depth].any()
        assert changed[depths >= depth].float().mean() > 0.8


@pytest.mark.parametrize("name", ["realnvp", "packed", "glow"])
def test_drawing_latents_anew(name: str, make, digits: Tensor) -> None:
    model, config = make(name)
    depths, z = latent_depths(model.flow), encode(model.flow, digits[:3], config)
    fresh = torch.randn_like(z)
    deepest = int(depths.max())
    assert torch.equal(decode(model.flow, drawn_anew(z, depths, 0, fresh), config), digits[:3].float())
    assert torch.equal(drawn_anew(z, depths, deepest + 1, fresh), fresh)
    for below in range(1, deepest + 1):
        mixed = drawn_anew(z, depths, below, fresh)
        assert torch.equal(mixed[:, depths >= below], z[:, depths >= below])
        assert torch.equal(mixed[:, depths < below], fresh[:, depths < below])
        assert (depths >= below).any()


def test_depths_that_a_later_layer_mixes_are_refused() -> None:
    shape = (1, 4, 4)
    layers = [*realnvp_transforms(shape, scales=1), *realnvp_transforms(shape, scales=2)]
    with pytest.raises(ValueError, match="computes with latents of several depths"):
        latent_depths(Flow(StandardNormal(shape), layers))


# --------------------------------------------------------------------------------------------- the larger image


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_a_larger_flow_has_the_same_weights(name: str, make) -> None:
    model, config = make(name)
    larger = enlarge(model, config, 2)
    state = larger.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert larger.sample((2,)).shape == (2, 1, 16, 16)
    assert not larger.training


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_the_original_size_has_the_same_density(name: str, make) -> None:
    model, config = make(name)
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(enlarge(model, config, 1).flow(x), model.flow(x))


def test_a_larger_flow_does_the_same_far_from_the_border(make) -> None:
    """Convolutions of 3 x 3: two steps of Glow on squeezed images reach a few pixels far."""
    model, config = make("glow", levels=1)
    z = torch.randn(1, 1, 32, 32)
    wide, part = enlarge(model, config, 4).flow, enlarge(model, config, 3).flow
    shifted = z[..., 8:, 8:]
    assert torch.allclose(wide.transforms(z)[..., 16:24, 16:24], part.transforms(shifted)[..., 8:16, 8:16], atol=1e-5)


def test_weights_of_positions_are_named(make) -> None:
    for name in ("nice", "flowpp"):
        model, config = make(name)
        found = depends_on_size(model, config)
        assert found in model.state_dict()
        with pytest.raises(ValueError, match=r"depends on the size of the images\. It works for RealNVP, Glow"):
            enlarge(model, config, 2)
    assert larger_configuration(config, 3)["event_shape"] == [1, 24, 24]


# ------------------------------------------------------------------------------------------------------ the files


def shows_something(path: Path) -> bool:
    """Tells whether a picture has contrast and more than a few grey values."""
    pixels = image.imread(path)[..., :3]
    return pixels.std() > 0.05 and len({*(pixels * 255).round().flatten().tolist()}) > 8


def test_all_pictures_of_an_image_flow(tmp_path: Path, drawn: dict[str, Tensor], digits: Tensor, capsys) -> None:
    pictures.main([str(OLD / "glow.safetensors"), "--show", "all", "--out", str(tmp_path), "--device", "cpu"])
    names = {"manifold", "temperatures", "compression", "extrapolation", "interpolation", "attribute"}
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.png" for name in names}
    assert all(shows_something(path) for path in tmp_path.iterdir())
    real = digits.float() / 16
    assert torch.equal(drawn["manifold"][[0, 2, 16, 18]], real[:4])
    assert torch.equal(drawn["compression"][:, 0], real[:8])
    assert torch.equal(drawn["interpolation"][:, [0, -1]], torch.stack([real[:8], real[8:16]], 1))
    threes = real[load_labels("digits", Path("none"))[2] == 3]
    assert torch.equal(drawn["attribute"][:, 4], threes[:8])
    assert latent_figures.AMOUNTS[4] == 0
    assert drawn["extrapolation"].shape == (16, 1, 16, 16)
    assert (drawn["temperatures"][:, 0] == drawn["temperatures"][0, 0]).all()
    printed = capsys.readouterr().out
    assert "left out: classes is drawn from a checkpoint of conditional.py" in printed
    assert "left out: line is drawn in two dimensions" in printed


def test_a_picture_does_not_depend_on_the_others(tmp_path: Path) -> None:
    for folder, names in (("a", ["temperatures", "compression"]), ("b", ["compression"])):
        pictures.main([str(OLD / "realnvp.safetensors"), "--show", *names, "--out", str(tmp_path / folder)])
    first, second = (tmp_path / folder / "compression.png" for folder in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_classes_of_a_conditional_flow(make, tmp_path: Path, drawn: dict[str, Tensor]) -> None:
    model, _ = make("glow", classes=10)
    with torch.no_grad():  # the base of one class has next to no variance
        model.flow.base.linear.weight[64:, 3] = -20.0
    save(model, tmp_path / "checkpoint.safetensors")
    arguments = [str(tmp_path / "checkpoint.safetensors"), "--device", "cpu", "--out", str(tmp_path / "out")]
    pictures.main([*arguments, "--show", "all"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"classes.png", "temperatures.png"}
    assert all(shows_something(path) for path in (tmp_path / "out").iterdir())
    assert drawn["classes"].shape == (10, 10, 1, 8, 8)
    assert drawn["temperatures"].shape == (10, 6, 1, 8, 8)
    spread = drawn["classes"].std(1).amax((1, 2, 3))
    assert spread[3] == 0
    assert spread[[label for label in range(10) if label != 3]].min() > 0.1
    with pytest.raises(SystemExit, match=r"compression is drawn from a flow without classes, but this one has 10\."):
        pictures.main([*arguments, "--show", "compression"])


def test_the_line_of_two_moons(tmp_path: Path) -> None:
    flow = two_moons.build({"couplings": 2, "hidden": [8]})
    save(flow, tmp_path / "flow.safetensors")
    arguments = [str(tmp_path / "flow.safetensors"), "--device", "cpu", "--out", str(tmp_path / "out")]
    pictures.main([*arguments, "--show", "line"])
    assert shows_something(tmp_path / "out" / "line.png")
    with pytest.raises(SystemExit, match=r"manifold is drawn from a flow of images, but this checkpoint is a Flow\."):
        pictures.main([*arguments, "--show", "manifold"])


# --------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("name", "show", "sentence"),
    [
        ("nice", "compression", r"one factors nothing out: all its latents are of one depth\.$"),
        ("nice", "extrapolation", r"needs weights for any size of image, but flow\.\S+ depends on it\. It works for"),
        ("realnvp", "classes", r"from a checkpoint of conditional\.py, but this flow has no classes\.$"),
        ("realnvp", "line", r"two dimensions, as from a checkpoint of two_moons\.py, but this flow has others\.$"),
    ],
)
def test_what_a_flow_does_not_allow_is_one_sentence(name: str, show: str, sentence: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(SystemExit, match=sentence):
        pictures.main([str(OLD / f"{name}.safetensors"), "--show", "temperatures", show, "--out", str(out)])
    assert not out.exists()  # before anything is drawn


def test_images_without_classes_have_no_attribute(make) -> None:
    model, config = make("realnvp")
    assert "but got folder:photos." in (why_not("attribute", model, {**config, "data": "folder:photos"}) or "")


def test_a_flow_of_a_table_has_no_picture(tmp_path: Path) -> None:
    save(Flow(StandardNormal(5), realnvp_transforms(5, couplings=2)), tmp_path / "flow.safetensors")
    with pytest.raises(SystemExit, match=r"No picture of this script can be drawn from .*flow\.safetensors, a Flow\."):
        pictures.main([str(tmp_path / "flow.safetensors"), "--show", "all", "--out", str(tmp_path / "out")])


def test_data_that_is_not_there_is_one_sentence(make, tmp_path: Path) -> None:
    model, config = make("realnvp")
    save(model, tmp_path / "checkpoint.safetensors")
    (tmp_path / "checkpoint.json").write_text(json.dumps({**config, "data": "mnist"}))
    arguments = [str(tmp_path / "checkpoint.safetensors"), "--show", "manifold", "--root", str(tmp_path / "nothing")]
    with pytest.raises(SystemExit, match=r"mnist is not in --root .*--download"):
        pictures.main([*arguments, "--out", str(tmp_path / "out")])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--show", "portrait"], "argument --show: invalid choice: 'portrait'"),
        (["--show", "attribute", "--from-class", "4", "--to-class", "4"], "must differ from --from-class"),
        (["--show", "attribute", "--to-class", "10"], "argument --to-class: must be from 0 to 9, but got 10"),
        (["--show", "extrapolation", "--times", "1"], "argument --times: must be at least 2, but got 1"),
        (["--show", "manifold", "--seed", "-1"], "argument --seed: must be from 0 to"),
    ],
)
def test_wrong_options(arguments: list[str], sentence: str, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        pictures.main([str(OLD / "glow.safetensors"), *arguments, "--out", str(tmp_path / "out")])
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_docstring_names_every_file() -> None:
    assert all(f"    {name}.png " in (pictures.__doc__ or "") for name in PICTURES)
