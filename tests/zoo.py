"""Every component and every builder once, in small sizes: what the laws are checked on."""

import warnings
from functools import cache, partial

import torch
from pyro.distributions.transforms import affine_coupling, conditional_affine_coupling
from torch import nn
from torch.distributions import (
    AffineTransform,
    ExpTransform,
    ReshapeTransform,
    SigmoidTransform,
    TanhTransform,
)

from pyro_realnvp import (
    MLP,
    ActNorm,
    Additive,
    Affine,
    BatchNorm,
    Bijection,
    Chain,
    CircularAffine,
    CircularSpline,
    ConvNet,
    CoordinateFeatures,
    Elementwise,
    FactorOut,
    FixedAffine,
    FixedLowRank,
    GatedAttention,
    GatedConvs,
    Halves,
    IntervalSpline,
    InvertibleConv1x1,
    Lift,
    Logit,
    MaskedCoupling,
    MixtureLogistic,
    PerCoordinate,
    Permute,
    RationalQuadratic,
    ResNet,
    Sandwich,
    Scale,
    SigmoidLogScale,
    SoftClipLogScale,
    SplitCoupling,
    Squeeze,
    SqueezeCheckerboard,
    SqueezeColumns,
    TanhLogScale,
    alternating,
    channelwise,
    checkerboard,
    flowpp_dequantizer,
    flowpp_transforms,
    glow_transforms,
    nice_transforms,
    realnvp_transforms,
    rebuild,
    recompute,
    spline_transforms,
)
from pyro_realnvp.inference.affine_couplings import AffineCouplings
from pyro_realnvp.inference.default_flow import default_transforms
from pyro_realnvp.inference.fixed_mixed import FixedMixed
from pyro_realnvp.inference.learned_affine import LearnedAffine
from pyro_realnvp.inference.quantile_spline import QuantileSpline
from pyro_realnvp.networks.convnet import ZeroConv

mlp = partial(MLP, hidden=(8,))
resnet = partial(ResNet, hidden=4, blocks=1)
convnet = partial(ConvNet, hidden=4)
attention = partial(GatedAttention, hidden=4, blocks=1, heads=2)
calm_attention = partial(attention, dropout=0.0)
features = partial(GatedConvs, hidden=2, blocks=1, dropout=0.0)
small_flowpp = partial(flowpp_transforms, couplings=(1, 1, 1), components=2, net=calm_attention)
small_glow = partial(glow_transforms, levels=2, steps=1, net=convnet)


