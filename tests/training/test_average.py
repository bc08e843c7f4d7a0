"""The average of a Module's weights over the last steps of training."""

import torch
from torch import nn

from pyro_realnvp.training.average import exponential_average


def test_the_average_of_the_weights() -> None:
    module = nn.BatchNorm1d(3)
    average = exponential_average(module, 0.9)
    want, decays = None, [min(0.9, (1 + n) / (10 + n)) for n in range(40)]
    for step, decay in enumerate(decays):
        with torch.no_grad():
            module.weight.copy_(torch.randn(3))
            module.num_batches_tracked.add_(1)
        want = module.weight.detach().clone() if step == 0 else want.lerp(module.weight.detach(), 1 - decay)
        average.update_parameters(module)
    torch.testing.assert_close(average.module.weight.detach(), want)
    assert average.module.num_batches_tracked == 40
