"""Loads the state of a Module all or nothing."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn


def load_all_or_nothing(
    module: nn.Module, load: Callable[..., Any], state_dict: Mapping[str, Any], *, strict: bool, assign: bool
) -> Any:
    """Calls ``load``, the ``load_state_dict`` of a Module; after an error every tensor is the one it was before.

    Args:
        module: whose state is loaded.
        load: takes a state, ``strict`` and ``assign``, as torch's ``load_state_dict`` does.
        state_dict, strict, assign: of the call.
    """
    own = module.state_dict()
    fits = own.keys() == state_dict.keys() and all(
        isinstance(value, Tensor) and not value.is_meta and value.shape == own[key].shape
        for key, value in state_dict.items()
    )
    if fits:
        return load(state_dict, strict=strict, assign=assign)
    before = {key: value.clone() for key, value in own.items()}
    holders = [(tensors, dict(tensors)) for part in module.modules() for tensors in (part._parameters, part._buffers)]
    try:
        return load(state_dict, strict=strict, assign=assign)
    except Exception:
        for tensors, earlier in holders:
            tensors.update(earlier)  # assign puts other tensors into the place of the parameters
        load(before, strict=True, assign=False)
        raise
