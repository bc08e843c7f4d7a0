"""Files of flows: what is written by one process is the flow in another, and nothing else is executed."""

import copy
import os
import pickle
import subprocess
import sys
from functools import partial

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro.distributions.transforms import affine_coupling
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributions import AffineTransform, ReshapeTransform, SigmoidTransform, biject_to, constraints

import pyro_realnvp
from pyro_realnvp import (
    MLP,
    Affine,
    AttentiveConvs,
    AutoRealNVP,
    Chain,
    ConvNet,
    DiagonalNormal,
    EmbedContext,
    FixedAffine,
    FixedLowRank,
    Flow,
    GatedAttention,
    GatedConvs,
    ImageFlow,
    Lift,
    Logit,
    MaskedCoupling,
    MixtureBase,
    Permute,
    ResNet,
    Scale,
    SplitCoupling,
    StandardLogistic,
    StandardNormal,
    StudentTBase,
    alternating,
    flowpp_dequantizer,
    flowpp_transforms,
    glow_transforms,
    load,
    nice_transforms,
    realnvp_transforms,
    save,
)
from pyro_realnvp._runtime.construction import MARKED
from pyro_realnvp.testing import randomize
from pyro_realnvp.training.files import write_file

from zoo import Sinh, alone

SHAPE = (1, 4, 4)
mlp = partial(MLP, hidden=(8,), activation=nn.ReLU)
resnet = partial(ResNet, hidden=2, blocks=1)
convnet = partial(ConvNet, hidden=4)
attention = partial(GatedAttention, hidden=4, blocks=1, heads=2)


def vectors(transforms, *, dim=3, context=0, base=StandardNormal):
    options = {"context_shape": context} if base is DiagonalNormal else {}
    return Flow(base(dim, **options), transforms)


def images(transforms, dequantizer=None, base=StandardNormal):
    noise = None if dequantizer is None else Flow(StandardNormal(SHAPE), dequantizer)
    return ImageFlow(Flow(base(SHAPE), [*transforms, Logit(0.05).inv]), 17, noise)


def of_both():
    """A flow whose noise shares nothing with the density."""
    dequantizer = flowpp_dequantizer(
        SHAPE, couplings=1, components=2, net=attention, embedding=partial(GatedConvs, hidden=2)
    )
    return images(flowpp_transforms(SHAPE, couplings=(1, 1, 1), components=2, net=attention), dequantizer)


