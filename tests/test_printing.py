"""What print(flow) shows: the number of parameters and the layers, on a screen or two, in any state of the flow."""

import re

import pytest
import torch
from torch import nn
from torch.distributions import ExpTransform

from pyro_realnvp import (
    Flow,
    ImageFlow,
    Logit,
    Scale,
    StandardNormal,
    flowpp_dequantizer,
    flowpp_transforms,
    glow_transforms,
    nice_transforms,
    realnvp_transforms,
)

from zoo import mlp

IMAGE = (3, 32, 32)
DEFAULTS = {
    f"{build.__name__}-{len(shape)}": (build, shape)
    for build in (realnvp_transforms, nice_transforms, glow_transforms, flowpp_transforms)
    for shape in ((8,), IMAGE)
} | {"flowpp_dequantizer": (flowpp_dequantizer, IMAGE)}


def on_meta(build, shape):
    with torch.device("meta"):
        return Flow(StandardNormal(shape), build(shape))


def vector(**kwargs):
    return Flow(StandardNormal(2), realnvp_transforms(2, couplings=3, net=mlp, **kwargs))


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_default_flow_fits_on_two_screens(name):
    flow = on_meta(*DEFAULTS[name])
    lines = repr(flow).splitlines()
    assert len(lines) <= 130
    assert max(map(len, lines)) <= 120
    count = sum(parameter.numel() for parameter in flow.parameters())
    assert lines[0] == f"Flow of events {tuple(flow.event_shape)}, {count:,} parameters"


def test_a_line_for_every_layer_from_the_data_side_and_the_base():
    flow = Flow(StandardNormal(2), [*realnvp_transforms(2, couplings=2, net=mlp), Scale((2,)), ExpTransform()])
    names = [line.split()[0] for line in repr(flow).splitlines()[1:]]
    assert names == ["Lift(ExpTransform).inv", "Scale.inv", "SplitCoupling", "SplitCoupling", "StandardNormal"]


def test_frozen_parameters_are_counted_and_said_to_be_frozen():
    flow = vector()
    flow.transforms[0].requires_grad_(False)
    trainable = sum(parameter.numel() for parameter in flow.parameters() if parameter.requires_grad)
    heading, *lines = repr(flow).splitlines()
    assert heading.endswith(f"of which {trainable:,} are trainable")
    assert lines[0].split()[-1] == lines[2].split()[-1] != "0"
    assert flow.summary().splitlines()[2].split()[-1] == "0"  # the summary counts trainable ones


def test_a_pattern_that_repeats_stands_once_in_a_deep_flow():
    flow = Flow(StandardNormal(4), realnvp_transforms(4, couplings=100, net=mlp))
    assert re.search(r"100 times: +[\d,]+\n +SplitCoupling", repr(flow))
    assert len(flow.summary().splitlines()) == 101


def test_a_deep_flow_without_a_pattern_is_cut():
    layers = [
        nets
        for width in range(1, 101)
        for nets in realnvp_transforms(
            4, couplings=1, net=lambda i, o, width=width, **k: mlp(i, o, hidden=(width,), **k)
        )
    ]
    flow = Flow(StandardNormal(4), layers)
    assert "... 41 more lines" in repr(flow)
    assert len(repr(flow).splitlines()) <= 130


def test_the_whole_tree_is_that_of_the_transforms():
    tree = repr(vector().transforms)
    assert "conditioner" in tree
    assert "Linear" in tree


def test_an_image_flow():
    density = Flow(StandardNormal((1, 2, 2)), [*nice_transforms((1, 2, 2), net=mlp), Logit(0.05).inv])
    text = repr(ImageFlow(density, levels=16, dequantizer=Flow(StandardNormal((1, 2, 2)), [Logit(0.0).inv])))
    count = sum(parameter.numel() for parameter in density.parameters())
    assert f"levels=16, {count:,} parameters" in text
    assert "(flow): Flow of events (1, 2, 2)" in text
    assert "(dequantizer): Flow of events (1, 2, 2), 0 parameters" in text


def test_a_flow_inside_of_another_module():
    assert "(1): Flow of events (2,)" in repr(nn.Sequential(nn.Identity(), vector()))


class Unreadable(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.UninitializedParameter()

    @property
    def event_shape(self):
        raise RuntimeError("This has no shape.")


def test_printing_never_fails():
    flow = vector()
    with torch.no_grad():
        next(flow.parameters()).fill_(float("nan"))
    assert repr(flow) == repr(vector())  # no value is looked at
    del flow.transforms
    assert "base" in repr(flow)
    flow.transforms = nn.Identity()
    assert "Identity" in repr(flow)
    flow = vector()
    flow.base = Unreadable()
    assert "Unreadable" in repr(flow)
    assert "Flow" in repr(Flow.__new__(Flow))  # as a debugger sees it before __init__
    half = ImageFlow.__new__(ImageFlow)
    nn.Module.__init__(half)
    assert "levels=None" in repr(half)


def test_printing_changes_nothing():
    flow = vector()
    before = [dict(vars(module)) for module in flow.modules()]
    repr(flow)
    assert all(vars(module) == kept for module, kept in zip(flow.modules(), before, strict=True))
