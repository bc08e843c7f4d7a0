"""Finds the depth at which a multi-scale flow factors every latent out, and draws shallow latents anew."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_realnvp import Flow
from pyro_realnvp.bijections.bijection import Bijection, Inverse
from pyro_realnvp.bijections.chain import Chain
from pyro_realnvp.bijections.multiscale import FactorOut, Sandwich


def latent_depths(flow: Flow) -> Tensor:
    """Computes, for every latent, how many layers :class:`FactorOut` have passed it on, as integers of the event shape.

    The latents that are factored out first have depth 0, those that go through every scale the largest one. An image
    of zeros is sent through the layers from data to latent: those that rearrange pixels rearrange it too, and FactorOut
    adds 1 to the half that goes on. Without any FactorOut all depths are 0.

    Raises:
        ValueError: if a layer that computes with pixels follows FactorOut, so that its depths are mixed.
    """
    if not any(isinstance(module, FactorOut) for module in flow.modules()):
        return torch.zeros(flow.transforms.event_shape, dtype=torch.long)
    return _passed(flow.transforms.inv, torch.zeros(flow.event_shape)).long()


def _passed(layer: Bijection, depths: Tensor) -> Tensor:
    """Sends an image of depths through one layer, in the direction data -> latent."""
    inverse = isinstance(layer, Inverse)
    inner = layer.bijection if isinstance(layer, Inverse) else layer
    if layer.rearranges:
        device = next((buffer.device for buffer in layer.buffers()), depths.device)
        return layer.forward_and_log_det(depths.to(device))[0].to(depths.device)
    if isinstance(inner, Chain):
        parts = [part.inv for part in reversed(inner.bijections)] if inverse else inner.bijections
        for part in parts:
            depths = _passed(part, depths)
        return depths
    if isinstance(inner, Sandwich):
        unpacked = inner.bijection.inv if inverse else inner.bijection
        return _passed(inner.outer.inv, _passed(unpacked, _passed(inner.outer, depths)))
    if isinstance(inner, FactorOut):
        goes_on, stays = depths.chunk(2, -3)
        unpacked = inner.bijection.inv if inverse else inner.bijection
        return torch.cat([_passed(unpacked, goes_on + 1), stays], -3)
    if layer.event_shape != layer.output_shape or (layer.event_shape and bool((depths != depths.flatten()[0]).any())):
        raise ValueError(f"{type(inner).__name__} computes with latents of several depths, so that they have none.")
    return depths


def drawn_anew(latents: Tensor, depths: Tensor, below: int, fresh: Tensor) -> Tensor:
    """Keeps the latents of depth ``below`` and more, and takes the others from ``fresh``.

    With ``below=0`` every latent is kept, with ``below=depths.max() + 1`` none. Gregor et al., "Towards Conceptual
    Compression" (2016); Dinh et al. (2017), appendix.
    """
    return torch.where(depths.to(latents.device) >= below, latents, fresh)