FLOWS = {
    "realnvp": lambda: vectors(realnvp_transforms(3)),
    "realnvp-context": lambda: vectors(realnvp_transforms(3, couplings=2, net=mlp, context_shape=2)),
    "realnvp-1": lambda: vectors(alone(realnvp_transforms), dim=1),
    "realnvp-learned-base": lambda: vectors(
        realnvp_transforms(3, couplings=2, net=mlp, context_dim=2), context=2, base=DiagonalNormal
    ),
    "heavy-tails": lambda: Flow(
        StudentTBase(3, df=4, context_shape=2), realnvp_transforms(3, couplings=2, net=mlp, context_shape=2)
    ),
    "several-modes": lambda: Flow(
        MixtureBase(3, components=4, context_dim=2), realnvp_transforms(3, couplings=2, net=mlp, context_shape=2)
    ),
    "realnvp-image": lambda: images(realnvp_transforms(SHAPE, net=resnet)),
    "realnvp-image-context": lambda: images(realnvp_transforms(SHAPE, net=resnet, context_shape=(2, 4, 4))),
    "realnvp-packed": lambda: images(realnvp_transforms(SHAPE, net=resnet, packed=True)),
    "nice": lambda: vectors(nice_transforms(3, net=mlp), base=StandardLogistic),
    "nice-context": lambda: vectors(nice_transforms(3, net=mlp, context_shape=(2,))),
    "nice-image": lambda: images(nice_transforms(SHAPE, net=mlp), base=StandardLogistic),
    "glow": lambda: vectors(glow_transforms(3, steps=2, net=mlp, plu=True, transformer=Affine)),
    "glow-context": lambda: vectors(glow_transforms(3, steps=2, net=mlp, context_shape=2)),
    "glow-image": lambda: images(glow_transforms(SHAPE, levels=2, steps=1, net=convnet)),
    "glow-image-context": lambda: images(glow_transforms(SHAPE, levels=2, steps=1, net=convnet, context_shape=3)),
    "flowpp": lambda: vectors(flowpp_transforms(3, couplings=2, components=2, net=mlp)),
    "flowpp-context": lambda: vectors(flowpp_transforms(3, couplings=2, components=2, net=mlp, context_shape=2)),
    "flowpp-image": of_both,
    "flowpp-image-context": lambda: images(
        flowpp_transforms(SHAPE, couplings=(1, 1, 1), components=2, net=attention, context_shape=SHAPE)
    ),
    "flowpp-imagenet": lambda: images(
        flowpp_transforms(SHAPE, couplings=1, components=2, net=partial(attention, weight_norm=True), pointwise=False),
        flowpp_dequantizer(
            SHAPE,
            couplings=1,
            components=2,
            net=attention,
            embedding=partial(AttentiveConvs, size=(4, 2), hidden=4, blocks=1, heads=2),
        ),
    ),
    "by-hand": lambda: vectors(
        [
            FixedAffine(torch.randn(3), torch.rand(3) + 0.1),
            FixedLowRank(torch.randn(3), torch.rand(3) + 0.1, torch.eye(3)[:, :1], torch.ones(1)),
            Permute((3,), [2, 0, 1]),
            SplitCoupling((3,), MLP(2, 2), Affine()).inv,
            MaskedCoupling(alternating((3,)), MLP(3, 6, hidden=[4]), Affine(nn.Tanh())),
            Chain([Scale((3,)), AffineTransform(1.0, 2.0)]).inv,
        ]
    ),
    "part-of-a-list": lambda: vectors([*realnvp_transforms(3)[2:5], *realnvp_transforms(3, couplings=1)]),
    "shared": lambda: vectors([layer for layer in realnvp_transforms(3, couplings=2) for _ in range(2)]),
    "embedded-context": lambda: vectors(
        [
            EmbedContext(
                Chain(realnvp_transforms(3, context_shape=2)), nn.Sequential(nn.Linear(5, 2), nn.ReLU()), (5,)
            ),
            biject_to(constraints.interval(-1.0, 1.0)),
        ]
    ),
    "lifted": lambda: vectors(
        [
            Lift(ReshapeTransform((3,), (3, 1, 1)), (3,)),
            Lift(ReshapeTransform((3, 1, 1), (3,)), (3, 1, 1)),
            SigmoidTransform(),
        ]
    ),
    "double": lambda: vectors(realnvp_transforms(3)).double(),
}


def drawn(flow, seed=0):
    """Events that a flow gives a density to, and a context if it takes one."""
    generator = torch.Generator().manual_seed(seed)
    density = flow.flow if isinstance(flow, ImageFlow) else flow
    shape = density.transforms.context_shape
    context = None if shape is None else torch.randn(4, *shape, generator=generator)
    if isinstance(flow, ImageFlow):
        return torch.randint(0, 17, (4, *flow.event_shape), generator=generator), context
    x = 0.8 * torch.rand(4, *flow.event_shape, generator=generator).to(next(iter(flow.buffers())).dtype)
    return x, context


@torch.no_grad()
def log_probs(flow):
    x, context = drawn(flow)
    torch.manual_seed(1)  # of the noise of dequantization
    return flow(x, context)


IN_ANOTHER_PROCESS = """
import sys, torch
torch.set_num_threads(1)  # as in the tests: sums of convolutions depend on it
sys.path[:0] = [{tests!r}, {training!r}]
import pyro_realnvp
from test_checkpoint import log_probs
for path in sys.argv[1:]:
    flow = pyro_realnvp.load(path)
    assert not flow.training
    torch.save(log_probs(flow), path + ".log_probs")
"""


def test_every_flow_is_the_same_to_the_last_bit_in_another_process(tmp_path):
    expected = {}
    for name, make in FLOWS.items():
        torch.manual_seed(0)
        flow = make()
        randomize(flow)
        for module in flow.modules():
            if hasattr(module, "running_mean"):
                module.running_mean.copy_(0.1 * torch.randn_like(module.running_mean))
        path = str(tmp_path / f"{name}.safetensors")
        save(flow, path)
        expected[path] = log_probs(flow.eval())
    here = os.path.dirname(__file__)
    script = IN_ANOTHER_PROCESS.format(tests=os.path.dirname(here), training=here)
    subprocess.run([sys.executable, "-c", script, *expected], check=True)
    for path, value in expected.items():
        assert torch.equal(torch.load(path + ".log_probs"), value), path


