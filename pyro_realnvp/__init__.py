"""RealNVP and its family as Pyro transforms: densities, priors and guides."""

from .attention import AttentiveConvs, GatedAttention, GatedConvs
from .bijection import Bijection, Conditioned, Inverse
from .builders import nice_transforms, realnvp_transforms
from .chain import Chain, Lift
from .conditioners import MLP, ResNet
from .convnet import ConvNet
from .coupling import Elementwise, MaskedCoupling, SplitCoupling
from .dequantization import Dequantized, Logit, bits_per_dim
from .diagnostics import (
    ImportanceSamples,
    effective_sample_size,
    importance_resample,
    importance_sample,
    pareto_k,
    pareto_k_threshold,
    pareto_smooth,
)
from .embedding import Embedded
from .flowpp import flowpp_dequantizer, flowpp_transforms
from .flows import DiagonalNormal, Flow, StandardLogistic, StandardNormal
from .glow import glow_transforms
from .guides import AutoRealNVP
from .linear import InvertibleConv1x1, Permute, Scale, Standardized
from .masks import alternating, channelwise, checkerboard
from .mcmc import IndependenceMH, NeuTra
from .memory import rebuild, recompute
from .mixture import MixtureLogistic
from .multiscale import Arranged, Columns, FactorOut, Parallel, Squares, Squeeze, Squeezed
from .normalization import ActNorm, BatchNorm, recalibrate
from .path_gradient import PathGradientDistribution
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
    "AutoRealNVP",
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
    "ImportanceSamples",
    "IndependenceMH",
    "Inverse",
    "InvertibleConv1x1",
    "Lift",
    "Logit",
    "MaskedCoupling",
    "MixtureLogistic",
    "NeuTra",
    "Parallel",
    "PathGradientDistribution",
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
    "Standardized",
    "TanhScale",
    "alternating",
    "bits_per_dim",
    "channelwise",
    "checkerboard",
    "effective_sample_size",
    "flowpp_dequantizer",
    "flowpp_transforms",
    "glow_transforms",
    "importance_resample",
    "importance_sample",
    "nice_transforms",
    "pareto_k",
    "pareto_k_threshold",
    "pareto_smooth",
    "realnvp_transforms",
    "rebuild",
    "recalibrate",
    "recompute",
    "synchronize",
]
