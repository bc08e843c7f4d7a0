"""Files of trained flows: the weights, and the calls that make the flow again. Never a pickle.

A file is in the safetensors format. Its metadata has a key ``pyro_realnvp`` with a JSON object: the version, the dtype,
and either a description (:mod:`pyro_realnvp.description`) or the arguments for a function of the user's.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._runtime.arguments import shown
from .._runtime.reasons import ERRORS, reason
from ..description import describe, make
from .bounded import shapes_of
from .files import read_file, safetensors, write_file
from .values import check_values

_FORMAT = 2  # of 1, the dequantizer of Flow++ was built the other way round
_ARGUMENT = "argument."  # begins the keys of tensors that belong to the description
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float64, torch.float32, torch.float16)}
_DTYPES["bfloat16"] = torch.bfloat16


def save(module: nn.Module, path: str | Path, *, build: Mapping[str, Any] | None = None) -> None:
    """Writes a flow to one file: its weights, and what :func:`load` needs to make it again.

    Flows made of this package's functions and classes are described by themselves: builders with networks by
    ``partial(...)`` of public classes, bases, ``Logit(...)``, chains, liftings of torch's transforms,
    :class:`~pyro_realnvp.ImageFlow`, and ``guide.flow``. Whether the flow is in training mode, the switches
    ``recompute``, ``rebuild`` and ``synchronize``, and ``requires_grad`` are not saved.

    The file is written beside, flushed to the disk and renamed: an earlier file is replaced whole or not at all.

    Args:
        module: a :class:`~pyro_realnvp.Flow`, say.
        path: of the file.
        build: instead of a description, arguments (plain JSON values) from which a function that is given to
            :func:`load` makes the Module.

    Raises:
        ValueError: if a part of the flow cannot be written down, and ``build`` is not given; the message names it.

    Example:
        >>> flow, x = Flow(StandardNormal(2), realnvp_transforms(2)), torch.randn(5, 2)
        >>> save(flow, "flow.safetensors")
        >>> torch.equal(load("flow.safetensors")(x), flow(x))
        True
    """
    safetensors()
    if not isinstance(module, nn.Module):
        raise ValueError(f"save needs a Module, such as a Flow, but got {type(module).__name__}.")
    if build is not None and not isinstance(build, Mapping):
        raise ValueError(f"save(..., build=arguments) needs a mapping of arguments, but got {type(build).__name__}.")
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; save needs the path of a file in it.")
    dtypes = {t.dtype for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()}
    dtypes = dtypes or {torch.get_default_dtype()}
    if len(dtypes) > 1:
        raise ValueError(
            f"save needs a flow of one floating point dtype, but got {', '.join(sorted(map(str, dtypes)))}."
        )
    config: dict[str, Any] = {"format": _FORMAT, "dtype": str(*dtypes).removeprefix("torch.")}
    tensors: dict[str, Tensor] = {}
    if build is None:
        config["description"], tensors = describe(module)
    else:
        config["build"] = dict(build)
    state = module.state_dict()
    if clash := [key for key in state if key.startswith(_ARGUMENT)]:
        raise ValueError(f"save needs the keys that begin with {_ARGUMENT!r} for itself, but the state has {clash[0]}.")
    try:
        write_file(path, state | tensors, config)
    except TypeError as error:
        raise ValueError(f"save(..., build=arguments) needs plain JSON values: {error}.") from error


def load(path: str | Path, *, build: Callable[..., nn.Module] | None = None, device: torch.device | str = "cpu") -> Any:
    """Makes the flow that :func:`save` wrote, in evaluation mode.

    Args:
        path: of the file.
        build: for a file that was saved with ``build=arguments``, a function that makes the Module of them.
        device: where the flow is put.

    Returns:
        The Module; its log-densities are those of the one that was saved, to the last bit.

    Raises:
        ValueError: if the file is truncated, has no configuration, names something that is no class or function of
            this package, or has the weights of another architecture.

    Example:
        >>> flow = Flow(StandardNormal(2), realnvp_transforms(2, couplings=4))
        >>> save(flow, "flow.safetensors", build={"couplings": 4})
        >>> def build(couplings):
        ...     return Flow(StandardNormal(2), realnvp_transforms(2, couplings=couplings))
        >>> again = load("flow.safetensors", build=build)
        >>> len(again.transforms), again.training
        (4, False)
    """
    state, config = read_file(path)
    arguments = {key: state.pop(key) for key in [*state] if key.startswith(_ARGUMENT)}
    if config is None:
        raise ValueError(
            f"{path} has weights but no configuration, as the files of version 0.1 and of other programs: make the "
            f"flow that they belong to and call flow.load_state_dict(safetensors.torch.load_file(path))."
        )
    if config.get("format") == 1 and '"flowpp_dequantizer"' in json.dumps(config):
        raise ValueError(
            f"{path} has a dequantizer of Flow++ from before version 0.2, which drew noise by a numerical search; now "
            f"it is drawn in closed form, by another network. Train it again."
        )
    if config.get("format") not in (1, _FORMAT) or config.get("dtype") not in [*_DTYPES]:
        raise ValueError(
            f"{path} has the format {shown(config.get('format'))} and the dtype {shown(config.get('dtype'))}, which "
            f"this version does not read."
        )
    if build is None and "build" in config:
        raise ValueError(f"{path} was saved with build=arguments; pass load(..., build=function).")
    if build is not None and "build" not in config:
        raise ValueError(f"{path} describes its flow itself; it was saved without build=arguments.")
    return _made(path, config, arguments, state, build).to(device).eval()


def _made(
    path: str | Path,
    config: Mapping[str, Any],
    arguments: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    build: Callable[..., nn.Module] | None,
) -> nn.Module:
    """Makes the Module of a configuration, and loads its weights."""

    def of_config() -> nn.Module:
        made = make(config.get("description", {}), arguments) if build is None else build(**config["build"])
        if not isinstance(made, nn.Module):
            raise ValueError(f"it describes a {type(made).__name__}, which is no Module.")
        return made.to(_DTYPES[config["dtype"]])

    try:
        expected = shapes_of(of_config, state)
        found = {key: tuple(value.shape) for key, value in state.items()}
        for key in sorted(expected.keys() | found.keys()):
            if expected.get(key) != found.get(key):
                raise ValueError(
                    f"it has weights of another architecture than {'its configuration' if build is None else 'build'} "
                    f"makes: {key} should have shape {expected.get(key, 'none')}, but has {found.get(key, 'none')}."
                )
        module = of_config()
        check_values(module, state)
        module.load_state_dict(state)
    except ERRORS as error:
        raise ValueError(f"{path} cannot be made into a flow: {reason(error)}") from error
    return module
