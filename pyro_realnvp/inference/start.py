"""Where a guide begins: the constants of its last layer."""

import warnings
from contextlib import suppress
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide.guides import AutoContinuous
from torch import Tensor

from ..bijections.bijection import Bijection
from ..bijections.linear import FixedAffine
from ..bijections.low_rank import FixedLowRank
from .angles import Chart
from .fixed_mixed import FixedMixed
from .low_rank_start import low_rank_gaussian
from .many_draws import NEEDS
from .sites import log_joint, log_joints, plate_nesting
from .warm_start import LogDensity, best_gaussian

_FEW = 32  # latents, up to which batch-and-match alone arrives
_ROUNDS = 20  # beyond them, the most in which it goes on
_MAX_DENSE = 256  # latents, beyond which a covariance is expensive to fit
_RANK = 16  # beyond them


def fixed_layer(circular: list[int], **constants: Tensor) -> Bijection:
    """Builds the last layer of a guide from its constants by name, as they are in its state."""
    if "directions" in constants:
        return FixedLowRank(**constants)
    return FixedMixed(circular=circular, **constants) if circular else FixedAffine(**constants)


def plain_start(loc: Tensor, scale: float, angles: list[int]) -> tuple[Bijection, float]:
    """Returns the last layer of a guide that starts as N(loc, scale^2 I), and the learned scale before it."""
    diagonal = torch.ones_like(loc)
    diagonal[angles] = scale
    return fixed_layer(angles, loc=loc, scale=diagonal), scale


def found_start(
    guide: AutoContinuous, loc: Tensor, scale: float, angles: list[int], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Bijection, float]:
    """Searches from N(loc, scale^2 I), and returns the last layer of the guide and the learned scale before it.

    With angles among more than 256 latents it is :func:`plain_start`.
    """
    if angles and len(loc) > _MAX_DENSE:
        return plain_start(loc, scale, angles)
    # Hidden from handlers that trace the guide; far from the mode a value may be infinite.
    with poutine.block(), pyro.validation_enabled(False):
        density, together = _density(guide, loc, scale, args, kwargs)
        batch, steps = (32, 200) if together else (8, 60)
        if len(loc) > _MAX_DENSE:
            found = low_rank_gaussian(density, loc, scale, batch=batch, steps=steps, rank=_RANK)
            layer, nothing = fixed_layer(angles, **found._asdict()), bool((found.scale == scale).all())
        else:
            layer, nothing = _dense(density, loc, scale, angles, batch, steps)
    if nothing:
        warnings.warn(
            f"{guide._pyro_name} has found no start: no Gaussian of its search is better than deviations of {scale}. "
            f"Give init_loc_fn or init_scale, and watch the first losses.",
            stacklevel=2,
        )
    return layer, 1.0


def _dense(
    density: LogDensity, loc: Tensor, scale: float, angles: list[int], batch: int, steps: int
) -> tuple[Bijection, bool]:
    """Returns the layer, and whether nothing better than the first Gaussian was found."""
    chart = Chart(density, loc, angles, draws=8 * batch) if angles else None
    searched, origin = (density, loc) if chart is None else (chart, chart.start)
    # Batch-and-match knows correlations, but with dozens of latents of very different scales it does not arrive.
    others, many = [], len(loc) > _FEW
    with suppress(RuntimeError):  # a Cholesky factorisation, as of scales that differ by 1e8
        if many:
            others.append(low_rank_gaussian(searched, origin, scale, batch=batch, steps=steps, rank=_RANK).dense())
    mean, root = best_gaussian(searched, origin, scale, batch=batch, steps=steps, others=others, rounds=_ROUNDS * many)
    nothing = torch.equal(root, scale * torch.eye(len(loc)).to(root))
    if chart is not None:
        mean, root = chart.constants(mean, root)
    return fixed_layer(angles, loc=mean, scale=root), nothing


def _density(
    guide: AutoContinuous, loc: Tensor, scale: float, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[LogDensity, bool]:
    """Returns the log-density of rows x (S, D), and whether it takes all of them in one run of the model."""

    def one_by_one(x: Tensor) -> Tensor:
        return torch.stack([log_joint(guide, row, args, kwargs) for row in x])

    def at_once(x: Tensor) -> Tensor:
        return log_joints(guide, x, args, kwargs, nesting=nesting)

    nesting = plate_nesting(poutine.trace(guide.model).get_trace(*args, **kwargs))
    probe = loc + scale * torch.randn(2, len(loc), dtype=loc.dtype, device=loc.device)
    try:
        together, apart, again = at_once(probe), one_by_one(probe), one_by_one(probe)
        # Nothing can be compared for a model that is random itself, as one that subsamples.
        wrong = torch.equal(apart, again) and not torch.allclose(together, apart, rtol=1e-3)
        reason = "it gives two draws another density together than apart" if wrong else ""
    except (RuntimeError, ValueError, IndexError) as error:
        reason = str(error).splitlines()[0]
    if not reason:
        return at_once, True
    warnings.warn(
        f"{guide._pyro_name} cannot run its model on many draws at once, and finds its start from fewer: {reason}. "
        f"{NEEDS} Or give init_scale to start without a search.",
        stacklevel=3,
    )
    return one_by_one, False
