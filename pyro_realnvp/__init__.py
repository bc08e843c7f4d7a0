"""RealNVP and its family as Pyro transforms: densities, priors and guides."""

from .attention import AttentiveConvs, GatedAttention, GatedConvs
from .bijection import Bijection, Conditioned, Inverse
from .builders import nice_transforms, realnvp_transforms
from .chain import Chain, Lift
from .conditioners import MLP, ResNet
from .convnet import ConvNet
from .coupling import Elementwise, MaskedCoupling, SplitCoupling
from .dequantization import Dequantized, Logit, bits_per_dim
from .embedding import Embedded
from .flowpp import flowpp_dequantizer, flowpp_transforms
from .flows import DiagonalNormal, Flow, StandardLogistic, StandardNormal
from .glow import glow_transforms
from .linear import InvertibleConv1x1, Permute, Scale
from .masks import alternating, channelwise, checkerboard
from .memory import rebuild, recompute
from .mixture import MixtureLogistic
from .multiscale import Arranged, Columns, FactorOut, Parallel, Squares, Squeeze, Squeezed
from .normalization import ActNorm, BatchNorm, recalibrate
from .ranks import synchronize
from .reversible import Reversible
from .transformers import Additive, Affine, SigmoidScale, SoftClipScale, SoftplusScale, TanhScale

__version__ = "0.1.0"

__all__ = [
    "MLP",
    "ActNorm",
    "Additive",
    "Affine",
    "Arranged",
    "AttentiveConvs",
    "BatchNorm",
    "Bijection",
    "Chain",
    "Columns",
    "Conditioned",
    "ConvNet",
    "Dequantized",
    "DiagonalNormal",
    "Elementwise",
    "Embedded",
    "FactorOut",
    "Flow",
    "GatedAttention",
    "GatedConvs",
    "Inverse",
    "InvertibleConv1x1",
    "Lift",
    "Logit",
    "MaskedCoupling",
    "MixtureLogistic",
    "Parallel",
    "Permute",
    "ResNet",
    "Reversible",
    "Scale",
    "SigmoidScale",
    "SoftClipScale",
    "SoftplusScale",
    "SplitCoupling",
    "Squares",
    "Squeeze",
    "Squeezed",
    "StandardLogistic",
    "StandardNormal",
    "TanhScale",
    "alternating",
    "bits_per_dim",
    "channelwise",
    "checkerboard",
    "flowpp_dequantizer",
    "flowpp_transforms",
    "glow_transforms",
    "nice_transforms",
    "realnvp_transforms",
    "rebuild",
    "recalibrate",
    "recompute",
    "synchronize",
]
