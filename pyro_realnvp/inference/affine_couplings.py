"""The couplings of the guide: many small networks as one parameter, and draws that come with their score."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, silu

from .._runtime.checks import count_of
from .._runtime.construction import recorded
from ..bijections.bijection import Composite

_GAIN, _SKIP, _OUTPUT = 0.5, 0.3, 0.25  # of the networks, as of :class:`SteadyMLP`


class _Layer(NamedTuple):
    """Weights of the network of one coupling, which reads R elements and changes C; H hidden units."""

    read: Tensor  # (H + 2 C, R): to the first hidden layer, and past it; without the latter (H, R)
    bias: Tensor  # (H + 2 C): of the first hidden layer, and of the output
    hidden: Tensor  # (H, H)
    hidden_bias: Tensor  # (H,)
    out: Tensor  # (2 C, H)


@recorded
class AffineCouplings(Composite):
    """Pairs of affine couplings of a vector and a last scale and shift, whose weights are one parameter.

        y_read = x_read,   y_changed = (x_changed - shift) exp(-log_scale),   log_scale = raw / (1 + |raw|)

    with (shift, raw) from a :class:`SteadyMLP` of two hidden layers that reads x_read. Of every pair, one coupling
    changes the first half given the second, and the next one the second half given the first; then the elements at
    even places go to the first half. Dinh et al. (2017), equations 7 and 8, in the direction from the data. Behind them
    every element is scaled and shifted.

    It is the composition of ``SplitCoupling(SteadyMLP).inv``, ``Permute`` and :class:`LearnedAffine`, for networks so
    small that a step of training is the overhead of its operations and parameters. Weights in one parameter are one
    operation for the optimizer and one statement for Pyro, and :meth:`forward_and_score` writes down the gradient of a
    draw.

    Args:
        dim: D, at least 2.
        pairs: number of pairs.
        hidden: width of the hidden layers.
        skip: whether the output also reads the input linearly, with a matrix of D^2/2 elements in every coupling.

    Raises:
        ValueError: if ``dim`` is less than 2.
    """

    multipliers: Tensor

    def __init__(self, dim: int, *, pairs: int = 4, hidden: int = 64, skip: bool = True) -> None:
        if count_of("dim of AffineCouplings", dim) < 2:
            raise ValueError(f"AffineCouplings needs two elements or more, but got dim={dim}.")
        super().__init__((dim,))
        self.skip, self.pairs = skip, count_of("pairs of AffineCouplings", pairs)
        self.hidden = count_of("hidden of AffineCouplings", hidden)
        self.halves = (dim - dim // 2, dim // 2)
        # Of all couplings, or of the first ones of all pairs and the second ones, where they are of other shapes.
        kinds = [self.halves] if self.halves[0] == self.halves[1] else [self.halves[::-1], self.halves]
        self._shapes: list[tuple[int, ...]] = []
        for read, changed in kinds:
            rows = hidden + 2 * changed
            shapes = (rows if skip else hidden, read), (rows,), (hidden, hidden), (hidden,), (2 * changed, hidden)
            self._shapes += [(2 * self.pairs // len(kinds), *shape) for shape in shapes]
        self._lengths = [*(math.prod(shape) for shape in self._shapes), dim, dim]
        initial, multipliers = torch.zeros(sum(self._lengths)), torch.full((sum(self._lengths),), _OUTPUT)
        for weights, factors in zip(self._layers(initial), self._layers(multipliers), strict=True):
            narrow = min(1.0, 16 / weights.read.shape[1])
            factors.read.mul_(_SKIP * narrow)
            factors.read[:hidden] = narrow
            factors.bias[: self.hidden] = 1
            factors.hidden.fill_(1)
            factors.hidden_bias.fill_(1)
            factors.out.mul_(_GAIN)
            for weight, bias in (
                (weights.read[: self.hidden], weights.bias[: self.hidden]),
                (weights.hidden, weights.hidden_bias),
            ):
                bound = weight.shape[1] ** -0.5  # as of nn.Linear; the last layer starts at zero
                nn.init.uniform_(weight, -bound, bound)
                nn.init.uniform_(bias, -bound, bound)
        multipliers[-2 * dim :] = 1
        self.weights = nn.Parameter(initial)
        self.register_buffer("multipliers", multipliers, persistent=False)

    def _layers(self, weights: Tensor) -> list[_Layer]:
        """Returns views of the weights of every coupling, in the order of the draws."""
        parts = weights.split_with_sizes(self._lengths)[:-2]
        each = [part.view(shape).unbind() for part, shape in zip(parts, self._shapes, strict=True)]
        if len(each) == 5:
            return [_Layer(*layer) for layer in zip(*each, strict=True)]
        pairs = zip(zip(*each[:5], strict=True), zip(*each[5:], strict=True), strict=True)
        return [_Layer(*layer) for pair in pairs for layer in pair]

    def _affine(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Returns views of the shift and log_scale (D,) behind the couplings."""
        *_, shift, log_scale = weights.split_with_sizes(self._lengths)
        return shift, log_scale

    @torch.no_grad()
    def set_scale(self, scale: float) -> None:
        """Sets the scale of all elements behind the couplings."""
        self._affine(self.weights)[1].fill_(math.log(scale))

    def _compute(self, x: Tensor, context: Tensor | None, *, inverse: bool) -> tuple[Tensor, Tensor]:
        layers = self._layers(self.weights * self.multipliers)
        last_shift, last_log_scale = self._affine(self.weights)
        if inverse:
            x = (x - last_shift) * (-last_log_scale).exp()
        log_dets = [-self._per_event(last_log_scale.sum(), x)]
        order = range(len(layers))
        for index in reversed(order) if inverse else order:
            if inverse and index % 2 and index < len(layers) - 1:
                x = unshuffled(x)
            parts = list(x.split(self.halves, -1))
            changed = index % 2
            shift, log_scale = self._theta(layers[index], parts[1 - changed])
            if inverse:
                parts[changed] = parts[changed] * log_scale.exp() + shift
            else:
                parts[changed] = (parts[changed] - shift) * (-log_scale).exp()
            log_dets.append(log_scale.sum(-1))
            x = torch.cat(parts, -1)
            if not inverse and index % 2 and index < len(layers) - 1:
                x = torch.cat(shuffled(x), -1)
        total = sum(log_dets[1:], log_dets[0])
        return (x, total) if inverse else (last_shift + x * last_log_scale.exp(), -total)

    def _theta(self, layer: _Layer, read: Tensor) -> tuple[Tensor, Tensor]:
        first, last = layer.bias.split((self.hidden, len(layer.out)))
        if self.skip:
            h, last = linear(read, layer.read, layer.bias).split((self.hidden, len(layer.out)), -1)
        else:
            h = linear(read, layer.read, first)
        params = last + linear(silu(linear(silu(h), layer.hidden, layer.hidden_bias)), layer.out)
        shift, raw = params.to(read.dtype).chunk(2, -1)  # under autocast the map keeps the precision of x
        return shift, raw / (1 + raw.abs())

    def forward_and_score(self, x: Tensor, score: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps x to y, log|det dy/dx| and, if ``score`` is the gradient of log q(x), that of the log-density of y at y.

            score_y = (dy/dx)^-T (score - d log|det dy/dx| / dx)

        Only y has a gradient, along the path: for x and the weights, and once. Vaitl, Nicoli, Nakajima, Kessel (2024),
        Fast and unified path gradient estimators for normalizing flows, section 4.

        Shapes: x and ``score`` (\\*batch, D), to y (\\*batch, D), log|det| (\\*batch), and (\\*batch, D).
        """
        shape = x.shape
        y, log_det, score = _Draw.apply(x.reshape(-1, shape[-1]), self.weights, score.reshape(-1, shape[-1]), self)
        return y.view(shape), log_det.view(shape[:-1]), score.view(shape)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, pairs={self.pairs}"


def shuffled(x: Tensor) -> list[Tensor]:
    """Returns the elements at even places, and those at odd ones."""
    return [x[..., ::2], x[..., 1::2]]


def unshuffled(x: Tensor) -> Tensor:
    """Puts the first half of the elements at even places, and the second at odd ones."""
    even, odd = x.split((x.shape[-1] - x.shape[-1] // 2, x.shape[-1] // 2), -1)
    if even.shape == odd.shape:
        return torch.stack([even, odd], -1).flatten(-2)
    return torch.cat([torch.stack([even[..., :-1], odd], -1).flatten(-2), even[..., -1:]], -1)


class _Pass(NamedTuple):
    """Keeps of one coupling what its gradients need; (S, ...) for S draws."""

    layer: _Layer
    read: Tensor  # (S, R)
    before: tuple[Tensor, Tensor]  # (S, H), of the activations
    after: tuple[Tensor, Tensor]
    minus_log_scale: Tensor  # (S, C)
    slope: Tensor  # d log_scale / d raw, (S, C)
    shrink: Tensor  # exp(-log_scale), (S, C)
    y: Tensor  # (S, C)

    def params_gradient(self, shift: Tensor, log_scale: Tensor) -> Tensor:
        return torch.cat([shift, log_scale * self.slope], 1)

    def backward(self, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Takes the gradient of the output (S, 2 C) back to what is read, and to both activations."""
        first, second = self.before
        second = torch.ops.aten.silu_backward(grad @ self.layer.out, second)
        first = torch.ops.aten.silu_backward(second @ self.layer.hidden, first)
        both = torch.cat([first, grad], 1)
        narrow = both if len(self.layer.read) > len(self.layer.hidden) else first
        return narrow @ self.layer.read, both, second


class _Draw(torch.autograd.Function):
    """Maps x to y by operations without a graph, of which there are several hundred, and writes down the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, score: Tensor, f: AffineCouplings) -> tuple[Tensor, ...]:
        layers = f._layers(weights * f.multipliers)
        parts, scores = [*x.split_with_sizes(f.halves, 1)], [*score.split_with_sizes(f.halves, 1)]
        passes: list[_Pass] = []
        for index, layer in enumerate(layers):
            changed = index % 2
            done = _couple(layer, parts[1 - changed], parts[changed])
            # Through the coupling: s_changed exp(log_scale), and what the network adds to the part that is read.
            pulled = scores[changed]
            scores[changed] = pulled / done.shrink
            grad = done.params_gradient(pulled, (done.y * scores[changed]).add_(1))
            scores[1 - changed] = scores[1 - changed] + done.backward(grad)[0]
            parts[changed] = done.y
            passes.append(done)
            if changed and index < len(layers) - 1:
                parts, scores = shuffled(torch.cat(parts, 1)), shuffled(torch.cat(scores, 1))
        shift, log_scale = f._affine(weights)
        scale = log_scale.exp()
        log_det = torch.cat([done.minus_log_scale for done in passes], 1).sum(1) + log_scale.sum()
        last = torch.cat(parts, 1)
        y, score = torch.addcmul(shift, last, scale), torch.cat(scores, 1) / scale
        ctx.f, ctx.passes, ctx.affine = f, passes, (last, scale)
        ctx.mark_non_differentiable(log_det, score)
        return y, log_det, score

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        f: AffineCouplings = ctx.f
        total = torch.empty_like(f.weights)
        gradients, (shift, log_scale), (last, scale) = f._layers(total), f._affine(total), ctx.affine
        torch.sum(grad, 0, out=shift)
        grad = grad * scale
        torch.sum(grad * last, 0, out=log_scale)
        parts = [*grad.split_with_sizes(f.halves, 1)]
        for index in reversed(range(len(gradients))):
            changed, done, into = index % 2, ctx.passes[index], gradients[index]
            if changed and index < len(gradients) - 1:
                parts = [*unshuffled(torch.cat(parts, 1)).split_with_sizes(f.halves, 1)]
            parts[changed], pulled = parts[changed] * done.shrink, parts[changed]
            output = done.params_gradient(parts[changed], pulled * done.y).neg_()
            read, both, second = done.backward(output)
            parts[1 - changed] = parts[1 - changed] + read
            narrow = both if f.skip else both[:, : f.hidden]
            torch.mm(narrow.T, done.read, out=into.read)
            torch.sum(both, 0, out=into.bias)
            torch.mm(second.T, done.after[0], out=into.hidden)
            torch.sum(second, 0, out=into.hidden_bias)
            torch.mm(output.T, done.after[1], out=into.out)
        return torch.cat(parts, 1), total.mul_(f.multipliers), None, None


def _couple(layer: _Layer, read: Tensor, changed: Tensor) -> _Pass:
    """Passes the changed part (S, C) through a coupling."""
    bias, width, hidden = layer.bias, len(layer.out), len(layer.hidden)
    if len(layer.read) > hidden:
        first, last = torch.addmm(bias, read, layer.read.T).split_with_sizes((hidden, width), 1)
    else:
        first, last = torch.addmm(bias[:hidden], read, layer.read.T), bias[hidden:]
    after = silu(first)
    second = torch.addmm(layer.hidden_bias, after, layer.hidden.T)
    last_after = silu(second)
    shift, raw = torch.addmm(last, last_after, layer.out.T).split_with_sizes((width // 2, width // 2), 1)
    away = torch.rsub(raw.abs(), -1)  # -(1 + |raw|)
    minus_log_scale = raw / away
    shrink = minus_log_scale.exp()
    y = (changed - shift).mul_(shrink)
    slope = away.square_().reciprocal_()
    return _Pass(layer, read, (first, second), (after, last_after), minus_log_scale, slope, shrink, y)
