"""Image data sets as integer tensors, split into training, validation and test images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from common import fail


class ImageData(NamedTuple):
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
FOLDER = "folder:"  # then a path: square RGB images of the size that is asked for


def describe_data(name: str, size: int) -> ImageData:
    """Shape and levels, without touching the data."""
    if name.startswith(FOLDER):
        return ImageData((3, size, size), 256)
    if name not in DATA:
        fail(f"--data is one of {', '.join(DATA)} or {FOLDER}PATH, but got {name}.")
    return DATA[name]


def load_images(name: str, root: Path, *, download: bool, size: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    """Training, validation and test images, uint8 (N, C, H, W). The validation images are the last tenth of training.

    Digits are split 80/20 into training and test with random_state 0, the images of a folder 90/10 in the order of
    their names; the others come with a test set.
    """
    if name == "digits":
        images = torch.from_numpy(load_digits().images).to(torch.uint8)[:, None]
        train, test = (part for part in train_test_split(images, test_size=0.2, random_state=0))
    elif name.startswith(FOLDER):
        images = _folder(Path(name[len(FOLDER) :]), size)
        cut = len(images) - max(1, len(images) // 10)
        train, test = images[:cut], images[cut:]
    else:
        train, test = (_torchvision(name, root, train=part, download=download) for part in (True, False))
    cut = len(train) - max(1, len(train) // 10)
    return train[:cut], train[cut:], test


def load_labelled_digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The same splits of the digits as :func:`load_images`, each with its labels (N,)."""
    digits = load_digits()
    images = torch.from_numpy(digits.images).to(torch.uint8)[:, None]
    labels = torch.from_numpy(digits.target)
    train, test, train_labels, test_labels = train_test_split(images, labels, test_size=0.2, random_state=0)
    cut = len(train) - len(train) // 10
    return (train[:cut], train_labels[:cut]), (train[cut:], train_labels[cut:]), (test, test_labels)


def _torchvision(name: str, root: Path, *, train: bool, download: bool) -> Tensor:
    import torchvision.datasets as sets  # only where it is needed: importing it takes a second

    make: dict[str, Callable[[], Any]] = {
        "mnist": lambda: sets.MNIST(root, train=train, download=download),
        "fashion-mnist": lambda: sets.FashionMNIST(root, train=train, download=download),
        "cifar10": lambda: sets.CIFAR10(root, train=train, download=download),
        "svhn": lambda: sets.SVHN(root, split="train" if train else "test", download=download),
        "celeba": lambda: sets.CelebA(root, split="train" if train else "test", download=download),
    }
    try:
        dataset = make[name]()
    except (RuntimeError, OSError) as error:
        fail(f"{name} is not in --root {root} (add --download to fetch it): {str(error).splitlines()[0]}")
    if name == "celeba":  # the crop of the RealNVP paper, rounded to integers again, so that bits are those of images
        return torch.stack([_pixels(image.crop((15, 40, 163, 188)), 64) for image, _ in dataset])
    images = torch.as_tensor(dataset.data)
    if images.dim() == 3:
        return images[:, None]
    return images if images.shape[1] == 3 else images.permute(0, 3, 1, 2).contiguous()


def _folder(path: Path, size: int) -> Tensor:
    from torchvision.datasets.folder import IMG_EXTENSIONS, pil_loader

    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMG_EXTENSIONS)
    if len(files) < 4:
        fail(f"--data {FOLDER}{path} needs a folder of at least 4 images, but {len(files)} were found.")
    images = []
    for file in files:
        image = pil_loader(str(file))
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        images.append(_pixels(image.crop((left, top, left + side, top + side)), size))
    return torch.stack(images)


def _pixels(image: Any, size: int) -> Tensor:
    """A PIL image as uint8 (3, size, size)."""
    resized = image.convert("RGB").resize((size, size), resample=2)  # bilinear
    return torch.frombuffer(bytearray(resized.tobytes()), dtype=torch.uint8).reshape(size, size, 3).permute(2, 0, 1)
