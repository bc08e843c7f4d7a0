"""The logit of pixels."""

import math

import pytest
import torch
from torch.nn.functional import softplus

from pyro_realnvp import Logit


def test_logit_formula():
    x = torch.rand(5, 3, dtype=torch.float64)
    f = Logit(0.05)
    y = f(x)
    p = 0.05 + 0.9 * x
    torch.testing.assert_close(y, p.log() - (1 - p).log())
    torch.testing.assert_close(f.log_abs_det_jacobian(x, y), softplus(y) + softplus(-y) + math.log(0.9))


def test_logit_is_finite_at_the_ends():
    x = torch.tensor([0.0, 1.0])
    y = Logit(0.05)(x)
    assert y.isfinite().all()
    torch.testing.assert_close(Logit(0.05).inv(y.clone()), x, atol=1e-6, rtol=0)


@pytest.mark.parametrize("reach", [10.0, 40.0])  # 40: where the sigmoid is 1 in float32
def test_logit_inverse_stays_in_its_domain(reach):
    f = Logit(0.05)
    assert f.domain.check(f.inv(torch.tensor([-reach, 0.0, reach]))).all()
    assert not f.domain.check(torch.tensor([-0.06, 1.06])).any()


@pytest.mark.parametrize("alpha", [-0.1, 0.5, 1.0, float("nan")])
def test_logit_refuses(alpha):
    with pytest.raises(ValueError, match=f"alpha.*{alpha}"):
        Logit(alpha)