def alone(build, **options):
    """Builds the layers of one coordinate, without the warning that affine ones are no more than an affine map."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*one affine map.*")
        return build(1, **options)


def prime(flow: nn.Module) -> nn.Module:
    """Moves all running statistics away from their start, where normalization is nearly the identity."""
    for module in flow.modules():
        if hasattr(module, "running_mean"):
            module.running_mean.copy_(0.5 * torch.randn_like(module.running_mean))
            module.running_var.copy_(0.5 + 1.5 * torch.rand_like(module.running_var))
    return flow


def split(shape, *, net=None, transformer=None, swap=False, **kwargs):
    """A SplitCoupling with a network of the right size."""
    transformer = Affine() if transformer is None else transformer
    net = (mlp if len(shape) == 1 else resnet) if net is None else net
    changed = shape[0] - shape[0] // 2 if swap else shape[0] // 2
    conditioner = net(shape[0] - changed, transformer.channels(changed), **kwargs)
    return prime(SplitCoupling(shape, conditioner, transformer, swap=swap))


def masked(mask, *, net=None, transformer=None, **kwargs):
    """A MaskedCoupling with a network of the right size."""
    transformer = Affine() if transformer is None else transformer
    if net is None:
        net = mlp if mask.dim() == 1 else partial(resnet, mask=mask)
    conditioner = net(mask.shape[0], transformer.channels(mask.shape[0]), **kwargs)
    return prime(MaskedCoupling(mask, conditioner, transformer))


def reading(circular=(), intervals=()):
    """Builds networks that read some coordinates as angles, and some in an interval."""

    def build(in_channels, out_channels, **kwargs):
        network = mlp(in_channels + len(circular), out_channels, **kwargs)
        return CoordinateFeatures(network, in_channels, circular=circular, intervals=intervals)

    return build


def calm(flow: nn.Module) -> nn.Module:
    """Keeps rotations and gains as they start. At random in every layer of a deep flow, they leave it ill-conditioned,
    and round trips lose their digits; the components alone are checked with random ones.
    """
    for module in list(flow.modules()):
        key = "weight" if type(module).__name__ == "_Plain" else "gain"
        if type(module).__name__ in ("_Plain", "ZeroConv"):
            module.register_buffer(key, module._parameters.pop(key).detach())
    return flow


def squeezed(f: Bijection, *, ordered: bool = False) -> Sandwich:
    """A bijection of squeezed images as one of images, with a context map squeezed too."""

    def before(shape: torch.Size) -> tuple[int, int, int]:
        return shape[0] // 4, 2 * shape[1], 2 * shape[2]

    context = Squeeze(before(f.context_shape)) if f.context_shape is not None and len(f.context_shape) == 3 else None
    return Sandwich(Squeeze(before(f.event_shape), ordered=ordered), f, context=context)


class _Flat(nn.Module):
    """An image network made of an MLP, as a user might write one without a thought about flows."""

    def __init__(self, shape, out_channels):
        super().__init__()
        self.shape = (out_channels, *shape[1:])
        self.mlp = mlp(torch.Size(shape).numel(), torch.Size(self.shape).numel())

    def forward(self, x):
        return self.mlp(x.flatten(-3)).unflatten(-1, self.shape)


class Sinh(Bijection):
    """A user's own layer with one learned number: y = sinh(a x) / a, with a = exp(log_a)."""

    def __init__(self, size):
        super().__init__((size,))
        self.log_a = nn.Parameter(torch.zeros(()))

    def forward_and_log_det(self, x, context=None):
        a = self.log_a.exp()
        return (a * x).sinh() / a, (a * x).cosh().log().sum(-1)

    def inverse_and_log_det(self, y, context=None):
        a = self.log_a.exp()
        return (a * y).asinh() / a, -0.5 * (a * y).square().log1p().sum(-1)


def several(count):
    """A transformer of angles, real numbers and numbers in an interval, of ``count`` coordinates."""
    circular, real, interval = CircularSpline(3), Affine(), IntervalSpline(3.0, 5.0, 3)
    return PerCoordinate([circular, real, interval, circular, real][:count])


def initialized(norm):
    """An ActNorm that has seen a batch."""
    norm.initialize(2 + 3 * torch.randn(16, *norm.event_shape))
    return norm


class SumOfContext(Bijection):
    """Shifts by the sum of a context that it does not own: y = x + sum(context)."""

    def __init__(self, size, context_dim):
        super().__init__((size,))
        self.context_dim = context_dim

    @property
    def context_shape(self):
        return torch.Size((self.context_dim,))

    def forward_and_log_det(self, x, context=None):
        return self._shifted(x, context, 1)

    def inverse_and_log_det(self, y, context=None):
        return self._shifted(y, context, -1)

    def _shifted(self, x, context, sign):
        if context is None or context.shape[-1] != self.context_dim:
            raise ValueError(f"SumOfContext needs a context of length {self.context_dim}, but got {context}.")
        return x + sign * context.sum(-1, keepdim=True), x.new_zeros(x.shape[:-1])


SCALES = {
    "tanh": TanhLogScale,
    "sigmoid": SigmoidLogScale,
    "softclip": SoftClipLogScale,
}

