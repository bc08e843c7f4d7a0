"""Defines densities in the plane that are known exactly: what flows are compared on.

All are of about unit scale. ``TARGETS`` has them by name.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor


class Planar(ABC):
    """A density p(x) in the plane, with points drawn from it."""

    @abstractmethod
    def sample(self, count: int) -> Tensor:
        """Draws points (count, 2)."""

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Computes log p of points (N, 2) in nats, in float64."""


class Curve(Planar):
    """Points on a curve with a known distribution along it, plus N(0, noise^2 I).

        p(x) = integral over u in [0, 1] of N(x; point(u), noise^2 I)

    by a Gauss-Legendre rule whose nodes must be less than a standard deviation of the noise apart.
    """

    noise: float
    nodes: int
    pieces: int  #: of [0, 1], on each of which the curve is smooth

    @abstractmethod
    def point(self, u: Tensor) -> Tensor:
        """Returns the points (\\*batch, 2) of the curve at u in [0, 1]."""

    def sample(self, count: int) -> Tensor:
        return self.point(torch.rand(count)) + self.noise * torch.randn(count, 2)

    def log_prob(self, x: Tensor) -> Tensor:
        where, weight = (torch.from_numpy(value) for value in np.polynomial.legendre.leggauss(self.nodes))
        u = torch.cat([(piece + (where + 1) / 2) / self.pieces for piece in range(self.pieces)])
        points, log_weight = self.point(u), (weight / (2 * self.pieces)).log().repeat(self.pieces)
        parts = []
        for part in x.detach().double().split(2048):  # a distance for every point and node: keep it small
            square = (part[:, None] - points).square().sum(-1)
            parts.append((log_weight - square / (2 * self.noise**2)).logsumexp(-1))
        return torch.cat(parts) - math.log(2 * math.pi * self.noise**2)


class TwoMoons(Curve):
    """Two half circles, as scikit-learn's ``make_moons`` with noise 0.05 draws them."""

    noise, nodes, pieces = 0.05, 128, 2

    def point(self, u: Tensor) -> Tensor:
        inner, angle = u >= 0.5, 2 * math.pi * (u % 0.5)
        outer_moon = torch.stack([angle.cos(), angle.sin()], -1)
        inner_moon = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], -1)
        return torch.where(inner[..., None], inner_moon, outer_moon)


class TwoSpirals(Curve):
    """Two spirals of one and a half turns, uniform along the square of the angle."""

    noise, nodes, pieces = 0.06, 512, 2

    def point(self, u: Tensor) -> Tensor:
        side = torch.where(u >= 0.5, -1.0, 1.0).to(u.dtype)
        angle = 3 * math.pi * (2 * u % 1).sqrt()
        return (side * angle / 5)[..., None] * torch.stack([angle.cos(), angle.sin()], -1)


class Checkerboard(Planar):
    """Uniform on eight of the sixteen unit squares of [-2, 2]^2."""

    def sample(self, count: int) -> Tensor:
        column, row = torch.randint(4, (count,)), torch.randint(2, (count,))
        corner = torch.stack([column, 2 * row + column % 2], -1) - 2
        return corner + torch.rand(count, 2)

    def log_prob(self, x: Tensor) -> Tensor:
        x = x.detach().double()
        even = x.floor().sum(-1) % 2 == 0
        inside = (x.abs() <= 2).all(-1) & even
        return torch.where(inside, -math.log(8), -math.inf)


class Rings(Planar):
    """Four rings around the origin, as likely as each other, with normal noise of the radius."""

    radii, noise = (0.5, 1.0, 1.5, 2.0), 0.08

    def sample(self, count: int) -> Tensor:
        angle = 2 * math.pi * torch.rand(count)
        radius = torch.tensor(self.radii)[torch.randint(4, (count,))] + self.noise * torch.randn(count)
        return radius[:, None] * torch.stack([angle.cos(), angle.sin()], -1)

    def log_prob(self, x: Tensor) -> Tensor:
        radius = x.detach().double().norm(dim=-1)  # that of no draw is negative: 0.5 is six standard deviations
        centre = torch.tensor(self.radii, dtype=torch.float64)
        log_normal = -0.5 * ((radius[:, None] - centre) / self.noise).square() - math.log(self.noise)
        log_radial = log_normal.logsumexp(-1) - math.log(4) - 0.5 * math.log(2 * math.pi)
        return log_radial - (2 * math.pi * radius).log()


class EightGaussians(Planar):
    """Eight normal distributions on a circle of radius 2, with standard deviation 0.2."""

    noise = 0.2

    def _centres(self, dtype: torch.dtype) -> Tensor:
        angle = torch.arange(8, dtype=dtype) * (math.pi / 4)
        return 2 * torch.stack([angle.cos(), angle.sin()], -1)

    def sample(self, count: int) -> Tensor:
        return self._centres(torch.float32)[torch.randint(8, (count,))] + self.noise * torch.randn(count, 2)

    def log_prob(self, x: Tensor) -> Tensor:
        square = (x.detach().double()[:, None] - self._centres(torch.float64)).square().sum(-1)
        return (-square / (2 * self.noise**2)).logsumexp(-1) - math.log(8 * 2 * math.pi * self.noise**2)


TARGETS: dict[str, Planar] = {
    "two-moons": TwoMoons(),
    "checkerboard": Checkerboard(),
    "rings": Rings(),
    "two-spirals": TwoSpirals(),
    "eight-gaussians": EightGaussians(),
}
