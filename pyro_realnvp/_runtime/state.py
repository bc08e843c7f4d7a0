"""Loads the state of a Module all or nothing."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def load_all_or_nothing(
    module: nn.Module, load: Callable[..., Any], state_dict: Mapping[str, Any], *, strict: bool, assign: bool
) -> Any:
    """Calls ``load``, the ``load_state_dict`` of a Module; after an error every tensor is the one it was before.

    Args:
        module: whose state is loaded.
        load: takes a state, ``strict`` and ``assign``, as torch's ``load_state_dict`` does.
        state_dict, strict, assign: of the call.

    Raises:
        ValueError: if a value is no tensor, or has no values as it is on the meta device and the Module is not.
        RuntimeError: of torch, if keys or shapes do not fit.
    """
    own = module.state_dict()
    for key, value in state_dict.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"The state has a {type(value).__name__} for {key}, but needs a tensor.")
        if value.is_meta and key in own and not own[key].is_meta:
            raise ValueError(f"The state has a tensor on the meta device for {key}, which has no values.")
    if own.keys() == state_dict.keys() and all(own[key].shape == value.shape for key, value in state_dict.items()):
        return load(state_dict, strict=strict, assign=assign)
    parts = list(module.modules())
    tensors = [t for part in parts for t in (*part._parameters.values(), *part._buffers.values()) if t is not None]
    values = [tensor.detach().clone() for tensor in tensors]
    holders = [(held, dict(held)) for part in parts for held in (part.__dict__, part._parameters, part._buffers)]
    try:
        return load(state_dict, strict=strict, assign=assign)
    except Exception:
        for held, earlier in holders:
            held.update(earlier)  # assign puts other tensors into the place of the parameters
        with torch.no_grad():
            for tensor, value in zip(tensors, values, strict=True):
                tensor.copy_(value)
        raise
