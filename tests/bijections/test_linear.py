"""The invertible 1x1 convolution, alone and with an ActNorm in it; permutations and scales."""

import copy

import pytest
import torch

from pyro_realnvp import ActNorm, Chain, Flow, InvertibleConv1x1, Permute, Scale, StandardNormal
from pyro_realnvp.testing import randomize

from zoo import initialized


def with_matrix(matrix, *places, **kwargs):
    """The plain layer with a given W."""
    matrix = torch.as_tensor(matrix)
    f = InvertibleConv1x1((matrix.shape[0], *places), **kwargs).to(matrix.dtype)
    with torch.no_grad():
        f.matrix.weight.copy_(matrix)
    return f


@pytest.mark.parametrize("plu", [False, True])
@pytest.mark.parametrize("shape", [(5,), (5, 2, 3)])
def test_it_multiplies_the_channels_at_every_place(plu, shape):
    f = InvertibleConv1x1(shape, plu=plu).double()
    randomize(f)
    x = torch.randn(4, *shape, dtype=torch.float64)
    y, log_det = f.forward_and_log_det(x)
    matrix = f.matrix()[0]
    torch.testing.assert_close(y, torch.einsum("cd,nd...->nc...", matrix, x))
    places = torch.Size(shape[1:]).numel()
    torch.testing.assert_close(log_det, places * torch.linalg.slogdet(matrix)[1].expand(4))


@pytest.mark.parametrize("plu", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 12, 64])
def test_it_starts_as_a_rotation(plu, channels):
    f = InvertibleConv1x1((channels, 2, 2), plu=plu)
    matrix = f.matrix()[0]
    torch.testing.assert_close(matrix @ matrix.mT, torch.eye(channels), atol=1e-5, rtol=0)
    if channels > 1:
        assert (matrix - torch.eye(channels)).abs().max() > 0.1
    log_det = f.forward_and_log_det(torch.randn(3, channels, 2, 2))[1]
    torch.testing.assert_close(log_det, torch.zeros(3), atol=1e-4, rtol=0)


def test_factors_give_the_rotation_they_were_made_of():
    torch.manual_seed(3)
    rotation = InvertibleConv1x1((16,)).matrix.weight
    torch.manual_seed(3)
    factorized = InvertibleConv1x1((16,), plu=True)
    torch.testing.assert_close(factorized.matrix()[0], rotation.detach(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("spread", [1e-3, 1.0, 1e3])
def test_log_det_of_many_channels_in_float32(spread):
    # The determinant itself is far outside of float32.
    matrix = spread * torch.randn(64, 64)
    f = with_matrix(matrix, 64, 64)
    log_det = f.forward_and_log_det(torch.randn(1, 64, 64, 64))[1]
    assert log_det.dtype == torch.float32
    want = 64 * 64 * torch.linalg.slogdet(matrix.double())[1]
    torch.testing.assert_close(log_det.double(), want.expand(1), rtol=1.5e-7, atol=0.0)


def test_log_det_of_an_ill_conditioned_matrix_in_float32():
    left, right = (torch.linalg.qr(torch.randn(64, 64, dtype=torch.float64))[0] for _ in range(2))
    matrix = (left * torch.logspace(0, -6, 64, dtype=torch.float64) @ right).float()
    log_det = with_matrix(matrix).forward_and_log_det(torch.randn(1, 64))[1]
    torch.testing.assert_close(log_det, torch.linalg.slogdet(matrix.double())[1].float().expand(1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("plu", [False, True])
def test_inverse_in_float32_with_many_channels(plu):
    f = InvertibleConv1x1((64, 2, 2), norm=initialized(ActNorm((64, 2, 2))), plu=plu)
    x = torch.randn(3, 64, 2, 2)
    y, log_det = f.forward_and_log_det(x)
    back, inverse_log_det = f.inverse_and_log_det(y)
    torch.testing.assert_close(back, x, atol=1e-4, rtol=0)
    torch.testing.assert_close(inverse_log_det, -log_det)


@pytest.mark.parametrize("plu", [False, True])
@pytest.mark.parametrize("shape", [(4,), (4, 2, 3)])
@pytest.mark.parametrize("inverse", [False, True])
def test_fused_normalization_equals_the_chain(plu, shape, inverse):
    fused = InvertibleConv1x1(shape, norm=initialized(ActNorm(shape)), plu=plu).double()
    randomize(fused)
    norm, plain = copy.deepcopy(fused.norm), copy.deepcopy(fused)
    plain.norm = None
    chain = Chain([norm, plain])
    results = []
    for f, parts in ((fused, [fused.norm, fused.matrix]), (chain, [norm, plain.matrix])):
        torch.manual_seed(0)
        x = torch.randn(5, *shape, dtype=torch.float64, requires_grad=True)
        y, log_det = (f.inverse_and_log_det if inverse else f.forward_and_log_det)(x)
        assert log_det.shape == (5,)
        parameters = [p for part in parts for p in part.parameters()]
        loss = y.sin().sum() + log_det.cos().sum()
        results.append([y, log_det, *torch.autograd.grad(loss, [x, *parameters])])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


def test_the_fused_normalization_starts_from_the_first_batch_of_training():
    f = InvertibleConv1x1((3, 2, 4), norm=ActNorm((3, 2, 4)))
    x = 3 * torch.randn(50, 3, 2, 4) + 2
    for unmoved in (lambda: f.eval()(x), lambda: f.train().inv(x)):
        unmoved()
        assert not f.norm.initialized
        assert not f.norm.shift.any()
    y = f.train()(x)
    assert f.norm.initialized
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.square().mean((0, 1, 2, 3)), torch.tensor(1.0), atol=1e-4, rtol=0)  # a rotation
    shift = f.norm.shift.clone()
    f(5 * x)
    assert torch.equal(shift, f.norm.shift)
    loaded = InvertibleConv1x1((3, 2, 4), norm=ActNorm((3, 2, 4)))
    loaded.load_state_dict(f.state_dict())
    loaded.train()(5 * x)
    assert torch.equal(shift, loaded.norm.shift)


def test_flow_initializes_the_fused_normalization():
    flow = Flow(StandardNormal(3), [InvertibleConv1x1((3,), norm=ActNorm((3,))).inv]).eval()
    flow.initialize(5 + 3 * torch.randn(50, 3))
    assert flow.transforms[0].inv.norm.initialized


SINGULAR = {
    "zero": torch.zeros(3, 3),
    "ones": torch.ones(3, 3),
    "equal rows": torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [1.0, 2.0, 3.0]]),
    "rank 2": torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]),  # the last pivot is 1e-16, not 0
    "zero column": torch.tensor([[1.0, 2.0, 0.0], [4.0, 5.0, 0.0], [7.0, 8.0, 0.0]]),
}


