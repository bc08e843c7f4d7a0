"""Reads image data sets as integer tensors, split into training, validation and test images."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from shared.options import fail


class ImageData(NamedTuple):
    """Shape (C, H, W) of the images of a data set, and number of values of a pixel."""

    image_shape: tuple[int, int, int]
    levels: int


DATA = {
    "digits": ImageData((1, 8, 8), 17),
    "mnist": ImageData((1, 28, 28), 256),
    "fashion-mnist": ImageData((1, 28, 28), 256),
    "cifar10": ImageData((3, 32, 32), 256),
    "svhn": ImageData((3, 32, 32), 256),
    "celeba": ImageData((3, 64, 64), 256),
}
LABELLED = ("digits", "mnist", "fashion-mnist", "cifar10", "svhn")  # with one class an image
FOLDER = "folder:"  # then a path


def data_name(text: str) -> str:
    """Returns the name of a data set, or of a folder of images: the type of the option ``--data``."""
    if not text.startswith(FOLDER) and text not in DATA:
        raise ArgumentTypeError(f"must be one of {', '.join(DATA)} or {FOLDER}PATH, but got {text}")
    return text


@cache  # the files of a large folder are read once
def describe_data(name: str, size: int | None = None) -> ImageData:
    """Returns shape and levels of a data set without reading its pixels.

    The shape of the images of a folder is that of its files, or (3, size, size) with a ``size``.
    """
    if name.startswith(FOLDER):
        height, width = _size_of_files(_files(name)) if size is None else (size, size)
        return ImageData((3, height, width), 256)
    return DATA[name]


def load_images(name: str, root: Path, *, download: bool, size: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Loads training, validation and test images, uint8 (N, C, H, W).

    Digits are split 80/20 into training and test with random_state 0, the images of a folder 90/10 in the order of
    their names; the others come with a test set. The validation images are the last tenth of the training images, and
    the last sixth, 10,000, of those of MNIST and Fashion-MNIST.

    Args:
        name: one of ``DATA``, or ``folder:`` and a path.
        root: folder of the data sets of torchvision.
        download: whether what is not there is fetched.
        size: of the images of a folder, which are then cropped to squares and resized.
    """
    if name == "digits":
        images = torch.from_numpy(load_digits().images).to(torch.uint8)[:, None]
        train, test = (part for part in train_test_split(images, test_size=0.2, random_state=0))
    elif name.startswith(FOLDER):
        images = _folder(name, size)
        cut = len(images) - max(1, len(images) // 10)
        train, test = images[:cut], images[cut:]
    else:
        train, test = (_torchvision(name, root, train=part, download=download) for part in (True, False))
    cut = training_rows(name, len(train))
    return train[:cut], train[cut:], test


def load_labelled_digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Loads the digits as :func:`load_images` splits them, each part with its labels (N,)."""
    digits = load_digits()
    images = torch.from_numpy(digits.images).to(torch.uint8)[:, None]
    labels = torch.from_numpy(digits.target)
    train, test, train_labels, test_labels = train_test_split(images, labels, test_size=0.2, random_state=0)
    cut = len(train) - len(train) // 10
    return (train[:cut], train_labels[:cut]), (train[cut:], train_labels[cut:]), (test, test_labels)


def load_labels(name: str, root: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Loads the classes of training, validation and test images, (N,) each, in the order of :func:`load_images`.

    Args:
        name: one of ``LABELLED``.
        root: folder of the data sets of torchvision, where they already are.
    """
    if name == "digits":
        (_, train), (_, validation), (_, test) = load_labelled_digits()
        return train, validation, test
    sets = (_torchvision_set(name, root, train=part, download=False) for part in (True, False))
    every, test = (torch.as_tensor(each.labels if name == "svhn" else each.targets) for each in sets)
    cut = training_rows(name, len(every))
    return every[:cut], every[cut:], test


def training_rows(name: str, count: int) -> int:
    """Returns how many of the images that a data set has for training are left when the last are held out."""
    return count - max(1, count // (6 if name in ("mnist", "fashion-mnist") else 10))


def _torchvision_set(name: str, root: Path, *, train: bool, download: bool) -> Any:
    import torchvision.datasets as sets  # only where it is needed: importing it takes a second

    make: dict[str, Callable[[], Any]] = {
        "mnist": lambda: sets.MNIST(root, train=train, download=download),
        "fashion-mnist": lambda: sets.FashionMNIST(root, train=train, download=download),
        "cifar10": lambda: sets.CIFAR10(root, train=train, download=download),
        "svhn": lambda: sets.SVHN(root, split="train" if train else "test", download=download),
        "celeba": lambda: sets.CelebA(root, split="train" if train else "test", download=download),
    }
    try:
        return make[name]()
    except (RuntimeError, OSError) as error:
        fail(f"{name} is not in --root {root} (add --download to fetch it): {str(error).splitlines()[0]}")


def _torchvision(name: str, root: Path, *, train: bool, download: bool) -> Tensor:
    dataset = _torchvision_set(name, root, train=train, download=download)
    if name == "celeba":  # the crop of the RealNVP paper, rounded to integers again, so that bits are those of images
        return torch.stack([_pixels(image.crop((15, 40, 163, 188)), 64) for image, _ in dataset])
    images = torch.as_tensor(dataset.data)
    if images.dim() == 3:
        return images[:, None]
    return images if images.shape[1] == 3 else images.permute(0, 3, 1, 2).contiguous()


def _files(name: str) -> list[Path]:
    from torchvision.datasets.folder import IMG_EXTENSIONS

    path = Path(name[len(FOLDER) :])
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMG_EXTENSIONS)
    if len(files) < 4:
        fail(f"--data {FOLDER}{path} needs a folder of at least 4 images, but {len(files)} were found.")
    return files


def _size_of_files(files: list[Path]) -> tuple[int, int]:
    """Reads the height and width that all files have in common."""
    from PIL import Image

    sizes: dict[tuple[int, int], Path] = {}
    for file in files:
        with Image.open(file) as image:  # reads the header alone
            sizes.setdefault((image.height, image.width), file)
    if len(sizes) > 1:
        one, other = (f"{height} x {width} ({file.name})" for (height, width), file in [*sizes.items()][:2])
        fail(f"The images of a folder must have one size, but got {one} and {other}; pass --size N for squares of N.")
    return next(iter(sizes))


def _folder(name: str, size: int | None) -> Tensor:
    from torchvision.datasets.folder import pil_loader

    files = _files(name)
    if size is None:
        _size_of_files(files)  # all the same, or an end with a sentence
        return torch.stack([_pixels(pil_loader(str(file))) for file in files])
    images = []
    for file in files:
        image = pil_loader(str(file))
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        images.append(_pixels(image.crop((left, top, left + side, top + side)), size))
    return torch.stack(images)


def _pixels(image: Any, size: int | None = None) -> Tensor:
    """Turns a PIL image into uint8 (3, H, W), resized to (3, size, size) with a ``size``."""
    image = image.convert("RGB")
    if size is not None:
        image = image.resize((size, size), resample=2)  # bilinear
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.reshape(image.height, image.width, 3).permute(2, 0, 1)


# ------------------------------------------------------------------------------------------- shapes of the images


def pad(images: Tensor, event_shape: Sequence[int]) -> Tensor:
    """Pads images with black pixels, at the bottom and on the right, to height and width of the events of a flow."""
    _, height, width = event_shape
    return nn.functional.pad(images, (0, width - images.shape[-1], 0, height - images.shape[-2]))


def crop(images: Tensor, image_shape: Sequence[int]) -> Tensor:
    """Undoes :func:`pad`."""
    return images[..., : image_shape[1], : image_shape[2]]