def test_a_guide_has_a_flow_that_can_be_saved(tmp_path):
    def model():
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
        with pyro.plate("three", 3):
            pyro.sample("x", dist.Normal(1.0, scale))

    guide = AutoRealNVP(model)
    guide.initialize()
    randomize(guide.flow.transforms[:3])
    save(guide.flow, tmp_path / "guide.safetensors")
    flow = load(tmp_path / "guide.safetensors")
    assert isinstance(flow, Flow)
    x = torch.randn(5, 4)
    assert torch.equal(flow(x), guide.flow(x))
    torch.testing.assert_close(flow(x), guide.get_posterior().log_prob(x))


def test_a_trained_copy_is_saved_too(tmp_path):
    flow = FLOWS["realnvp-image"]()
    for copied in (copy.deepcopy(flow), pickle.loads(pickle.dumps(flow))):
        save(copied, tmp_path / "flow.safetensors")
        assert torch.equal(log_probs(load(tmp_path / "flow.safetensors")), log_probs(flow.eval()))


def test_a_lambda_does_not_hinder_pickling():
    flow = vectors(realnvp_transforms(3, net=lambda *args, **kwargs: mlp(*args, **kwargs)))
    copy.deepcopy(flow)
    pickle.loads(pickle.dumps(flow))


def lambda_net(*args, **kwargs):
    return mlp(*args, **kwargs)


class OwnNetwork(MLP):
    """A user's subclass of a public class, which the public class cannot stand for."""


