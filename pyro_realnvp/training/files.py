"""Files of tensors and JSON that are whole or not there: written beside and renamed, with a checksum inside.

They are in the safetensors format: a header of JSON, and the bytes of the tensors. Its metadata has the configuration,
a JSON object as text, and the SHA-256 of everything else in the file. Nothing that is read is executed.
"""

import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from .._runtime.arguments import shown
from .._runtime.reasons import reason

_KEY = "pyro_realnvp"
_DIGEST = "sha256"
_DEAD = 3600.0  #: seconds after which a file to which nothing is written any more has no process


def write_file(path: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Replaces a file, whole or not at all: an earlier one stays until the new one is on the disk.

    Args:
        path: of the file; its folder is made.
        tensors: of any shapes and devices.
        config: plain JSON values.

    Raises:
        TypeError: if the configuration has something that JSON does not have.
        OSError: if the disk is full, say; it has the name of the file.
    """
    made = safetensors().save(_apart(tensors), {_KEY: json.dumps(config)})
    size = int.from_bytes(made[:8], "little")
    header, data = json.loads(made[8 : 8 + size]), memoryview(made)[8 + size :]
    header["__metadata__"][_DIGEST] = _digest(header, data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8
    replace(path, (len(text).to_bytes(8, "little"), text, data))


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies what is on another device, not contiguous, or a part of memory that something else is in as well."""
    apart, seen = {}, set()
    for key, value in tensors.items():
        own = value.detach().cpu().contiguous()
        memory = own.untyped_storage()
        if memory.data_ptr() in seen or memory.nbytes() != own.numel() * own.element_size():
            own = own.clone()
        seen.add(memory.data_ptr())
        apart[key] = own
    return apart


def read_file(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Reads the tensors of a file, and its configuration; None if it has none, as those of other programs.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is truncated or damaged, or no safetensors file.
    """
    library, path = safetensors(), Path(path)
    from safetensors import SafetensorError

    if not path.is_file():
        raise FileNotFoundError(f"{path} is a folder." if path.is_dir() else f"There is no file {path}.")
    content = path.read_bytes()
    try:
        tensors = library.load(content)
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
    except (SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is truncated or no safetensors file ({reason(error)[:-1]}); a file by torch.save is read by "
            f"torch.load."
        ) from error
    metadata = header.get("__metadata__", {})
    if _KEY not in metadata:
        return tensors, None
    try:
        config = json.loads(metadata[_KEY])
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, too
        raise ValueError(f"{path} has a configuration that is no JSON: {reason(error)}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} has a configuration that is no JSON object, {shown(config)}.")
    found, data = metadata.pop(_DIGEST, None), memoryview(content)[8 + size :]
    # The files of format 1 had no checksum; no single bit makes a 1 of another format's number.
    if found != _digest(header, data) and not (found is None and config.get("format") == 1):
        raise ValueError(f"{path} is damaged: its content does not have the checksum that was written with it.")
    return tensors, config


def replace(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Writes a file beside, flushes it to the disk, and renames it.

    The file beside has a name of its own, as several processes may replace one file: the last one has its way.
    """
    make_folder_of(path)
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    with naming(path):
        try:
            with part.open("xb") as file:
                file.writelines(parts)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            with suppress(OSError):  # the first error says more
                part.unlink()
            raise
    remove_parts_of(path, age=_DEAD)


def remove_parts_of(path: Path, *, age: float = 0.0) -> None:
    """Removes what processes that were killed have left half written.

    Args:
        path: of the file that they would have replaced.
        age: seconds for which nothing was written to them.
    """
    now, name = time.time(), re.compile(rf"{re.escape(path.name)}(\.[0-9a-f]{{8}})?\.part")
    for part in path.parent.iterdir():
        with suppress(OSError):  # another process may remove it, too
            if name.fullmatch(part.name) and now - part.stat().st_mtime >= age:
                part.unlink()


def make_folder_of(path: Path) -> None:
    """Makes the folder of a file, if it is not there.

    Raises:
        NotADirectoryError: if there is a file in its place.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        file = next(place for place in path.parents if os.path.lexists(place))
        raise NotADirectoryError(f"There can be no file {path}, as {file} is no folder.") from error


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Gives the name of a file to an error that has none, as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.strerror is not None:
            error.filename = str(path)
        raise


def _digest(header: Mapping[str, Any], data: memoryview) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    digest.update(data)
    return digest.hexdigest()


def safetensors() -> Any:
    """Imports the library, or says how it is installed."""
    try:
        import safetensors.torch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Files of flows and trainings need safetensors: pip install 'pyro-realnvp[train]'"
        ) from error
    return safetensors.torch
