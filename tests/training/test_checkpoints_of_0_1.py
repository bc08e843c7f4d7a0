"""Files of version 0.1 hold weights alone: they fit the flows of this version, and give the densities of then.

For every family tests/checkpoints/ has the weights and the configuration that the image example of version 0.1 wrote,
and the log-densities that it computed.
"""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from pyro_realnvp import (
    MLP,
    ConvNet,
    Flow,
    GatedAttention,
    GatedConvs,
    ImageFlow,
    Logit,
    ResNet,
    StandardLogistic,
    StandardNormal,
    flowpp_dequantizer,
    flowpp_transforms,
    glow_transforms,
    load,
    nice_transforms,
    realnvp_transforms,
)

load_file = pytest.importorskip("safetensors.torch").load_file
FOLDER = Path(__file__).parents[1] / "checkpoints"
NAMES = ["flowpp", "glow", "nice", "realnvp", "realnvp-packed"]


def realnvp(shape, config):
    net = partial(ResNet, hidden=config["hidden"], blocks=config["blocks"], dropout=config["dropout"])
    return realnvp_transforms(shape, scales=config["scales"], net=net, packed=config.get("packed", False))


def nice(shape, config):
    net = partial(MLP, hidden=(config["hidden"],) * config["blocks"], activation=nn.ReLU)
    return nice_transforms(shape, couplings=config["couplings"], net=net)


def glow(shape, config):
    net = partial(ConvNet, hidden=config["hidden"])
    return glow_transforms(shape, levels=config["levels"], steps=config["steps"], net=net)


def attention(config, blocks):
    return partial(GatedAttention, hidden=config["hidden"], dropout=config["dropout"], blocks=blocks)


def flowpp(shape, config):
    net = attention(config, config["blocks"])
    return flowpp_transforms(shape, couplings=config["couplings"], components=config["components"], net=net)


def noise_of(shape, config):
    """The flow that dequantizes, or None where the noise is uniform."""
    noise = config.get("dequantization")
    if noise is None:
        return None
    transforms = flowpp_dequantizer(
        shape,
        couplings=noise["couplings"],
        components=config["components"],
        net=attention(config, noise["blocks"]),
        embedding=partial(GatedConvs, hidden=noise["context"], dropout=config["dropout"]),
    )
    return Flow(StandardNormal(shape), transforms)


FAMILIES = {"realnvp": realnvp, "nice": nice, "glow": glow, "flowpp": flowpp}


def build(config):
    shape = tuple(config["event_shape"])
    base = (StandardLogistic if config["flow"] == "nice" else StandardNormal)(shape)
    transforms = [*FAMILIES[config["flow"]](shape, config), Logit(config["alpha"]).inv]
    return ImageFlow(Flow(base, transforms), config["pixel_levels"], noise_of(shape, config))


# In float32 a sum of some hundred terms of both signs has an absolute error, in which the number of threads takes part.
ACCURACY = {"float32": {"rel": 1e-5, "abs": 5e-5}, "float64": {"rel": 1e-10}}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NAMES)
def test_the_weights_fit_and_give_the_densities_of_then(name, dtype):
    model = build(json.loads((FOLDER / f"{name}.json").read_text())).eval()
    expected = json.loads((FOLDER / f"{name}.expected.json").read_text())
    weights = load_file(FOLDER / f"{name}.safetensors")
    if model.dequantizer is None:
        model.load_state_dict(weights)  # strictly
    else:  # the dequantizer of 0.1 was built the other way round: its weights would mean another distribution
        with pytest.raises(RuntimeError, match=r"dequantizer\.transforms.0.bijection.bijection.bijection"):
            model.load_state_dict(weights)
        model.flow.load_state_dict({key[5:]: value for key, value in weights.items() if key.startswith("flow.")})
    torch.manual_seed(5)
    y, suffix = (torch.randint(0, 17, (3, 1, 8, 8)) + 0.5) / 17, ""
    if dtype == "float64":
        model, y, suffix = model.double(), y.double(), " in float64"
    with torch.no_grad():
        assert model.flow(y).tolist() == pytest.approx(expected["flow" + suffix], **ACCURACY[dtype])


@pytest.mark.parametrize("name", NAMES)
def test_load_says_that_there_is_no_configuration(name):
    with pytest.raises(ValueError, match="has weights but no configuration") as caught:
        load(FOLDER / f"{name}.safetensors")
    assert name in str(caught.value)
