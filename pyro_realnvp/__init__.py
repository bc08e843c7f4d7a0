"""RealNVP and its family as Pyro transforms: densities, priors and guides.

Examples in docstrings begin behind ``import pyro, torch``, ``from pyro import distributions as dist`` and
``from pyro_realnvp import *``.
"""

from typing import Any

from ._deprecated import deprecated
from .augmentation import Augmented
from .augmented_flow import AugmentedFlow
from .bases import Base, DiagonalNormal, MixedBase, MixtureBase, StandardLogistic, StandardNormal, StudentTBase
from .bijections.bijection import Bijection, Conditioned, Inverse
from .bijections.chain import Chain
from .bijections.circular import CircularSpline
from .bijections.circular_affine import CircularAffine
from .bijections.context import EmbedContext
from .bijections.coupling import Elementwise, MaskedCoupling, SplitCoupling
from .bijections.interval import IntervalSpline
from .bijections.lift import Lift
from .bijections.linear import FixedAffine, InvertibleConv1x1, Permute, Scale
from .bijections.logit import Logit
from .bijections.low_rank import FixedLowRank
from .bijections.masks import alternating, channelwise, checkerboard
from .bijections.mixture import MixtureLogistic
from .bijections.multiscale import FactorOut, Halves, Sandwich, Squeeze, SqueezeCheckerboard, SqueezeColumns
from .bijections.normalization import ActNorm, BatchNorm
from .bijections.per_coordinate import PerCoordinate
from .bijections.reversible import Reversible
from .bijections.spline import RationalQuadratic
from .bijections.standardize import standardized_from
from .bijections.transformers import Additive, Affine, SigmoidLogScale, SoftClipLogScale, TanhLogScale, Transformer
from .dequantization import Dequantized, bits_per_dim
from .families.flowpp import flowpp_dequantizer, flowpp_transforms
from .families.glow import glow_transforms
from .families.nice import nice_transforms
from .families.realnvp import realnvp_transforms
from .families.spline import spline_transforms
from .flow import Flow
from .image_flow import ImageFlow
from .inference.finite import FiniteELBO
from .inference.fit_guide import fit_guide
from .inference.for_arviz import to_arviz
from .inference.guide import AutoRealNVP
from .inference.guide_report import GuideReport
from .inference.importance import ImportanceSamples, importance_sample
from .inference.independence import IndependenceMH
from .inference.neutra import NeuTra
from .inference.pareto import effective_sample_size, pareto_k, pareto_k_spread, pareto_k_threshold, pareto_smooth
from .inference.path_gradient import PathGradientDistribution
from .inference.recentering import Recentered
from .networks.attention import AttentiveConvs, GatedAttention, GatedConvs
from .networks.conditioner import Conditioner
from .networks.convnet import ConvNet
from .networks.coordinate_features import CoordinateFeatures
from .networks.mlp import MLP
from .networks.resnet import ResNet
from .training.checkpoint import load, save
from .training.diagnosis import Diagnosis, diagnose
from .training.fit import fit
from .training.history import History
from .training.resume import Checkpoint
from .training.switches import rebuild, recalibrate, recompute, synchronize

__version__ = "0.2.0.dev0"

# fmt: off
__all__ = [  # noqa: RUF022  # in the order in which a user meets them
    # families, and a flow as one Module
    "realnvp_transforms", "nice_transforms", "glow_transforms", "flowpp_transforms", "flowpp_dequantizer",
    "spline_transforms",
    "Flow", "Base", "StandardNormal", "StandardLogistic", "DiagonalNormal", "StudentTBase", "MixtureBase", "MixedBase",
    "ImageFlow", "Dequantized", "bits_per_dim", "AugmentedFlow", "Augmented",
    # training
    "fit", "History", "save", "load", "Checkpoint", "recompute", "rebuild", "synchronize", "recalibrate",
    "diagnose", "Diagnosis",
    # inference
    "AutoRealNVP", "fit_guide", "GuideReport", "Recentered", "FiniteELBO", "NeuTra", "IndependenceMH",
    "importance_sample", "ImportanceSamples",
    "effective_sample_size", "pareto_k", "pareto_k_spread", "pareto_k_threshold", "pareto_smooth",
    "PathGradientDistribution", "to_arviz",
    # networks
    "MLP", "ResNet", "ConvNet", "GatedAttention", "GatedConvs", "AttentiveConvs", "Conditioner", "CoordinateFeatures",
    # bijections
    "Bijection", "Inverse", "Conditioned", "Reversible", "Chain", "Lift", "EmbedContext",
    "SplitCoupling", "MaskedCoupling", "Elementwise", "checkerboard", "channelwise", "alternating",
    "Transformer", "Affine", "TanhLogScale", "SigmoidLogScale", "SoftClipLogScale", "Additive", "MixtureLogistic",
    "RationalQuadratic", "CircularSpline", "CircularAffine", "IntervalSpline", "PerCoordinate",
    "ActNorm", "BatchNorm", "InvertibleConv1x1", "Scale", "Permute", "FixedAffine", "FixedLowRank", "standardized_from",
    "Logit", "Squeeze", "SqueezeColumns", "SqueezeCheckerboard", "Sandwich", "FactorOut", "Halves",
]
# fmt: on


def __getattr__(name: str) -> Any:
    return deprecated(name)


def __dir__() -> list[str]:
    return __all__