@pytest.mark.parametrize(
    ("make", "culprit"),
    [
        (lambda: vectors(realnvp_transforms(3, net=lambda *a, **k: mlp(*a, **k))), "<lambda>.*'net' of realnvp_tr"),
        (lambda: vectors(realnvp_transforms(3, net=lambda_net)), "test_checkpoint.lambda_net.*'net'"),
        (lambda: vectors(realnvp_transforms(3, net=partial(OwnNetwork, hidden=(3,)))), "OwnNetwork.*'net'"),
        (
            lambda: vectors(realnvp_transforms(3, net=partial(MLP, activation=lambda: nn.ReLU()))),
            "lambda.*'activation'",
        ),
        (lambda: vectors([Sinh(3)]), "zoo.Sinh.*'transforms' of Flow"),
        (lambda: vectors([SplitCoupling((3,), OwnNetwork(2, 2), Affine())]), "OwnNetwork.*'conditioner' of SplitC"),
        (lambda: vectors([affine_coupling(3, [4])]), "AffineCoupling.*'transforms'"),
        (lambda: nn.ModuleList([vectors(realnvp_transforms(3))]), "torch.nn.modules.container.ModuleList"),
        (lambda: FLOWS["realnvp-context"]().transforms.condition(torch.zeros(2)), "Conditioned"),
    ],
)
def test_what_cannot_be_written_down_is_refused_by_name(make, culprit, tmp_path):
    with pytest.raises(ValueError, match=culprit):
        save(make(), tmp_path / "flow.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_function_of_the_users_makes_the_flow_again(tmp_path):
    def build(size):
        return vectors([Sinh(size)], dim=size)

    flow = build(3)
    randomize(flow)
    save(flow, tmp_path / "flow.safetensors", build={"size": 3})
    with pytest.raises(ValueError, match=r"was saved with build=arguments; pass load\(..., build=function\)"):
        load(tmp_path / "flow.safetensors")
    assert torch.equal(load(tmp_path / "flow.safetensors", build=build)(torch.ones(3)), flow(torch.ones(3)))
    with pytest.raises(ValueError, match="another architecture than build makes"):
        load(tmp_path / "flow.safetensors", build=lambda size: vectors(realnvp_transforms(size, net=mlp)))
    with pytest.raises(ValueError, match="much larger than the weights, which are 1 tensors of 1 numbers: a Linear"):
        load(tmp_path / "flow.safetensors", build=lambda size: vectors(realnvp_transforms(size)))
    with pytest.raises(ValueError, match="plain JSON"):
        save(flow, tmp_path / "flow.safetensors", build={"size": torch.ones(())})
    save(vectors(realnvp_transforms(3)), tmp_path / "own.safetensors")
    with pytest.raises(ValueError, match="describes its flow itself"):
        load(tmp_path / "own.safetensors", build=build)


def with_config(path, config):
    """Gives a file another configuration, and the checksum that belongs to it."""
    if isinstance(config, str):
        save_file(load_file(path), path, {"pyro_realnvp": config})
    else:
        write_file(path, load_file(path), config)


def configuration(nodes, root=-1):
    return {"format": 2, "dtype": "float32", "description": {"nodes": nodes, "root": root}}


def flow_with(base):
    return {"call": "Flow", "arguments": {"base": base, "transforms": []}}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "no JSON"),
        ("[]", "no JSON object"),
        ("[" * 100_000, "no JSON"),
        ({}, "format None"),
        ({"format": 3, "dtype": "float32"}, "format 3"),
        (
            {**configuration([{"call": "flowpp_dequantizer", "arguments": {}}]), "format": 1},
            "dequantizer of Flow.. from before version 0.2",
        ),
        ({"format": 2, "dtype": "object"}, "dtype 'object'"),
        ({"format": 2, "dtype": "float32"}, "describes no flow"),
        (configuration([{"call": "eval", "arguments": {"source": "1"}}]), "'eval', which is no class or function"),
        (configuration([{"call": "os.system", "arguments": {"command": "touch x"}}]), "'os.system', which is no"),
        (configuration([{"call": "save", "arguments": {}}]), "'save', which is no"),
        (configuration([flow_with({"partial": "exec", "args": [], "arguments": {}})]), "'exec'"),
        (configuration([flow_with({"name": "exec"})]), "'exec'"),
        (configuration([{"torch": "Module", "arguments": {}}]), "not known"),
        (configuration([{"torch": "ReLU", "arguments": {"function": 1}}]), "describes no flow"),
        (configuration([{"inverse": 0}]), "describes no flow"),
        (configuration([{"item": [5, 0]}]), "describes no flow"),
        (configuration([flow_with({"tensor": "zero"})]), "describes no flow"),
        (configuration([flow_with({"a": 1})]), "not known"),
        (configuration([{"call": "realnvp_transforms", "arguments": {"event_shape": 3}}], root=0), "cannot be made"),
        (configuration([{"call": "StandardNormal", "arguments": {"event_shape": 3}}]), "another architecture"),
        (configuration(7), "describes no flow"),
    ],
)
def test_a_hostile_configuration_makes_nothing(config, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "flow.safetensors"
    save(vectors(realnvp_transforms(3)), path)
    with_config(path, config)
    with pytest.raises(ValueError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["flow.safetensors"]


def test_files_that_are_no_flow(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file"):
        load(tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        load(tmp_path)
    with pytest.raises(IsADirectoryError, match="is a folder; save needs the path of a file"):
        save(vectors(realnvp_transforms(3)), tmp_path)
    for wrong in ([], {"a": torch.ones(())}, "flow"):
        with pytest.raises(ValueError, match="save needs a Module, such as a Flow"):
            save(wrong, tmp_path / "flow.safetensors")
    with pytest.raises(ValueError, match="mapping of arguments, but got function"):
        save(vectors(realnvp_transforms(3)), tmp_path / "flow.safetensors", build=vectors)
    path = tmp_path / "flow.safetensors"
    save(vectors(realnvp_transforms(3)), path)
    whole = path.read_bytes()
    for torn in (b"", whole[:100], whole[:-1]):
        path.write_bytes(torn)
        with pytest.raises(ValueError, match=r"truncated or no safetensors file.*torch\.save is read by torch\.load"):
            load(path)
    save_file(vectors(realnvp_transforms(3)).state_dict(), path)
    with pytest.raises(ValueError, match=r"weights but no configuration.*version 0.1.*load_state_dict"):
        load(path)


def test_an_earlier_file_survives_a_failed_save(tmp_path, monkeypatch):
    path = tmp_path / "flow.safetensors"
    flow = vectors(realnvp_transforms(3))
    save(flow, path)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    randomize(flow)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(flow, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["flow.safetensors"]


def test_mixed_dtypes_are_refused(tmp_path):
    flow = vectors(realnvp_transforms(3))
    flow.transforms[0].double()
    with pytest.raises(ValueError, match=r"one floating point dtype, but got torch.float32, torch.float64"):
        save(flow, tmp_path / "flow.safetensors")


def test_without_safetensors_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'pyro-realnvp\[train\]'"):
        save(vectors(realnvp_transforms(3)), tmp_path / "flow.safetensors")


def test_every_public_class_of_layers_is_known():
    layers = [
        kind
        for name in pyro_realnvp.__all__
        if isinstance(kind := getattr(pyro_realnvp, name), type) and issubclass(kind, nn.Module)
    ]
    abstract = {"Bijection", "Reversible", "Base", "Conditioner", "Transformer"}
    made_by_others = {"Inverse", "Conditioned", "AutoRealNVP"}
    assert {kind.__name__ for kind in layers} - MARKED.keys() == abstract | made_by_others
