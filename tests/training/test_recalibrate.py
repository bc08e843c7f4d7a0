"""Statistics of batch normalization computed again from data."""

import copy

import pytest
import torch
from torch import nn

from pyro_realnvp import BatchNorm, Flow, StandardNormal, realnvp_transforms, recalibrate

from zoo import resnet


def data(*shape):
    return 3 * torch.randn(shape, dtype=torch.float64) + 2


def test_recalibrate_sets_the_statistics_of_the_data():
    flow = Flow(StandardNormal(2), [BatchNorm((2,)).inv]).double()
    norm = flow.transforms[0].inv
    batches = [data(4, 2), data(4, 2), data(8, 2)]
    flow(data(30, 2))  # some earlier statistics, which must be gone
    recalibrate(flow, iter(batches))
    weights = (0.25, 0.25, 0.5)
    torch.testing.assert_close(norm.running_mean, sum(w * b.mean(0) for w, b in zip(weights, batches, strict=True)))
    variances = [b.var(0, correction=0) for b in batches]
    torch.testing.assert_close(norm.running_var, sum(w * v for w, v in zip(weights, variances, strict=True)))


@pytest.mark.parametrize("training", [False, True])
def test_recalibrate_restores_modes_and_momenta(training):
    flow = Flow(StandardNormal((1, 4, 4)), realnvp_transforms((1, 4, 4), net=resnet)).train(training)
    flow.transforms[0].eval()
    modes = [m.training for m in flow.modules()]
    parameters = [p.clone() for p in flow.parameters()]
    recalibrate(flow, [(torch.randn(6, 1, 4, 4),), torch.randn(6, 1, 4, 4)])
    assert [m.training for m in flow.modules()] == modes
    for module in flow.modules():
        if isinstance(module, BatchNorm | nn.BatchNorm2d):
            assert module.momentum == 0.1
            assert module.running_var.ne(1).any()
    assert all(torch.equal(p, q) for p, q in zip(flow.parameters(), parameters, strict=True))
    with pytest.raises(ValueError, match="got NaN"), torch.no_grad():
        recalibrate(nn.Sequential(BatchNormModule()), [torch.full((3, 2), torch.nan)])
    assert [m.training for m in flow.modules()] == modes


class BatchNormModule(nn.Module):
    """Calls the layer on its input."""

    def __init__(self):
        super().__init__()
        self.norm = BatchNorm((2,))

    def forward(self, x):
        return self.norm.forward_and_log_det(x)[0]


def test_recalibrate_without_data_changes_nothing():
    flow = Flow(StandardNormal(2), [BatchNorm((2,)).inv])
    flow(torch.randn(8, 2))
    before = copy.deepcopy(flow.state_dict())
    modes = [m.training for m in flow.modules()]
    with pytest.raises(ValueError, match="at least one batch"):
        recalibrate(flow, [])
    assert all(torch.equal(value, before[key]) for key, value in flow.state_dict().items())
    assert [m.training for m in flow.modules()] == modes


def test_recalibrated_evaluation_agrees_with_training():
    torch.manual_seed(0)
    flow = Flow(StandardNormal((1, 4, 4)), realnvp_transforms((1, 4, 4), scales=1, net=resnet)).double()
    x = data(400, 1, 4, 4)
    recalibrate(flow, [x])
    with torch.no_grad():
        trained = flow.train()(x).mean()
        evaluated = copy.deepcopy(flow).eval()
        recalibrate(evaluated, [x])
        torch.testing.assert_close(evaluated(x).mean(), trained, atol=0.1, rtol=0)
