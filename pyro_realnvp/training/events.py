"""The events that a flow is diagnosed on: checked, in one batch, without those that no flow could score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Size, Tensor
from torch.distributions import constraints

from .._runtime.checks import check_floating
from ..flow import Flow
from ..image_flow import ImageFlow
from .layer_walk import finite_rows


@dataclass
class Events:
    """Events x (N, \\*event), the context (N, ...) of each, and their rows (N,) in the batch that was given.

    Attributes:
        findings: sentences about the rows that were left out, or would have been if any others were there.
        first_bad_row: the first of these.
        none_is_good: whether no row could be kept, so that none was left out.
    """

    x: Tensor
    context: Tensor | None
    rows: Tensor
    findings: list[str] = field(default_factory=list)
    first_bad_row: int | None = None
    none_is_good: bool = False


def events_of_flow(flow: Flow, x: Tensor, context: Tensor | None) -> Events:
    """Checks the shape and type of the events of a flow, and leaves out those that it has no density for.

    Raises:
        ValueError: if x or the context has the wrong shape or type, or no values.
    """
    check_floating("diagnose", "events", x)
    flow.transforms._check(x, flow.event_shape)
    events = _in_one_batch(flow, x, context, flow.event_shape)
    constraint = flow.transforms.codomain
    return _kept(events, lambda x: _inside(constraint, x), f"lies outside of the support {constraint}")


def images_of_flow(flow: ImageFlow, images: Tensor, context: Tensor | None) -> Events:
    """Checks the shape of integer images, and leaves out those with other values than 0 to levels - 1.

    Raises:
        ValueError: if the images or the context have the wrong shape or type, or no values.
    """
    if not isinstance(images, Tensor) or images.is_complex():
        raise ValueError(f"diagnose needs a tensor of integer images, but got {type(images).__name__}.")
    flow.flow.transforms._batch_shape(images.shape, flow.event_shape)
    state = (*flow.parameters(), *flow.buffers())
    dtype = next((each.dtype for each in state if each.is_floating_point()), torch.get_default_dtype())
    events = _in_one_batch(flow.flow, images.to(dtype), context, flow.event_shape)
    top = flow.levels - 1
    return _kept(events, lambda k: (k >= 0) & (k <= top) & (k == k.floor()), f"is no image of integers from 0 to {top}")


def _in_one_batch(flow: Flow, x: Tensor, context: Tensor | None, event_shape: Size) -> Events:
    """Flattens the batch of events, and gives each its context."""
    if x.is_meta or not x.numel():
        raise ValueError(f"diagnose needs at least one event with values, but got x of shape {tuple(x.shape)}.")
    x = x.detach().clone()  # a plain tensor also of one that was made in inference mode
    batch = x.shape[: x.dim() - len(event_shape)]
    if context is not None:
        check_floating("diagnose", "context", context)
        if not flow.transforms.is_conditional and getattr(flow.base, "context_shape", None) is None:
            raise ValueError(f"diagnose got a context of shape {tuple(context.shape)} for a flow without one.")
        shape = flow.transforms.context_shape or getattr(flow.base, "context_shape", None) or context.shape[-1:]
        of_context = flow.transforms._leading(context.shape, Size(shape), "a context")
        batch = torch.broadcast_shapes(batch, of_context)
        context = context.detach().clone().expand(*batch, *shape).reshape(-1, *shape)
    x = x.expand(*batch, *event_shape).reshape(-1, *event_shape)
    return Events(x, context, torch.arange(len(x)))


def _inside(constraint: constraints.Constraint, x: Tensor) -> Tensor:
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    try:
        return constraint.check(x)
    except Exception:  # of a dependent support, which knows no check
        return torch.ones(len(x), dtype=torch.bool, device=x.device)


def _kept(events: Events, inside: Callable[[Tensor], Tensor], outside: str) -> Events:
    """Leaves out the rows which are not finite or not inside, and says so; none, if all would be left out."""
    finite, of_context = finite_rows(events.x), torch.ones(len(events.x), dtype=torch.bool, device=events.x.device)
    if events.context is not None:
        of_context = finite_rows(events.context)
    elements = inside(events.x)
    fits = elements.reshape(len(elements), -1).all(1)
    good = finite & of_context & fits
    if good.all():
        return events
    events.first_bad_row, events.none_is_good = int((~good).nonzero()[0]), not bool(good.any())
    left = "No row is left" if events.none_is_good else "These rows are left out of the table"
    for what, tensor, fit, wrong in (
        ("x", events.x, finite, "is not finite"),
        ("x", events.x, fits | ~finite, outside),
        ("The context", events.context, of_context, "is not finite"),
    ):
        if tensor is not None and not fit.all():
            row = int((~fit).nonzero()[0])
            event, share = tensor[row], f"{int((~fit).sum())} of {len(fit)} rows"
            culprits = ~event.isfinite() if wrong == "is not finite" else ~elements[row].expand_as(event)
            place = ", ".join(map(str, culprits.nonzero()[0].tolist())) if culprits.dim() else ""
            at = f"column {place}" if event.dim() == 1 else f"element ({place})"
            value = float(event[culprits][0])
            events.findings.append(f"{what} {wrong} in {share}, first in row {row}, {at}: {value:.4g}. {left}.")
    if not events.none_is_good:
        keep = good.nonzero().flatten()
        events.x, events.rows = events.x[keep], events.rows[keep.cpu()]
        events.context = None if events.context is None else events.context[keep]
    return events
