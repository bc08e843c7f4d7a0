"""The state of a Module: loaded all or nothing, or left as it was."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Transform


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


@contextmanager
def preserved(module: nn.Module) -> Iterator[None]:
    """Lets a block compute with a Module, and leaves it as it was: buffers, modes, and what transforms remember.

    The block sees copies of the buffers, so that it may update statistics in place. Parameters are not copied: it must
    neither change them in place nor call ``backward()``.
    """
    parts = list(module.modules())
    holders = [held for part in parts for held in (part.__dict__, part._parameters, part._buffers, part._modules)]
    holders += [vars(transform) for part in parts for transform in _plain_transforms(part)]
    earlier = [dict(held) for held in holders]
    copies: dict[int, Tensor] = {}  # a buffer that two parts share stays one
    for part in parts:
        for name, buffer in part._buffers.items():
            if buffer is not None and not buffer.requires_grad:
                part._buffers[name] = copies.setdefault(id(buffer), buffer.clone())
    try:
        yield
    finally:
        for held, before in zip(holders, earlier, strict=True):
            held.clear()
            held.update(before)


def _plain_transforms(part: nn.Module) -> list[Transform]:
    """Finds the transforms of torch behind the attributes of a Module: they are no Modules, and remember results."""
    found: dict[int, Transform] = {}
    stack: list[Any] = list(vars(part).values())
    while stack:
        each = stack.pop()
        if isinstance(each, list | tuple):
            stack += each
        elif isinstance(each, Transform) and not isinstance(each, nn.Module) and id(each) not in found:
            found[id(each)] = each
            stack += vars(each).values()
    return list(found.values())
