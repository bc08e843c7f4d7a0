"""Linear and affine bijections: Scale (NICE), FixedAffine, Permute, and the invertible 1x1 convolution (Glow)."""

import math
from collections.abc import Iterable, Sequence
from operator import index

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._runtime.arguments import shown
from .._runtime.autocast import full_precision
from .._runtime.batches import flatten_batch
from .._runtime.checks import check_floating, values_are_known
from .._runtime.construction import recorded
from .bijection import Bijection
from .normalization import ActNorm
from .reversible import Reversible


@recorded
class Scale(Reversible):
    """Scales every element: y = x exp(log_scale), log|det dy/dx| = sum log_scale. Dinh et al. (2014), section 3.3.

    Args:
        event_shape: shape of x, and of the learned ``log_scale``, which starts at zero.

    Example:
        >>> f = Scale((2,))
        >>> _ = f.log_scale.data.copy_(torch.tensor([1.0, 2.0]))
        >>> y, log_det = f.forward_and_log_det(torch.ones(2))
        >>> log_det.item()
        3.0
    """

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__(event_shape)
        self.log_scale = nn.Parameter(torch.zeros(self.event_shape))

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x * self.log_scale.exp(), self._per_event(self.log_scale.sum(), x)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return y * (-self.log_scale).exp(), self._per_event(-self.log_scale.sum(), y)


@recorded
class FixedAffine(Bijection):
    """Shifts and scales a vector by constants: y = loc + L x, log|det dy/dx| = sum log L_ii.

    The constants are saved with the state and not learned. As the last layer of a flow, with the mean and the
    covariance L L^T of the data, it lets the layers before it work on standardised data.

    Args:
        loc: (D,).
        scale: (D,) for a diagonal L, or lower-triangular (D, D); the diagonal is positive.

    Raises:
        ValueError: if the shapes do not fit, or the diagonal is not positive.

    Example:
        >>> f = FixedAffine(torch.tensor([1.0, 2.0]), torch.tensor([[2.0, 0.0], [1.0, 3.0]]))
        >>> y, log_det = f.forward_and_log_det(torch.ones(2))
        >>> y, round(log_det.exp().item(), 4)
        (tensor([3., 6.]), 6.0)
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        for what, given in (("loc", loc), ("scale", scale)):
            check_floating("FixedAffine", what, given)
        if loc.dtype != scale.dtype:
            raise ValueError(f"FixedAffine needs loc and scale of one dtype, but got {loc.dtype} and {scale.dtype}.")
        if loc.dim() != 1 or scale.shape not in (loc.shape, loc.shape * 2):
            raise ValueError(
                f"FixedAffine needs a scale (D,) or (D, D) for loc {tuple(loc.shape)}, but got {tuple(scale.shape)}."
            )
        super().__init__(loc.shape)
        self.register_buffer("loc", loc.detach().clone())
        self.register_buffer("scale", scale.detach().clone() if scale.dim() == 1 else scale.detach().tril())
        if values_are_known(loc):
            for name, value in (("loc", self.loc), ("scale", self.scale)):
                if not value.isfinite().all():
                    raise ValueError(
                        f"FixedAffine needs a finite {name}, but got {float(value[~value.isfinite()][0])}."
                    )
            if not (self._diagonal > 0).all():
                raise ValueError(f"FixedAffine needs a positive diagonal, but got {float(self._diagonal.min())} in it.")

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        with full_precision(x):
            y = x * self.scale if self.scale.dim() == 1 else x @ self.scale.T
        return self.loc + y, self._log_det(x)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y = y - self.loc
        if self.scale.dim() == 1:
            return y / self.scale, -self._log_det(y)
        x = torch.linalg.solve_triangular(self.scale, y.unsqueeze(-1), upper=False)
        return x.squeeze(-1), -self._log_det(y)

    def forward_and_score(self, x: Tensor, score: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Also maps the gradient of log q(x) to that of the log-density of y at y: L^-T score, (\\*batch, D)."""
        y, log_det = self.forward_and_log_det(x)
        if self.scale.dim() == 1:
            return y, log_det, score / self.scale
        rows = score.reshape(-1, score.shape[-1])
        return y, log_det, torch.linalg.solve_triangular(self.scale, rows, upper=False, left=False).view(score.shape)

    @property
    def _diagonal(self) -> Tensor:
        return self.scale if self.scale.dim() == 1 else self.scale.diagonal()

    def _log_det(self, x: Tensor) -> Tensor:
        return self._per_event(self._diagonal.log().sum(), x)


