"""First aid for a loss that is NaN: which layer and which row it comes from, and what is clearly wrong."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .._runtime.autocast import upcast
from .._runtime.state import preserved
from ..bases import Base
from ..bijections.spline import RationalQuadratic
from ..flow import Flow
from ..image_flow import ImageFlow
from ..summary import count
from . import symptoms
from .events import Events, events_of_flow, images_of_flow
from .layer_walk import Stopped, Visit, Walk

WIDTH = 120  #: of the printed table


@dataclass(frozen=True)
class LayerDiagnosis:
    """What :func:`diagnose` has measured at one layer. Numbers are NaN where values are; None where there is nothing.

    Attributes:
        name: dotted path of the layer in the flow, a key of ``flow.named_modules()``.
        kind: its class; ``.inv`` says that it was run backwards.
        shape: of one event behind it.
        parameters: number of its parameters.
        values: smallest and largest value behind it.
        log_dets: smallest and largest log-determinant; of the base, log-density of the latents.
        inverse_error: largest absolute difference between what enters and its way through the layer and back.
        at_bound: share of its scales that are so close to their bound that their gradient has vanished.
        gradient: largest absolute gradient of its parameters, of the mean of -log p(x).
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    values: tuple[float, float] | None
    log_dets: tuple[float, float] | None
    inverse_error: float | None
    at_bound: float | None
    gradient: float | None


@dataclass(eq=False, repr=False)
class Diagnosis:
    """Result of :func:`diagnose`; printed, a table of the layers in the order of computing, and the findings.

    ``dataclasses.asdict`` turns it into plain lists and numbers.

    Attributes:
        layers: one row a layer, and for the base.
        first_layer: name of the first layer with something not finite, or that raised an error; None if there is
            none.
        first_row: first row of x that is not finite in ``first_layer`` or, if no layer is to blame, in x or the context
            itself, or that lies outside of the support; counted over all batch dimensions. None if there is none.
        findings: sentences, the most important first; none for a flow in good health.

    Example:
        >>> flow = Flow(StandardNormal(2), realnvp_transforms(2, couplings=2))
        >>> diagnosis = diagnose(flow, torch.randn(10, 2))
        >>> [layer.name for layer in diagnosis.layers], diagnosis.findings
        (['transforms.1.bijection', 'transforms.0.bijection', 'base'], [])
    """

    layers: list[LayerDiagnosis]
    first_layer: str | None
    first_row: int | None
    findings: list[str]

    def __str__(self) -> str:
        table = _table(self.layers, self.first_layer)
        findings = self.findings or ["Nothing is wrong that can be seen here."]
        wrap = {"width": WIDTH - 2, "initial_indent": "* ", "subsequent_indent": "  ", "break_on_hyphens": False}
        lines = [line for finding in findings for line in textwrap.wrap(finding, **wrap)]  # type: ignore[arg-type]
        return "\n".join([*table, "", *lines])

    def __repr__(self) -> str:
        return str(self)


