"""Image data sets as integer tensors, split into training, validation and test images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from common import fail


class ImageData(NamedTuple):
    image_shape: tuple[int, int, int]
    levels: int
    torchvision_name: str | None = None


DATA = {
    "digits": ImageData((1, 8, 8), 17),
    "mnist": ImageData((1, 28, 28), 256, "MNIST"),
    "fashion-mnist": ImageData((1, 28, 28), 256, "FashionMNIST"),
    "cifar10": ImageData((3, 32, 32), 256, "CIFAR10"),
}


def load_images(name: str, root: Path, *, download: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Training, validation and test images, uint8 (N, C, H, W). The validation images are the last tenth of training.

    Digits are split 80/20 into training and test with random_state 0; the others come with a test set.
    """
    data = DATA[name]
    if data.torchvision_name is None:
        images = torch.from_numpy(load_digits().images).to(torch.uint8)[:, None]
        train, test = (part for part in train_test_split(images, test_size=0.2, random_state=0))
    else:
        train, test = (_torchvision(data, name, root, train=part, download=download) for part in (True, False))
    cut = len(train) - len(train) // 10
    return train[:cut], train[cut:], test


def load_labelled_digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The same splits of the digits as :func:`load_images`, each with its labels (N,)."""
    digits = load_digits()
    images = torch.from_numpy(digits.images).to(torch.uint8)[:, None]
    labels = torch.from_numpy(digits.target)
    train, test, train_labels, test_labels = train_test_split(images, labels, test_size=0.2, random_state=0)
    cut = len(train) - len(train) // 10
    return (train[:cut], train_labels[:cut]), (train[cut:], train_labels[cut:]), (test, test_labels)


def _torchvision(data: ImageData, name: str, root: Path, *, train: bool, download: bool) -> Tensor:
    import torchvision  # only where it is needed: importing it takes a second

    dataset: Callable[..., torch.utils.data.Dataset] = getattr(torchvision.datasets, str(data.torchvision_name))
    try:
        images = torch.as_tensor(dataset(root, train=train, download=download).data)
    except RuntimeError as error:
        fail(f"{name} is not in --root {root} (add --download to fetch it): {str(error).splitlines()[0]}")
    return images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2).contiguous()
