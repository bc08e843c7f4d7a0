"""A flow over integer images as one Module."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Size, Tensor, nn

from ._runtime.checks import count_of, draws
from ._runtime.construction import recorded
from .bijections.support import unbounded
from .dequantization import Dequantized
from .description import load_state
from .flow import Flow
from .summary import count


@recorded
class ImageFlow(nn.Module):
    """A flow over integer images: owns a density on the unit cube, and the noise that makes integers continuous.

    Calling it returns the bound on the log-probability of :class:`~pyro_realnvp.Dequantized`, so that
    :func:`~pyro_realnvp.fit`, :func:`~pyro_realnvp.save` and ``DistributedDataParallel`` take it.

    ``print(model)`` shows a line a layer, as that of a :class:`~pyro_realnvp.Flow` does.

    Args:
        flow: a density on the unit cube.
        levels: number of values of a pixel, 0 to levels - 1.
        dequantizer: a flow on the unit cube given k / levels - 1/2; None for uniform noise.

    Example:
        >>> shape = (1, 4, 4)
        >>> density = Flow(StandardNormal(shape), [*glow_transforms(shape, levels=1, steps=1), Logit(0.05).inv])
        >>> noise = Flow(StandardNormal(shape), flowpp_dequantizer(shape))
        >>> model = ImageFlow(density, levels=256, dequantizer=noise)
        >>> images = model.sample((3,))
        >>> images.dtype, images.shape, model(images).shape
        (torch.int64, torch.Size([3, 1, 4, 4]), torch.Size([3]))
    """

    def __init__(self, flow: Flow, levels: int = 256, dequantizer: Flow | None = None) -> None:
        super().__init__()
        count_of("levels of ImageFlow", levels, 2)
        for name, part in (("a density", flow), ("a dequantizer", dequantizer)):
            if part is not None and unbounded(part.transforms.codomain):
                raise ValueError(
                    f"ImageFlow needs {name} on the unit cube, but got one on the whole real line: end its transforms "
                    f"with Logit(0.05).inv or a SigmoidTransform()."
                )
        self.flow, self.levels, self.dequantizer = flow, levels, dequantizer

    @property
    def event_shape(self) -> Size:
        """Shape (C, H, W) of one image."""
        return self.flow.event_shape

    def distribution(self, context: Tensor | None = None, *, num_samples: int = 1) -> Dequantized:
        """Returns the distribution over integer images, whose bound averages ``num_samples`` draws of the noise."""
        density = self.flow.distribution(context)
        return Dequantized(density, self.levels, dequantizer=self.dequantizer, num_samples=num_samples)

    def forward(self, images: Tensor, context: Tensor | None = None) -> Tensor:
        """Computes the bound on the log-probability in nats, (\\*batch), of integer images (\\*batch, C, H, W)."""
        return self.distribution(context).log_prob(images)

    def log_prob(self, images: Tensor, context: Tensor | None = None) -> Tensor:
        """Computes the bound on the log-probability, as calling the Module does."""
        return self(images, context)

    def sample(self, sample_shape: int | Sequence[int] = (), context: Tensor | None = None) -> Tensor:
        """Draws integer images (\\*sample_shape, \\*context batch, C, H, W) as int64."""
        return self.distribution(context).sample(draws("sample_shape", sample_shape))

    @torch.no_grad()
    def initialize(self, images: Tensor, context: Tensor | None = None) -> None:
        """Initialises every ActNorm that has seen no data yet, in both flows, from a batch of integer images."""
        images = images.to(self.flow.base(None if context is None else context[:1]).mean.dtype)
        noise = torch.rand_like(images)
        self.flow.initialize((images + noise) / self.levels, context)
        if self.dequantizer is not None:
            self.dequantizer.initialize(noise, images / self.levels - 0.5)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads a state all or nothing: before an error nothing has changed."""
        return load_state(self, super().load_state_dict, state_dict, strict=strict, assign=assign)

    def summary(self) -> str:
        """Returns a table of the layers of both flows; see :meth:`~pyro_realnvp.Flow.summary`."""
        parts = [f"flow:\n{self.flow.summary()}"]
        if self.dequantizer is not None:
            parts.append(f"dequantizer:\n{self.dequantizer.summary()}")
        return "\n".join(parts)

    def extra_repr(self) -> str:
        return f"levels={getattr(self, 'levels', None)}, {count(self):,} parameters"  # also in the middle of __init__