ZOO = {
    # couplings of vectors
    "split-2": lambda: split((2,)),
    "split-odd": lambda: split((5,)),
    "split-odd-swap": lambda: split((5,), swap=True),
    "split-additive": lambda: split((4,), transformer=Additive()),
    "split-context": lambda: split((4,), context_dim=3),
    "split-context-map": lambda: split((4,), context_shape=(2, 2, 2)),
    "masked-2": lambda: masked(alternating((2,))),
    "masked-odd": lambda: masked(alternating((5,), flip=True)),
    "masked-additive": lambda: masked(alternating((4,)), transformer=Additive()),
    "masked-context": lambda: masked(alternating((4,)), context_dim=3),
    **{f"scale-{name}": lambda scale=scale: split((3,), transformer=Affine(scale())) for name, scale in SCALES.items()},
    "scale-function": lambda: masked(alternating((3,)), transformer=Affine(torch.tanh)),
    # couplings of images
    "checkerboard": lambda: masked(checkerboard((1, 4, 4))),
    "checkerboard-wide": lambda: masked(checkerboard((2, 2, 5), flip=True)),
    "checkerboard-context": lambda: masked(checkerboard((1, 4, 2)), context_dim=3),
    "checkerboard-context-map": lambda: masked(checkerboard((1, 4, 2)), context_shape=(2, 4, 2)),
    "channelwise": lambda: masked(channelwise((4, 2, 2)), net=partial(resnet, mask=None)),
    "split-image": lambda: split((2, 3, 4)),
    "split-image-swap": lambda: split((4, 2, 2), swap=True, transformer=Affine(SigmoidLogScale())),
    "split-many-channels": lambda: split((18, 1, 2), transformer=Additive()),
    "split-image-context": lambda: split((2, 4, 2), context_dim=3),
    "split-image-context-map": lambda: split((2, 4, 2), context_shape=(3, 4, 2)),
    "split-own-network": lambda: SplitCoupling((2, 2, 2), _Flat((1, 2, 2), 2), Affine()),
    # mixtures of logistics
    "mixture": lambda: split((4,), transformer=MixtureLogistic(3)),
    "mixture-1": lambda: split((3,), transformer=MixtureLogistic(1)),
    "mixture-32": lambda: split((2,), transformer=MixtureLogistic(32)),
    "mixture-context": lambda: split((4,), transformer=MixtureLogistic(2), context_dim=3),
    "mixture-masked": lambda: masked(alternating((5,)), transformer=MixtureLogistic(2)),
    "mixture-image": lambda: split((4, 2, 3), transformer=MixtureLogistic(2), swap=True),
    "mixture-checkerboard": lambda: masked(checkerboard((1, 2, 4)), transformer=MixtureLogistic(3)),
    "mixture-elementwise": lambda: Elementwise((2, 1, 2), MixtureLogistic(3)),
    "mixture-elementwise-1": lambda: Elementwise((1,), MixtureLogistic(8)),
    "mixture-inverse": lambda: split((4,), transformer=MixtureLogistic(3)).inv,
    # splines
    "spline": lambda: split((4,), transformer=RationalQuadratic(4)),
    "spline-2": lambda: split((3,), transformer=RationalQuadratic(2)),
    "spline-narrow": lambda: split((3,), transformer=RationalQuadratic(5, bound=0.5, min_slope=0.1)),
    "spline-context": lambda: split((4,), transformer=RationalQuadratic(3), context_dim=3),
    "spline-masked": lambda: masked(alternating((5,)), transformer=RationalQuadratic(3)),
    "spline-image": lambda: split((4, 2, 3), transformer=RationalQuadratic(3), swap=True),
    "spline-checkerboard": lambda: masked(checkerboard((1, 2, 4)), transformer=RationalQuadratic(4)),
    "spline-elementwise": lambda: Elementwise((2, 1, 2), RationalQuadratic(4)),
    "spline-elementwise-1": lambda: Elementwise((1,), RationalQuadratic(8)),
    "spline-inverse": lambda: split((4,), transformer=RationalQuadratic(3)).inv,
    # angles and numbers in an interval
    "circular": lambda: split((4,), net=reading([0, 1]), transformer=CircularSpline(4)),
    "circular-2": lambda: split((3,), net=reading([0, 1]), transformer=CircularSpline(2)),
    "circular-context": lambda: split((4,), net=reading([0, 1]), transformer=CircularSpline(3), context_dim=3),
    "circular-masked": lambda: masked(alternating((5,)), net=reading(range(5)), transformer=CircularSpline(3)),
    "circular-elementwise": lambda: Elementwise((2, 1, 2), CircularSpline(4)),
    "circular-elementwise-1": lambda: Elementwise((1,), CircularSpline(8)),
    "circular-inverse": lambda: split((4,), net=reading([0, 1]), transformer=CircularSpline(3)).inv,
    "circular-quantile": lambda: split((4,), net=reading([0, 1]), transformer=QuantileSpline()),
    "circular-quantile-elementwise": lambda: Elementwise((2, 1, 2), QuantileSpline(3)),
    "circular-affine": lambda: split((4,), net=reading([0, 1]), transformer=CircularAffine()),
    "circular-affine-function": lambda: Elementwise((2, 1, 2), CircularAffine(torch.tanh)),
    "interval": lambda: split((4,), net=reading(intervals=[(0, 0.0, 1.0), (1, 0, 1)]), transformer=IntervalSpline()),
    "interval-far": lambda: Elementwise((3,), IntervalSpline(99.5, 102.0, 2)),
    "interval-image": lambda: Elementwise((2, 1, 2), IntervalSpline(-1, 1, 4)),
    "per-coordinate": lambda: split((6,), net=reading([1], [(2, 3, 5)]), transformer=several(3)),
    "per-coordinate-swap": lambda: split((6,), net=reading([1], [(2, 3, 5)]), transformer=several(3), swap=True),
    "per-coordinate-context": lambda: split((4,), net=reading([0]), transformer=several(2), context_dim=2),
    "per-coordinate-masked": lambda: masked(alternating((4,)), net=reading([0], [(2, 3, 5)]), transformer=several(4)),
    "per-coordinate-elementwise": lambda: Elementwise((5,), several(5)),
    "per-coordinate-image": lambda: split((4, 1, 2), transformer=PerCoordinate([Affine(), Additive()])),
    "per-coordinate-permuted": lambda: Chain([Permute((3,), [2, 0, 1]), Elementwise((3,), several(3))]),
    # the networks of Glow and Flow++
    "convnet": lambda: split((2, 3, 4), net=convnet),
    "convnet-context": lambda: split((4, 2, 3), net=convnet, context_dim=3),
    "convnet-context-map": lambda: split((4, 2, 3), net=convnet, context_shape=(2, 2, 3)),
    "convnet-masked": lambda: masked(checkerboard((1, 3, 4)), net=convnet),
    "convnet-mixture": lambda: split((2, 2, 2), net=convnet, transformer=MixtureLogistic(2)),
    "zeroconv": lambda: split((4, 2, 3), net=ZeroConv),
    "zeroconv-context": lambda: split((4, 2, 3), net=ZeroConv, context_dim=3),
    "zeroconv-elementwise": lambda: Elementwise((2, 3, 2), Affine(), ZeroConv(0, 4)),
    "zeroconv-elementwise-context": lambda: Elementwise((2, 3, 2), Affine(), ZeroConv(0, 4, context_dim=3)),
    "zeroconv-elementwise-context-map": lambda: Elementwise(
        (2, 3, 2), Affine(), ZeroConv(0, 4, context_shape=(1, 3, 2))
    ),
    "attention": lambda: split((2, 2, 3), net=partial(attention, size=(2, 3))),
    "attention-context": lambda: split((2, 2, 3), net=partial(attention, size=(2, 3)), context_dim=2),
    "attention-context-map": lambda: split((2, 2, 3), net=partial(attention, size=(2, 3)), context_shape=(1, 2, 3)),
    "attention-masked": lambda: masked(
        checkerboard((1, 2, 4)), net=partial(attention, size=(2, 4)), transformer=MixtureLogistic(2)
    ),
    # elementwise
    "elementwise-1": lambda: Elementwise((1,), Affine()),
    "elementwise-image": lambda: Elementwise((2, 3, 2), Affine()),
    "elementwise-additive": lambda: Elementwise((3,), Additive()),
    "elementwise-context": lambda: Elementwise((3,), Affine(), mlp(0, 6, context_dim=2)),
    "scale": lambda: Scale((3,)),
    "scale-image": lambda: Scale((2, 2, 3)),
    "standardized": lambda: FixedAffine(torch.randn(3), 0.1 + torch.rand(3)),
    "standardized-1": lambda: FixedAffine(torch.randn(1), torch.full((1, 1), 0.3)),
    "standardized-dense": lambda: FixedAffine(
        torch.randn(4), torch.randn(4, 4).tril(-1) + torch.diag(0.5 + torch.rand(4))
    ),
    "low-rank": lambda: FixedLowRank(
        torch.randn(4),
        0.1 + torch.rand(4),
        torch.tensor([[0.5, 0.5], [0.5, -0.5], [0.5, 0.5], [0.5, -0.5]]),  # orthonormal in every dtype
        torch.tensor([3.0, -0.7]),
    ),
    "low-rank-1": lambda: FixedLowRank(torch.randn(1), torch.full((1,), 0.3), torch.ones(1, 1), torch.full((1,), 2.0)),
    "low-rank-0": lambda: FixedLowRank(torch.randn(3), 0.1 + torch.rand(3), torch.zeros(3, 0), torch.zeros(0)),
    "fixed-mixed": lambda: FixedMixed(
        torch.randn(4),
        torch.diag(0.5 + torch.rand(4)).index_put((torch.tensor(3), torch.tensor(1)), torch.tensor(0.7)),
        [0, 2],
    ),
    "fixed-mixed-diagonal": lambda: FixedMixed(torch.tensor([3.0, 1.0]), torch.tensor([0.2, 3.0]), [0]),
    "fixed-mixed-1": lambda: FixedMixed(torch.ones(1), torch.full((1,), 5.0), [0]),
    "permute": lambda: Permute((4,), [2, 0, 3, 1]),
    "permute-image": lambda: Permute((3, 2, 2), [1, 2, 0]),
    "conv1x1": lambda: InvertibleConv1x1((3,)),
    "conv1x1-1": lambda: InvertibleConv1x1((1,)),
    "conv1x1-plu": lambda: InvertibleConv1x1((4,), plu=True),
    "conv1x1-norm": lambda: InvertibleConv1x1((3,), norm=initialized(ActNorm((3,)))),
    "conv1x1-image": lambda: InvertibleConv1x1((4, 2, 3)),
    "conv1x1-image-plu": lambda: InvertibleConv1x1((3, 1, 2), plu=True),
    "conv1x1-image-norm": lambda: InvertibleConv1x1((3, 2, 2), norm=initialized(ActNorm((3, 2, 2)))),
    "conv1x1-image-plu-norm": lambda: InvertibleConv1x1((2, 2, 3), norm=initialized(ActNorm((2, 2, 3))), plu=True),
    # normalization
    "batchnorm": lambda: prime(BatchNorm((3,))),
    "batchnorm-mask": lambda: prime(BatchNorm((5,), alternating((5,)))),
    "batchnorm-image": lambda: prime(BatchNorm((2, 3, 2))),
    "batchnorm-checkerboard": lambda: prime(BatchNorm((2, 3, 3), checkerboard((2, 3, 3)))),
    "batchnorm-channelwise": lambda: prime(BatchNorm((4, 2, 2), channelwise((4, 2, 2)))),
    "actnorm": lambda: initialized(ActNorm((3,))),
    "actnorm-new": lambda: ActNorm((3,)),
    "actnorm-image": lambda: initialized(ActNorm((2, 3, 2))),
    "actnorm-per-position": lambda: initialized(ActNorm((2, 3, 2), per_position=True)),
    "actnorm-per-position-vector": lambda: initialized(ActNorm((3,), per_position=True)),
    # multi-scale
    "squeeze": lambda: Squeeze((3, 2, 4)),
    "squeeze-ordered": lambda: Squeeze((3, 2, 4), ordered=True),
    "unsqueeze": lambda: Squeeze((1, 4, 2)).inv,
    "squeezed": lambda: squeezed(split((4, 2, 1))),
    "squeezed-ordered": lambda: squeezed(split((4, 1, 2)), ordered=True),
    "squeezed-context": lambda: squeezed(split((4, 2, 1), context_dim=3)),
    "squeezed-context-map": lambda: squeezed(split((4, 2, 1), context_shape=(8, 2, 1))),
    "factor-out": lambda: FactorOut(split((2, 2, 3))),
    "factor-out-context-map": lambda: FactorOut(split((2, 2, 3), context_shape=(1, 2, 3))),
    "columns": lambda: SqueezeColumns((2, 3, 4)),
    "merged-columns": lambda: SqueezeColumns((2, 3, 4)).inv,
    "squares": lambda: SqueezeCheckerboard((2, 3, 4)),
    "packed": lambda: Sandwich(SqueezeCheckerboard((1, 3, 4)), split((2, 3, 2), swap=True)),
    "parallel": lambda: Halves(InvertibleConv1x1((2, 1, 3)), split((2, 1, 3))),
    "parallel-context-map": lambda: Halves(
        split((2, 2, 2), context_shape=(1, 2, 2)), split((2, 2, 2), context_shape=(1, 2, 2), swap=True)
    ),
    "columns-chain": lambda: Chain(
        [
            SqueezeColumns((1, 2, 4)),
            Halves(*[initialized(ActNorm((1, 2, 2), per_position=True)) for _ in range(2)]),
            split((2, 2, 2), net=partial(attention, size=(2, 2)), transformer=MixtureLogistic(2)),
            SqueezeColumns((1, 2, 4)).inv,
        ]
    ),
    # algebra
    "inverse": lambda: split((3,)).inv,
    "inverse-context": lambda: split((3,), context_dim=2).inv,
    "conditioned": lambda: split((3,), context_dim=2).condition(torch.randn(2)),
    "conditioned-image": lambda: split((2, 2, 2), context_dim=2).condition(torch.randn(2)),
    "conditioned-inverse": lambda: split((3,), context_dim=2).inv.condition(torch.randn(2)),
    "recached": lambda: split((3,)).with_cache(0),
    "chain": lambda: Chain([split((3,)), Scale((3,)).inv, split((3,), swap=True)]),
    "chain-of-chains": lambda: Chain([Chain([split((3,)), Scale((3,))]), Chain([split((3,), swap=True)]).inv]),
    "chain-context": lambda: Chain([Scale((3,)), split((3,), context_dim=2), Permute((3,), [1, 2, 0])]),
    "chain-changes-shape": lambda: Chain([Squeeze((1, 4, 2)), split((4, 2, 1)), initialized(ActNorm((4, 2, 1)))]),
    "rebuilt": lambda: rebuild(
        Chain([split((3,)), Scale((3,)).inv, split((3,), swap=True), initialized(ActNorm((3,)))])
    ),
    "rebuilt-context": lambda: rebuild(Chain(realnvp_transforms(4, couplings=3, net=mlp, context_dim=2))),
    "recomputed": lambda: recompute(Chain([split((3,)), split((3,), swap=True)])),
    "chain-logit": lambda: Chain([Logit(0.05), split((3,)), Logit(0.1).inv]),
    "chain-torch": lambda: Chain([AffineTransform(1.0, -2.0), split((3,)), SigmoidTransform()]),
    "chain-reshape": lambda: Chain([ReshapeTransform((4,), (1, 2, 2)), masked(checkerboard((1, 2, 2)))]),
    "lift": lambda: Lift(AffineTransform(1.0, -3.0), (2,)),
    "lift-exp": lambda: Lift(ExpTransform(), (2,)),
    "lift-tanh": lambda: Lift(TanhTransform()),
    "lift-inverse": lambda: Lift(ExpTransform().inv, (3,)),
    "lift-reshape": lambda: Lift(ReshapeTransform((2, 3), (6,)), (2, 3)),
    "lift-pyro": lambda: Lift(affine_coupling(4, [8]), (4,)),
    "lift-pyro-conditional": lambda: Chain([SumOfContext(4, 2), Lift(conditional_affine_coupling(4, 2, [8]), (4,))]),
    "logit": lambda: Logit(0.05),
    "logit-0": lambda: Logit(0.0),
    "own-layer": lambda: Sinh(3),
    "own-layer-context": lambda: SumOfContext(3, 2),
    "chain-splits-of-two-kinds": lambda: Chain([split((4, 2, 2)), split((2,)), split((4, 2, 2), swap=True)], (4, 2, 2)),
    "chain-standardized": lambda: Chain([split((3,)), Elementwise((3,), Affine(nn.Identity())), ZOO["standardized"]()]),
    # builders
    "realnvp-1": lambda: Chain(alone(realnvp_transforms)),
    "nsf-1": lambda: Chain(spline_transforms(1)),
    "nsf-1-context": lambda: Chain(spline_transforms(1, net=mlp, context_dim=3)),
    "nsf": lambda: Chain(spline_transforms(5, couplings=3, bins=4, net=mlp)),
    "nsf-context": lambda: Chain(spline_transforms(3, couplings=3, bins=4, net=mlp, context_dim=2)),
    "torus-1": lambda: Chain(spline_transforms(1, circular=[0])),
    "torus-1-context": lambda: Chain(spline_transforms(1, circular=[0], net=mlp, context_dim=3)),
    "torus": lambda: Chain(spline_transforms(3, couplings=3, bins=4, circular=range(3), net=mlp)),
    "interval-1": lambda: Chain(spline_transforms(1, intervals=[(0, -2.0, 1.0)])),
    "mixed": lambda: Chain(
        spline_transforms(5, couplings=3, bins=4, circular=[0, 3], intervals=[(1, 0.0, 2.0)], net=mlp)
    ),
    "mixed-context": lambda: Chain(
        spline_transforms(4, couplings=2, bins=3, circular=[3], intervals=[(2, 0.0, 2.0)], net=mlp, context_dim=2)
    ),
    "nsf-image": lambda: calm(Chain(spline_transforms((1, 4, 4), levels=1, steps=2, bins=3, net=convnet))),
    "realnvp-1-context": lambda: Chain(alone(realnvp_transforms, net=mlp, context_dim=2)),
    "realnvp-2": lambda: Chain(realnvp_transforms((2,), couplings=4, net=mlp)),
    "realnvp-default": lambda: Chain(realnvp_transforms(3)),
    "realnvp-odd": lambda: Chain(realnvp_transforms(7, couplings=3, net=mlp)),
    "realnvp-context": lambda: Chain(realnvp_transforms(4, couplings=3, net=mlp, context_dim=2)),
    "realnvp-skip": lambda: Chain(
        realnvp_transforms(5, couplings=2, net=partial(mlp, gain=0.5, skip=0.2), context_dim=2)
    ),
    "guide": lambda: Chain(default_transforms(5)),
    "guide-couplings": lambda: AffineCouplings(4, pairs=2, skip=False),
    "guide-affine": lambda: LearnedAffine((3,)),
    "guide-angles": lambda: Chain(default_transforms(5, [0, 3, 4])),
    "realnvp-image": lambda: prime(Chain(realnvp_transforms((1, 4, 4), net=resnet))),
    "realnvp-image-1-scale": lambda: prime(Chain(realnvp_transforms((3, 3, 2), scales=1, net=resnet))),
    "realnvp-image-3-scales": lambda: prime(Chain(realnvp_transforms((1, 4, 8), scales=3, net=resnet))),
    "realnvp-image-context": lambda: prime(Chain(realnvp_transforms((1, 4, 2), net=resnet, context_dim=2))),
    "realnvp-image-context-map": lambda: prime(
        Chain(realnvp_transforms((1, 4, 2), net=resnet, context_shape=(2, 4, 2)))
    ),
    "realnvp-packed": lambda: prime(Chain(realnvp_transforms((1, 4, 4), net=resnet, packed=True))),
    "realnvp-packed-context": lambda: prime(
        Chain(realnvp_transforms((2, 3, 4), scales=1, net=resnet, packed=True, context_dim=2))
    ),
    "realnvp-packed-context-map": lambda: prime(
        Chain(realnvp_transforms((1, 4, 4), net=resnet, packed=True, context_shape=(1, 4, 4)))
    ),
    "realnvp-pixels": lambda: prime(Chain([*realnvp_transforms((1, 2, 4), net=resnet), Logit(0.05).inv])),
    "nice-1": lambda: Chain(alone(nice_transforms)),
    "nice-2": lambda: Chain(nice_transforms(2, net=mlp)),
    "nice-odd": lambda: Chain(nice_transforms((5,), couplings=3, net=mlp)),
    "nice-image": lambda: Chain(nice_transforms((1, 2, 3), net=mlp)),
    "nice-context": lambda: Chain(nice_transforms(4, net=mlp, context_dim=2)),
    "flowpp-1": lambda: Chain(flowpp_transforms(1, components=2)),
    "flowpp-3": lambda: Chain(flowpp_transforms(3, couplings=2, components=2, net=mlp)),
    "flowpp-context": lambda: Chain(flowpp_transforms(4, couplings=2, components=2, net=mlp, context_dim=2)),
    "flowpp-image": lambda: calm(Chain(small_flowpp((1, 4, 4)))),
    "flowpp-checkerboard": lambda: calm(Chain(small_flowpp((1, 4, 4), true_checkerboard=True))),
    "flowpp-image-context": lambda: calm(Chain(small_flowpp((1, 4, 4), context_dim=2))),
    "flowpp-image-context-map": lambda: calm(Chain(small_flowpp((1, 4, 4), context_shape=(1, 4, 4)))),
    "flowpp-dequantizer": lambda: calm(
        Chain(flowpp_dequantizer((1, 4, 4), couplings=1, components=2, net=calm_attention, embedding=features))
    ),
    "arranged": lambda: Sandwich(SqueezeColumns((1, 2, 4)), SplitCoupling((2, 2, 2), convnet(1, 2), Affine())),
    "glow-2": lambda: calm(Chain(glow_transforms(2, steps=2, net=mlp))),
    "glow-odd": lambda: calm(Chain(glow_transforms((5,), steps=2, net=mlp))),
    "glow-plu": lambda: calm(Chain(glow_transforms(3, steps=2, net=mlp, plu=True))),
    "glow-context": lambda: calm(Chain(glow_transforms(4, steps=2, net=mlp, context_dim=2))),
    "glow-mixture": lambda: calm(Chain(glow_transforms(4, steps=1, net=mlp, transformer=partial(MixtureLogistic, 2)))),
    "glow-image": lambda: calm(Chain(small_glow((1, 4, 4)))),
    "glow-image-1-level": lambda: calm(Chain(small_glow((3, 2, 2), levels=1))),
    "glow-image-plu": lambda: calm(Chain(small_glow((1, 4, 4), plu=True))),
    "glow-image-additive": lambda: calm(Chain(small_glow((1, 4, 4), transformer=Additive))),
    "glow-image-context": lambda: calm(Chain(small_glow((1, 4, 4), context_dim=2))),
    "glow-image-context-map": lambda: calm(Chain(small_glow((1, 4, 4), context_shape=(1, 4, 4)))),
}


@cache
def component(name: str) -> Bijection:
    """The component of that name, built once and from the same random numbers; change a copy of it only."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ZOO[name]()
