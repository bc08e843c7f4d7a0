"""Registers the flow of a guide in Pyro's global parameter store, and takes over parameters loaded into the store."""

import pyro
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

# The parameters in Pyro's global store that a guide of this process put there. The others came from a file.
_registered = WeakTensorKeyDictionary()


def register(guide: str, flow: nn.Module, constants: nn.Module) -> None:
    """Puts the parameters of a flow into the store, or takes over those of a file that was loaded into it.

    Args:
        guide: name of the guide. The parameters are named ``<guide>.transform$$$<key>``.
        flow: the flow of the guide.
        constants: its last layer, whose buffers are saved with the store as ``<guide>.<key>``.

    Raises:
        ValueError: if the store has parameters of another guide of this name, or of another shape.
    """
    name = f"{guide}.transform"
    key, first = next(flow.named_parameters())
    if pyro.get_param_store()._params.get(f"{name}$$${key}") is not first:
        _enter_store(guide, name, flow, constants)
    if any(value.requires_grad for value in flow.parameters()):
        pyro.module(name, flow)


def _enter_store(guide: str, name: str, flow: nn.Module, constants: nn.Module) -> None:
    store = pyro.get_param_store()
    own = {f"{name}$$${key}": value for key, value in flow.named_parameters()}
    buffers = {f"{guide}.{key}": value for key, value in constants.named_buffers()}
    for key, value in (own | buffers).items():
        stored = store._params.get(key)
        if stored is None or stored is value:
            continue
        if stored in _registered and key in own:
            raise ValueError(
                f"The parameter store has parameters of another guide named {guide!r}: give this one a name of its "
                f"own, AutoRealNVP(..., name=...), or call pyro.clear_param_store() if the other is no longer needed."
            )
        if stored.shape != value.shape and key in own:
            raise ValueError(
                f"The parameter store has {key} of shape {tuple(stored.shape)}, but {guide} needs {tuple(value.shape)}."
            )
        value.data = stored.detach().to(value, copy=True)
        del store[key]
    for key, value in buffers.items():
        store[key] = value.clone()
    for value in own.values():
        _registered[value] = True