@pytest.mark.parametrize("name", SINGULAR)
@pytest.mark.parametrize("places", [(), (2, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_singular_matrix_is_refused(name, places, dtype):
    f = with_matrix(SINGULAR[name].to(dtype), *places)
    with pytest.raises(ValueError, match=r"InvertibleConv1x1.*singular.*3 channels"):
        f.inverse_and_log_det(torch.randn(2, 3, *places, dtype=dtype))


def test_a_badly_scaled_matrix_is_not_singular():
    f = with_matrix(torch.diag(torch.tensor([1e-12, 1.0, 1e12], dtype=torch.float64)))
    x = torch.randn(2, 3, dtype=torch.float64)
    torch.testing.assert_close(f.inverse_and_log_det(f.forward_and_log_det(x)[0])[0], x)


@pytest.mark.parametrize(
    "norm", [lambda: ActNorm((4, 2, 2)), lambda: ActNorm((3, 2, 2), per_position=True), lambda: ActNorm((3,))]
)
def test_a_normalization_that_does_not_fit_is_refused_in_one_line(norm):
    with pytest.raises(ValueError, match=r"InvertibleConv1x1.*\(3, 2, 2\).*ActNorm") as error:
        InvertibleConv1x1((3, 2, 2), norm=norm())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(), (2, 3), (2, 2, 2, 2)])
def test_events_that_are_neither_vectors_nor_images_are_refused(shape):
    with pytest.raises(ValueError, match="InvertibleConv1x1"):
        InvertibleConv1x1(shape)


def test_fixed_factors_are_part_of_the_state():
    f, other = (InvertibleConv1x1((6,), plu=True) for _ in range(2))
    other.load_state_dict(f.state_dict())
    torch.testing.assert_close(other.matrix()[0], f.matrix()[0])
    assert {key for key, _ in f.named_parameters()} == {"matrix.lower", "matrix.upper", "matrix.log_s"}


def test_the_sign_of_the_determinant_stays_with_factors():
    f = InvertibleConv1x1((5,), plu=True).double()
    sign = torch.linalg.slogdet(f.matrix()[0]).sign
    for seed in range(5):
        torch.manual_seed(seed)
        randomize(f)
        assert torch.linalg.slogdet(f.matrix()[0]).sign == sign


# ------------------------------------------------------------------------------------------- Permute and Scale


@pytest.mark.parametrize("shape", [(4,), (4, 2, 3)])
def test_permute(shape):
    f = Permute(shape, [2, 0, 3, 1])
    x = torch.randn(5, *shape)
    y, log_det = f.forward_and_log_det(x)
    for c, source in enumerate([2, 0, 3, 1]):
        assert torch.equal(y[:, c], x[:, source])
    assert torch.equal(log_det, torch.zeros(5))
    other = Permute(shape, [0, 1, 2, 3])
    other.load_state_dict(f.state_dict())
    assert torch.equal(other.inverse_and_log_det(y)[0], x)


def test_scale():
    f = Scale((2, 1, 2))
    x = torch.randn(5, 2, 1, 2)
    assert torch.equal(f(x), x)
    with torch.no_grad():
        f.log_scale.copy_(torch.tensor([0.0, 1.0, 2.0, -1.0]).reshape(2, 1, 2))
    y, log_det = f.forward_and_log_det(x)
    torch.testing.assert_close(y, x * f.log_scale.exp())
    torch.testing.assert_close(log_det, torch.full((5,), 2.0))