def diagnose(flow: Flow | ImageFlow, x: Tensor, context: Tensor | None = None) -> Diagnosis:
    """Computes log p(x | context) layer by layer, and says where something is not finite or clearly wrong.

    Every layer f maps h_i to h_{i+1} = f(h_i), from x to the latents. It is measured in the mode that the flow is in,
    on the way there (values, log|det df/dh|) and back (max |f^-1(f(h)) - h|), and by the gradient of the mean of
    -log p(x). Layers inside of layers are taken apart, so that the rows are couplings, normalizations, squeezes. An
    :class:`~pyro_realnvp.ImageFlow` draws its noise, and begins with the layers of its dequantizer, which run from the
    latents to the noise.

    Rows of x that are not finite or lie outside of the support, or whose context is not finite, are named and left out
    of all numbers, as long as there are others. Further findings are

    * the first layer and row with something not finite, or a layer that raised an error, at which the walk ends;
    * parameters and buffers that are not finite, and a gradient that is not although the density is;
    * a column of a vector that reaches the first coupling with a mean beyond +-100, or a standard deviation above 100
      or, in 10 rows or more, below 0.01;
    * a column of a vector of which a fifth reaches a first coupling of splines outside of their bound;
    * an ActNorm, in networks too, that was never initialised or has a scale above 1e5 or below 1e-5;
    * a 1x1 convolution whose condition number is above eps^(-1/2);
    * a layer with a tenth of its scales at a bound, where the slope of the logarithm is below a hundredth of that at
      0, or with one element so in all of 10 rows or more;
    * a layer whose way back misses x by more than eps^(1/4), relatively.

    The flow is left as it was: parameters, gradients, buffers and running statistics, modes, and the random state.

    Args:
        flow: a :class:`~pyro_realnvp.Flow`, or an ImageFlow.
        x: (\\*batch, \\*event_shape), at least one event; of an ImageFlow integers.
        context: (\\*batch, \\*context_shape), where batch dimensions broadcast; for a flow that takes one.

    Returns:
        A :class:`Diagnosis`, also of a flow whose values are all NaN.

    Raises:
        ValueError: if the flow is neither, or x or the context has the wrong shape or type, or one of them no values.

    Example:
        >>> flow = Flow(StandardNormal(2), realnvp_transforms(2))
        >>> x = torch.randn(10, 2)
        >>> x[7, 1] = torch.nan
        >>> print(diagnose(flow, x).findings[0])
        x is not finite in 1 of 10 rows, first in row 7, column 1: nan. These rows are left out of the table.
    """
    if not isinstance(flow, Flow | ImageFlow):
        raise ValueError(f"diagnose needs a Flow or an ImageFlow, but got {type(flow).__name__}.")
    if any(tensor.is_meta for tensor in (*flow.parameters(), *flow.buffers())):
        raise ValueError("diagnose needs a flow with values, but got one on the meta device.")
    with _untouched(flow, x):
        events = images_of_flow(flow, x, context) if isinstance(flow, ImageFlow) else events_of_flow(flow, x, context)
        walk = Walk()
        log_prob = None
        with suppress(Stopped):
            log_prob = _of_images(walk, flow, events) if isinstance(flow, ImageFlow) else _of_flow(walk, flow, events)
        gradients, failure = _gradients(flow, log_prob)
        layers = [_row(visit, gradients) for visit in walk.visits]
        first = symptoms.first_bad(walk) or next((visit for visit in walk.visits if visit.error is not None), None)
        if events.none_is_good:
            first = None
        bad = first is not None and bool(first.bad.any())
        first_row = symptoms.first_row(first, events.rows) if bad else events.first_bad_row  # type: ignore[arg-type]
        return Diagnosis(
            layers=layers,
            first_layer=None if first is None else first.name,
            first_row=first_row,
            findings=[*_findings(flow, walk, events, gradients, log_prob), *failure],
        )


def findings_before_training(flow: nn.Module, x: Tensor, context: Tensor | None = None) -> list[str]:
    """Says which columns x (N, D) has outside of the bound of the splines of a flow of vectors.

    Splines are the identity there, so that a training goes on for long without an error, and learns nothing.
    """
    splines = any(isinstance(module, RationalQuadratic) for module in flow.modules())
    if not (splines and isinstance(flow, Flow) and len(flow.event_shape) == 1):
        return []
    walk, own = Walk(), context if flow.transforms.is_conditional else None
    with _untouched(flow, x), torch.no_grad(), suppress(Stopped):
        walk.through("transforms", flow.transforms, upcast(x), own, inverse=True)
    return list(symptoms.beyond_splines(walk))


@contextmanager
def _untouched(flow: nn.Module, x: Tensor) -> Iterator[None]:
    """Lets a block compute gradients and draw random numbers without a trace in the flow or in the random state."""
    device = x.device if isinstance(x, Tensor) else torch.device("cpu")
    others = [] if device.type in ("cpu", "meta") else [device]
    kind = device.type if others else "cuda"
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.random.fork_rng(others, device_type=kind),
        preserved(flow),
    ):
        yield


def _of_flow(walk: Walk, flow: Flow, events: Events) -> Tensor:
    return _density(walk, flow, events.x, events.context, prefix="")


def _of_images(walk: Walk, flow: ImageFlow, events: Events) -> Tensor:
    """Computes the bound of :class:`~pyro_realnvp.Dequantized` with one draw of the noise."""
    k = events.x
    log_noise: Tensor | float = 0.0
    if flow.dequantizer is None:
        noise = torch.rand_like(k)
    else:
        noise, log_noise = _drawn(walk, flow.dequantizer, k / flow.levels - 0.5)
    log_prob = _density(walk, flow.flow, (k + noise) / flow.levels, events.context, prefix="flow.")
    return log_prob - log_noise - flow.event_shape.numel() * math.log(flow.levels)


def _drawn(walk: Walk, noise: Flow, context: Tensor) -> tuple[Tensor, Tensor]:
    """Draws u (N, C, H, W) from a dequantizer, and returns it with log q(u) (N,)."""
    base, prefix = noise.base(context), "dequantizer."
    z = base.expand((len(context),)).rsample()
    of_base = walk.end(f"{prefix}base", noise.base, z, lambda: base.log_prob(z))
    own = context if noise.transforms.is_conditional else None
    u, log_det = walk.through(f"{prefix}transforms", noise.transforms, z, own, inverse=False)
    return u, of_base - log_det


def _density(walk: Walk, flow: Flow, x: Tensor, context: Tensor | None, *, prefix: str) -> Tensor:
    own = context if flow.transforms.is_conditional else None
    z, log_det = walk.through(f"{prefix}transforms", flow.transforms, upcast(x), own, inverse=True)
    base = flow.base
    log_prob = walk.end(
        f"{prefix}base",
        base,
        z,
        lambda: base.log_prob(z, context) if isinstance(base, Base) else base(context).log_prob(z),
    )
    return log_prob + log_det


