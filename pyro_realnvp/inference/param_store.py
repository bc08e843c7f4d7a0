"""Registers the flow of a guide in Pyro's global parameter store, and takes over parameters loaded into the store."""

import itertools
from collections.abc import Mapping

import pyro
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

# The parameters in Pyro's global store that a guide of this process put there, each with the origin of that guide. The
# others came from a file.
_registered = WeakTensorKeyDictionary()


def register(guide: str, parts: Mapping[str, nn.Module], constants: nn.Module, *, origin: str, unpickled: bool) -> str:
    """Puts the parameters of a flow into the store, or takes over those of a file that was loaded into it.

    Args:
        guide: name of the guide.
        parts: the Modules of the flow by their names in the guide. Their parameters are named
            ``<guide>.<part>$$$<key>``.
        constants: the last layer, whose buffers are saved with the store as ``<guide>.<key>``.
        origin: what a guide has in common with those that were unpickled from it. They share its name, so that the one
            that comes second to the store enters it under the next free of ``<guide>_2``, ``<guide>_3``, ...
        unpickled: whether the guide came from a file, and had no choice of its name: it does the same where the name is
            that of an unrelated guide.

    Returns:
        the name under which the parameters are in the store.

    Raises:
        ValueError: if the store has parameters of an unrelated guide of this name, or of another shape.
    """
    key, first = next(iter(_named(guide, parts).items()))
    if pyro.get_param_store()._params.get(key) is not first:
        others = _origins(guide, parts)
        if others and not unpickled and others != {origin}:
            raise ValueError(
                f"The parameter store has parameters of another guide named {guide!r}: give this one a name of its "
                f"own, AutoRealNVP(..., name=...), or call pyro.clear_param_store() if the other is no longer needed."
            )
        if others:
            guide = _free_name(guide)
        _enter_store(guide, parts, constants, origin)
    for name, part in parts.items():
        if any(value.requires_grad for value in part.parameters()):
            pyro.module(f"{guide}.{name}", part)
    return guide


def _named(guide: str, parts: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Returns the parameters by their names in the store."""
    return {f"{guide}.{name}$$${key}": value for name, part in parts.items() for key, value in part.named_parameters()}


def _origins(guide: str, parts: Mapping[str, nn.Module]) -> set[str]:
    """Returns the origins of the other guides of this process whose parameters have the names of this one's."""
    params = pyro.get_param_store()._params
    stored = ((params.get(key), value) for key, value in _named(guide, parts).items())
    return {_registered[other] for other, value in stored if other is not value and other in _registered}


def _free_name(guide: str) -> str:
    """Returns the first of ``<guide>_2``, ``<guide>_3``, ... under which nothing is in the store."""
    names = tuple(pyro.get_param_store().keys())
    numbered = (f"{guide}_{number}" for number in itertools.count(2))
    return next(name for name in numbered if not any(key.startswith(f"{name}.") for key in names))


def _enter_store(guide: str, parts: Mapping[str, nn.Module], constants: nn.Module, origin: str) -> None:
    store = pyro.get_param_store()
    own: dict[str, Tensor] = dict(_named(guide, parts))
    buffers = {f"{guide}.{key}": value for key, value in constants.named_buffers()}
    for key, value in (own | buffers).items():
        stored = store._params.get(key)
        if stored is None or stored is value:
            continue
        if stored.shape != value.shape and key in own:
            raise ValueError(
                f"The parameter store has {key} of shape {tuple(stored.shape)}, but {guide} needs {tuple(value.shape)}."
            )
        value.data = stored.detach().to(value, copy=True)
        del store[key]
    for key, value in buffers.items():
        store[key] = value.clone()
    for value in own.values():
        _registered[value] = origin
