"""Sentences about what is clearly wrong with a flow, its data, or one pass through it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ..bijections.linear import InvertibleConv1x1
from ..bijections.normalization import ActNorm
from ..bijections.spline import RationalQuadratic
from ..networks.channel_norm import ChannelNorm
from .layer_walk import ENOUGH_ROWS, Visit, Walk

# A column of mean 0 and standard deviation 1 is what networks are initialised for. Two orders of magnitude from there
# the first layer starts in the flat parts of its activations, or sees no difference between the events.
FAR_MEAN = 100.0
LARGE_SD, SMALL_SD = 100.0, 0.01
EXTREME_LOG_SCALE = math.log(1e5)  #: a constant channel gets the scale 1e6
SHARE_BEYOND = 0.2  #: of a column; a standard Cauchy distribution has an eighth beyond +-5
SHARE_AT_BOUND = 0.1  #: of the scales of one layer
_NAMED = 3  #: as many of a kind are named one by one


def first_break(walk: Walk, rows: Tensor) -> Iterator[str]:
    """Names the first layer with something not finite, and the layer at which the walk has ended, if there are any."""
    visit = first_bad(walk)
    if visit is not None:
        yield (
            f"The first layer with something not finite is {visit.name} ({visit.kind}), first in row "
            f"{first_row(visit, rows)} of x: {_what_is_bad(visit)}, in {int(visit.bad.sum())} of {len(visit.bad)} rows."
        )
    for each in walk.visits:
        if each.error is not None:
            yield f"{each.name} ({each.kind}) raised {each.error}. The layers behind it were not computed."


def first_bad(walk: Walk) -> Visit | None:
    return next((visit for visit in walk.visits if bool(visit.bad.any())), None)


def first_row(visit: Visit, rows: Tensor) -> int:
    """Returns the first row of x with something not finite; ``rows``: (N,), where the events of the walk are in x."""
    return int(rows[visit.bad.to(rows.device)][0])


def _what_is_bad(visit: Visit) -> str:
    ranges = (("its value", visit.values), ("its log-determinant", visit.log_dets))
    found = [what for what, limits in ranges if limits is not None and not all(map(math.isfinite, limits))]
    return " and ".join(found)


def tensors_not_finite(flow: nn.Module) -> Iterator[str]:
    """Names the parameters and buffers with a value that is NaN or infinite."""
    named: list[tuple[str, str, Tensor]] = [("parameter", *each) for each in flow.named_parameters()]
    named += [("buffer", *each) for each in flow.named_buffers()]
    found = []
    for kind, key, tensor in named:
        bad = ~tensor.detach().isfinite()
        if bad.any():
            value = float(tensor.detach()[bad][0])
            found.append(
                f"The {kind} {key} is not finite: {int(bad.sum())} of its {bad.numel()} values, the first {value}."
            )
    what = "parameters and buffers are not finite"
    finite = [bool(parameter.detach().isfinite().all()) for parameter in flow.parameters()]
    if finite and not any(finite):
        what += ", as after a step along a gradient that was not finite: an earlier state shows where that came from"
    yield from _few(found, what)


def unstandardised_columns(walk: Walk) -> Iterator[str]:
    """Names the columns of a vector that reach the first coupling far from mean 0 and standard deviation 1."""
    if walk.reaching_coupling is None or walk.reaching_coupling[1].dim() != 2:
        return
    name, values = walk.reaching_coupling
    direct = walk.visits[0].name == name
    where = "x" if direct else f"what reaches {name}, the first coupling,"
    found = []
    for column, each in enumerate(values.double().T):
        if not each.isfinite().all():
            continue
        mean, sd = float(each.mean()), float(each.std(correction=0))
        enough = len(each) >= ENOUGH_ROWS
        if abs(mean) > FAR_MEAN or sd > LARGE_SD or (enough and sd < SMALL_SD):
            spread = "is constant" if enough and sd == 0 else f"has standard deviation {sd:.3g}"
            found.append(
                f"Column {column} of {where} is not standardised: it {spread} around the mean {mean:.3g}, from "
                f"{float(each.min()):.4g} to {float(each.max()):.4g}. Standardise the data, or put FixedAffine(mean, "
                f"sd) behind the last of the transforms."
            )
    yield from _few(found, f"columns of {where} are not standardised".replace(",", ""))


def beyond_splines(walk: Walk) -> Iterator[str]:
    """Names the columns of a vector of which many rows reach a first coupling of splines outside of their bound."""
    if walk.reaching_coupling is None or walk.reaching_coupling[1].dim() != 2:
        return
    name, values = walk.reaching_coupling
    layer = next(visit.module for visit in walk.visits if visit.name == name)
    spline = getattr(layer, "transformer", None)
    if not isinstance(spline, RationalQuadratic):
        return
    found = []
    for column, share in enumerate((values.abs() > spline.bound).double().mean(0).tolist()):
        if share > SHARE_BEYOND:
            found.append(
                f"{100 * share:.0f} % of column {column} reach {name}, the first spline, outside of "
                f"[-{spline.bound:g}, {spline.bound:g}], where splines change nothing. Append standardized_from(x) to "
                f"the transforms."
            )
    yield from _few(found, f"columns lie outside of the bound of {name} in many rows")


def dead_normalization(flow: nn.Module) -> Iterator[str]:
    """Names every ActNorm, in networks too, that has seen no data, or has a scale near 0 or infinity."""
    inside = {id(norm.norm): (name, "ActNorm") for name, norm in flow.named_modules() if isinstance(norm, ActNorm)}
    unseen, extreme = [], []
    for path, norm in flow.named_modules():
        if not isinstance(norm, ChannelNorm):
            continue
        name, kind = inside.get(id(norm), (path, "ActNorm of a network"))
        log_scale = norm.log_scale.detach()
        if not bool(norm.initialized):
            unseen.append(
                f"{name} ({kind}) was never initialised: call flow.initialize(x), or take the first training step."
            )
        far = log_scale.abs() > EXTREME_LOG_SCALE
        if far.any():
            index, value = far.nonzero()[0].tolist(), float(log_scale[far][0])
            channel = index[0] if len(index) == 1 else tuple(index)
            why = "its input was constant when it was initialised" if value > 0 else "it lets nothing through"
            extreme.append(f"{name} ({kind}) has the scale {_power(value)} in channel {channel}: {why}.")
    yield from _few(unseen, "ActNorms were never initialised")
    yield from _few(extreme, "ActNorms have an extreme scale")


def _power(log_scale: float) -> str:
    return f"{math.exp(log_scale):.1e}" if abs(log_scale) < 700 else f"exp({log_scale:.3g})"


def nearly_singular(flow: nn.Module) -> Iterator[str]:
    """Names every 1x1 convolution whose inverse loses half of the digits or more."""
    found = []
    for name, layer in flow.named_modules():
        if not isinstance(layer, InvertibleConv1x1):
            continue
        weight = layer.matrix()[0].detach()
        if not weight.isfinite().all():
            continue
        condition = layer.condition_number()
        if not condition < torch.finfo(weight.dtype).eps ** -0.5:
            digits = "it has no inverse" if math.isinf(condition) else "its inverse loses half of the digits or more"
            found.append(
                f"{name} (InvertibleConv1x1) has a nearly singular matrix: the condition number is {condition:.1e}, so "
                f"that {digits} in {weight.dtype}."
            )
    yield from _few(found, "1x1 convolutions are nearly singular")


def scales_at_bound(visits: Sequence[Visit]) -> Iterator[str]:
    """Names the layers in which many scales, or that of one element in all events, have no gradient any more."""
    found = []
    for visit in visits:
        if visit.at_bound is None or (visit.at_bound < SHARE_AT_BOUND and visit.stuck is None):
            continue
        one = "" if visit.stuck is None else f"; that of changed element {visit.stuck} is so in every row"
        found.append(
            f"{visit.name} ({visit.kind}) has {100 * visit.at_bound:.3g} % of its scales at a bound, where their "
            f"gradient vanishes{one}."
        )
    yield from _few(found, "layers have scales at a bound")


def not_inverted(visits: Sequence[Visit], dtype: torch.dtype) -> Iterator[str]:
    """Names the layers that compute finite values, and are not inverted: samples and densities do not agree there."""
    tolerance = torch.finfo(dtype).eps ** 0.25
    found = []
    for visit in visits:
        if visit.error_back is not None:
            found.append(f"{visit.name} ({visit.kind}) cannot be inverted: it raised {visit.error_back}.")
        elif visit.relative_error is not None and not visit.relative_error <= tolerance:
            found.append(
                f"{visit.name} ({visit.kind}) is not inverted: the way there and back misses x by "
                f"{visit.relative_error:.1e}, relative to x where it is more than 1."
            )
    yield from _few(found, "layers are not inverted")


def gradients_not_finite(
    walk: Walk, gradients: dict[int, Tensor], log_prob: Tensor, named: Sequence[tuple[str, nn.Parameter]]
) -> Iterator[str]:
    """Names where a gradient is not finite although all densities are: in the last layer, at which backward begins."""
    if not log_prob.isfinite().all():
        return
    bad = {key for key, gradient in gradients.items() if not gradient.isfinite().all()}
    for visit in reversed(walk.visits):
        own = {id(parameter) for parameter in visit.module.parameters()} & bad
        if own:
            names = [name for name, parameter in named if id(parameter) in own]
            yield (
                f"The log-density is finite, but its gradient is not: backward arrives first at {visit.name} "
                f"({visit.kind}), where that of {names[0]} is NaN or infinite."
            )
            return


def _few(found: Sequence[str], what: str) -> Iterator[str]:
    """Yields the first sentences, and one about the number of the others."""
    yield from found[:_NAMED]
    if len(found) > _NAMED:
        yield f"In all, {len(found)} {what}."
