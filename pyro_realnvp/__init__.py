"""RealNVP and its family as Pyro transforms: densities, priors and guides."""

from .bijection import Bijection, Conditioned, Inverse
from .builders import nice_transforms, realnvp_transforms
from .chain import Chain, Lift
from .conditioners import MLP, ResNet
from .coupling import Elementwise, MaskedCoupling, SplitCoupling
from .dequantization import Dequantized, Logit, bits_per_dim
from .flows import Flow, StandardLogistic, StandardNormal
from .linear import Permute, Scale
from .masks import alternating, channelwise, checkerboard
from .multiscale import FactorOut, Squeeze, Squeezed
from .normalization import ActNorm, BatchNorm, recalibrate
from .transformers import Additive, Affine, SigmoidScale, SoftClipScale, SoftplusScale, TanhScale

__version__ = "0.1.0"

__all__ = [
    "MLP",
    "ActNorm",
    "Additive",
    "Affine",
    "BatchNorm",
    "Bijection",
    "Chain",
    "Conditioned",
    "Dequantized",
    "Elementwise",
    "FactorOut",
    "Flow",
    "Inverse",
    "Lift",
    "Logit",
    "MaskedCoupling",
    "Permute",
    "ResNet",
    "Scale",
    "SigmoidScale",
    "SoftClipScale",
    "SoftplusScale",
    "SplitCoupling",
    "Squeeze",
    "Squeezed",
    "StandardLogistic",
    "StandardNormal",
    "TanhScale",
    "alternating",
    "bits_per_dim",
    "channelwise",
    "checkerboard",
    "nice_transforms",
    "realnvp_transforms",
    "recalibrate",
]