@recorded
class Permute(Reversible):
    """Reorders the channels of an image, or the coordinates of a vector: y_c = x_{p(c)}, log|det dy/dx| = 0.

    Args:
        event_shape: (C, H, W) or (D,).
        permutation: p, each of 0, ..., C - 1 once.

    Raises:
        ValueError: if it is not a permutation of the channels.

    Example:
        >>> f = Permute((3,), [2, 0, 1])
        >>> y, log_det = f.forward_and_log_det(torch.tensor([10.0, 20.0, 30.0]))
        >>> y, log_det, f.inv(y)
        (tensor([30., 10., 20.]), tensor(0.), tensor([10., 20., 30.]))
    """

    rearranges = True
    permutation: Tensor
    inverse_permutation: Tensor

    def __init__(self, event_shape: Sequence[int], permutation: Iterable[int] | Tensor) -> None:
        super().__init__(event_shape)
        if not self.event_shape:
            raise ValueError("Permute needs events (D,) or (C, H, W), but got the event shape ().")
        channels = self.event_shape[0]
        try:
            indices = [index(each) for each in permutation]
        except TypeError:  # no iterable, or one of something else than integers
            indices = []
        if len(indices) != channels or sorted(indices) != list(range(channels)):
            raise ValueError(f"Permute needs a permutation of 0, ..., {channels - 1}, but got {shown(permutation)}.")
        order = torch.tensor(indices)
        self.register_buffer("permutation", order)
        self.register_buffer("inverse_permutation", order.argsort(), persistent=False)

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._select(x, self.permutation)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._select(y, self.inverse_permutation)

    def _select(self, x: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        dim = -len(self.event_shape)
        return x.index_select(dim, order), x.new_zeros(x.shape[:dim])

    def _load_from_state_dict(self, *args: object) -> None:
        super()._load_from_state_dict(*args)
        self.inverse_permutation.copy_(self.permutation.argsort())


class _Plain(nn.Module):
    """Parametrises W by its entries; starts as a random rotation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.orthogonal_(torch.empty(channels, channels)))

    def forward(self) -> tuple[Tensor, Tensor]:
        # In double precision: the determinant of a few hundred channels spans more than float32 keeps.
        return self.weight, torch.linalg.slogdet(self.weight.double()).logabsdet.to(self.weight.dtype)


class _Factorized(nn.Module):
    """Parametrises W = P L (U + diag(sign exp(log_s))), P and signs fixed. Kingma & Dhariwal (2018), equation 11."""

    permutation: Tensor
    sign: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        # Before a rotation of this size is drawn: a file that is too small for it is refused here.
        self.lower = nn.Parameter(torch.empty(channels, channels))
        self.upper = nn.Parameter(torch.empty(channels, channels))
        rotation = nn.init.orthogonal_(torch.empty(channels, channels, device="cpu"))
        p, lower, upper = torch.linalg.lu(rotation)
        device = torch.get_default_device()
        with torch.no_grad():
            self.lower.copy_(lower)
            self.upper.copy_(upper)
        self.log_s = nn.Parameter(upper.diagonal().abs().log().to(device))
        self.register_buffer("permutation", p.to(device))
        self.register_buffer("sign", upper.diagonal().sign().to(device))

    def forward(self) -> tuple[Tensor, Tensor]:
        lower = self.lower.tril(-1) + torch.eye(len(self.sign), dtype=self.lower.dtype, device=self.lower.device)
        upper = self.upper.triu(1) + torch.diag(self.sign * self.log_s.exp())
        return self.permutation @ lower @ upper, self.log_s.sum()


@recorded
class InvertibleConv1x1(Reversible):
    """A learned linear map of the channels of every pixel. Kingma & Dhariwal (2018), section 3.2.

        y_ij = W x_ij,   log|det dy/dx| = H W log|det W|

    With an ActNorm in front, W (x - shift) exp(log_scale) is computed as one convolution.

    Args:
        event_shape: (C, H, W) or (D,).
        norm: an :class:`ActNorm` of the same events, applied first and folded into the convolution.
        plu: the factorised form of equation 11, whose determinant is a sum, instead of W itself.

    Raises:
        ValueError: when inverting, if W is singular.

    Example:
        >>> from pyro_realnvp.testing import randomize
        >>> f = InvertibleConv1x1((3, 4, 4))
        >>> randomize(f)
        >>> w, log_det_of_w = f.matrix()
        >>> f.forward_and_log_det(torch.randn(5, 3, 4, 4))[1].allclose(16 * w.slogdet().logabsdet)
        True
    """

    def __init__(self, event_shape: Sequence[int], *, norm: ActNorm | None = None, plu: bool = False) -> None:
        super().__init__(event_shape)
        shape = tuple(self.event_shape)
        if len(shape) not in (1, 3):
            raise ValueError(f"InvertibleConv1x1 needs events (D,) or (C, H, W), but got {shape}.")
        if norm is not None and (norm.event_shape != self.event_shape or norm.shift.dim() > 1):
            raise ValueError(
                f"InvertibleConv1x1 of events {shape} takes an ActNorm per channel of the same events, but got "
                f"ActNorm of events {tuple(norm.event_shape)} with {norm.shift.numel()} numbers."
            )
        self.norm = norm
        self.matrix = (_Factorized if plu else _Plain)(shape[0])

    @property
    def is_reversible(self) -> bool:
        return self.norm is None or self.norm.is_reversible

    def forward_and_log_det(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.norm is not None:
            self.norm.initialize_once(x)
        with full_precision(x):
            weight, log_det = self.matrix()
            bias = None
            if self.norm is not None:
                weight = weight * self.norm.log_scale.exp()
                bias = -(weight @ self.norm.shift)
                log_det = log_det + self.norm.log_scale.sum()
            return self._apply_matrix(x, weight, bias), self._over_pixels(x, log_det)

    def inverse_and_log_det(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        with full_precision(y):
            weight, log_det = self.matrix()
            inverse, info = torch.linalg.inv_ex(weight.double())
            if values_are_known(y):
                condition = torch.where(info == 0, _condition(weight, inverse), math.inf)
                if bool(~(condition * torch.finfo(weight.dtype).eps < 0.1)):
                    raise ValueError(
                        f"InvertibleConv1x1 has a singular matrix W of {len(weight)} channels, for {weight.dtype}: its "
                        f"condition number is {float(condition):.0e}."
                    )
            inverse = inverse.to(weight.dtype)
            bias = None
            if self.norm is not None:
                inverse = (-self.norm.log_scale).exp()[:, None] * inverse
                bias = self.norm.shift
                log_det = log_det + self.norm.log_scale.sum()
            return self._apply_matrix(y, inverse, bias), -self._over_pixels(y, log_det)

    @torch.no_grad()
    def condition_number(self) -> float:
        """Computes Skeel's condition number of W, max_i sum_j (|W^-1| |W|)_ij; infinite if W is singular.

        Times the machine epsilon it bounds the relative error of W^-1 W x, whatever the scales of the rows of W.
        """
        weight = self.matrix()[0]
        inverse, info = torch.linalg.inv_ex(weight.double())
        return math.inf if bool(info != 0) else float(_condition(weight, inverse))

    def _apply_matrix(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if len(self.event_shape) == 1:
            return F.linear(x, weight, bias)
        batch = x.shape[:-3]
        y = F.conv2d(flatten_batch(x, 3), weight[:, :, None, None], bias)
        return y.reshape(batch + self.event_shape)

    def _over_pixels(self, x: Tensor, log_det: Tensor) -> Tensor:
        return self._per_event(log_det * self.event_shape[1:].numel(), x)


def _condition(weight: Tensor, inverse: Tensor) -> Tensor:
    return (inverse.abs() @ weight.double().abs()).detach().sum(1).max()