def _gradients(flow: nn.Module, log_prob: Tensor | None) -> tuple[dict[int, Tensor], list[str]]:
    """Computes the gradients of the mean of -log p(x), by the ``id`` of the parameter, or says why there are none."""
    parameters = [parameter for parameter in flow.parameters() if parameter.requires_grad]
    if log_prob is None or not log_prob.requires_grad or not parameters:
        return {}, []
    try:
        found = torch.autograd.grad(-log_prob.mean(), parameters, allow_unused=True)
    except Exception as error:  # whatever backward of a user's function raises
        return {}, [f"The gradient could not be computed: {type(error).__name__}: {error}"]
    pairs = zip(parameters, found, strict=True)
    return {id(parameter): gradient for parameter, gradient in pairs if gradient is not None}, []


def _row(visit: Visit, gradients: dict[int, Tensor]) -> LayerDiagnosis:
    own = [gradients[id(each)] for each in visit.module.parameters() if id(each) in gradients and each.numel()]
    gradient = float(torch.stack([each.abs().max() for each in own]).max()) if own else None
    return LayerDiagnosis(
        name=visit.name,
        kind=visit.kind,
        shape=visit.shape,
        parameters=count(visit.module),
        values=visit.values,
        log_dets=visit.log_dets,
        inverse_error=visit.inverse_error,
        at_bound=visit.at_bound,
        gradient=gradient,
    )


def _findings(
    flow: nn.Module, walk: Walk, events: Events, gradients: dict[int, Tensor], log_prob: Tensor | None
) -> list[str]:
    found = list(events.findings)
    if not events.none_is_good:
        found += symptoms.first_break(walk, events.rows)
    found += symptoms.tensors_not_finite(flow)
    if log_prob is not None:
        found += symptoms.gradients_not_finite(walk, gradients, log_prob, list(flow.named_parameters()))
    if not events.none_is_good:
        found += symptoms.unstandardised_columns(walk)
        found += symptoms.beyond_splines(walk)
    found += symptoms.dead_normalization(flow)
    found += symptoms.nearly_singular(flow)
    found += symptoms.scales_at_bound(walk.visits)
    found += symptoms.not_inverted(walk.visits, events.x.dtype)
    return found


def _table(layers: Sequence[LayerDiagnosis], first_layer: str | None) -> list[str]:
    """Aligns the rows in columns, with a line for every chain, under which its parts have short names."""
    head = ("layer", "kind", "shape", "parameters", "values", "log-dets", "inverse", "bound", "gradient")
    cells, chain, marked = [head], "", False
    for layer in layers:
        parent, own = _split_name(layer.name)
        if parent != chain:
            chain = parent
            if chain:
                cells.append((chain,))  # type: ignore[arg-type]
        mark = "> " if layer.name == first_layer and not marked else "  " if chain else ""
        marked = marked or mark == "> "
        cells.append(
            (
                mark + own,
                layer.kind,
                str(layer.shape).replace(" ", ""),
                f"{layer.parameters:,}",
                _range(layer.values),
                _range(layer.log_dets),
                _number(layer.inverse_error),
                "-" if layer.at_bound is None else f"{100 * layer.at_bound:.0f}%",
                _number(layer.gradient),
            )
        )
    return _aligned(cells)


def _split_name(name: str) -> tuple[str, str]:
    """Splits the path of a layer into that of its chain and the rest, which begins with its number there."""
    parts = name.split(".")
    numbers = [index for index, part in enumerate(parts) if part.isdigit()]
    at = numbers[-1] if numbers else len(parts) - 1
    return ".".join(parts[:at]), ".".join(parts[at:])


def _aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[index]) for row in cells if len(row) > 1) for index in range(len(cells[0]))]
    widths[1] = min(widths[1], 22)
    widths[0] = max(12, min(widths[0], WIDTH - sum(widths[1:]) - len(widths) + 1))
    gap = "  " if sum(widths) + 2 * len(widths) <= WIDTH else " "
    lines = []
    for row in cells:
        if len(row) == 1:
            lines.append(_shortened(row[0], WIDTH))
            continue
        left = [_shortened(cell, width).ljust(width) for cell, width in zip(row[:3], widths[:3], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(row[3:], widths[3:], strict=True)]
        lines.append(gap.join([*left, *right]).rstrip())
    return lines


def _shortened(text: str, width: int) -> str:
    if len(text) <= width:
        return text
    half = (width - 2) // 2
    return f"{text[: width - 2 - half]}..{text[len(text) - half :]}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value + 0.0:.2g}"  # no -0


def _range(limits: tuple[float, float] | None) -> str:
    return "-" if limits is None else f"{_number(limits[0])} .. {_number(limits[1])}"
