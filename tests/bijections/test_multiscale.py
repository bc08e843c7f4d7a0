"""Squeezing and factoring out, against the explicit formulas."""

import pytest
import torch
from torch.nn.functional import pixel_unshuffle

from pyro_realnvp import (
    Affine,
    BatchNorm,
    Elementwise,
    FactorOut,
    Halves,
    Sandwich,
    Scale,
    Squeeze,
    SqueezeCheckerboard,
    SqueezeColumns,
    checkerboard,
)
from pyro_realnvp.testing import randomize

from zoo import split, squeezed


@pytest.mark.parametrize("shape", [(1, 2, 2), (3, 4, 6), (5, 2, 8)])
def test_plain_squeeze(shape):
    x = torch.randn(4, *shape)
    y = Squeeze(shape)(x)
    assert torch.equal(y, pixel_unshuffle(x, 2))
    for c in range(shape[0]):
        for dy in range(2):
            for dx in range(2):
                assert torch.equal(y[:, 4 * c + 2 * dy + dx], x[:, c, dy::2, dx::2])


@pytest.mark.parametrize("shape", [(1, 2, 2), (3, 4, 6), (5, 2, 8)])
def test_ordered_squeeze(shape):
    x = torch.randn(4, *shape)
    y = Squeeze(shape, ordered=True)(x)
    kept = torch.cat([x[:, :, 0::2, 0::2], x[:, :, 1::2, 1::2]], 1)
    out = torch.cat([x[:, :, 0::2, 1::2], x[:, :, 1::2, 0::2]], 1)
    assert torch.equal(y, torch.cat([kept, out], 1))


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("batch", [(), (2, 3), (0,), (2, 0)])
def test_squeeze_and_back(ordered, batch):
    f = Squeeze((3, 4, 6), ordered=ordered)
    x = torch.randn(*batch, 3, 4, 6)
    y = f(x)
    assert y.shape == (*batch, 12, 2, 3)
    assert torch.equal(f.inv(y.clone()), x)
    assert torch.equal(f.log_abs_det_jacobian(x, y), torch.zeros(batch))


def test_factor_out_leaves_the_second_half_alone():
    f = FactorOut(Scale((2, 2, 2)))
    randomize(f)
    x = torch.randn(3, 4, 2, 2)
    y = f(x)
    assert torch.equal(y[:, 2:], x[:, 2:])
    torch.testing.assert_close(y[:, :2], x[:, :2] * f.bijection.log_scale.exp())


def test_factored_out_pixels_are_those_of_odd_row_plus_column():
    f = squeezed(FactorOut(Elementwise((6, 2, 3), Affine())), ordered=True)
    randomize(f)
    x = torch.randn(2, 3, 4, 6)
    even = ((torch.arange(4)[:, None] + torch.arange(6)) % 2 == 0).expand(3, 4, 6)
    y = f(x)
    assert (y[:, even] != x[:, even]).all()
    assert torch.equal(y[:, ~even], x[:, ~even])


@pytest.mark.parametrize("ordered", [False, True])
def test_squeezed_is_unsqueeze_f_squeeze(ordered):
    inner = split((4, 2, 3)).eval()
    randomize(inner)
    f, squeeze = squeezed(inner, ordered=ordered), Squeeze((1, 4, 6), ordered=ordered)
    x = torch.randn(5, 1, 4, 6)
    torch.testing.assert_close(f(x), squeeze.inv(inner(squeeze(x))))


@pytest.mark.parametrize("ordered", [False, True])
def test_a_context_map_is_squeezed_in_the_plain_order_and_a_vector_handed_on(ordered):
    squeeze = Squeeze((1, 4, 6), ordered=ordered)
    x = torch.randn(5, 1, 4, 6)
    with_map = split((4, 2, 3), context_shape=(8, 2, 3)).eval()
    randomize(with_map)
    f = squeezed(with_map, ordered=ordered)
    assert f.context_shape == (2, 4, 6)
    context = torch.randn(5, 2, 4, 6)
    expected = with_map.condition(pixel_unshuffle(context, 2))(squeeze(x))
    torch.testing.assert_close(squeeze(f.condition(context)(x)), expected)
    with_vector = split((4, 2, 3), context_dim=3).eval()
    randomize(with_vector)
    f = squeezed(with_vector, ordered=ordered)
    assert f.context_shape == (3,)
    context = torch.randn(3)
    torch.testing.assert_close(squeeze(f.condition(context)(x)), with_vector.condition(context)(squeeze(x)))


@pytest.mark.parametrize("shape", [(3, 31, 32), (3, 32, 31), (3, 5, 5), (1, 0, 2)])
def test_sizes_that_cannot_be_squeezed_are_refused(shape):
    with pytest.raises(ValueError, match="Squeeze needs even height and width") as caught:
        Squeeze(shape)
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Squeeze((4,)), r"Squeeze.*\(4,\)"),
        (lambda: Sandwich(Squeeze((1, 4, 4)), split((2, 2, 2))), r"Sandwich.*\(4, 2, 2\).*\(2, 2, 2\)"),
        (
            lambda: Sandwich(Squeeze((1, 4, 2)), split((4, 2, 1), context_shape=(8, 2, 1)), context=Squeeze((1, 4, 2))),
            r"Sandwich makes a context of shape \(4, 2, 1\).*\(8, 2, 1\)",
        ),
        (lambda: FactorOut(BatchNorm((4,))), r"FactorOut.*\(4,\)"),
        (lambda: FactorOut(Squeeze((1, 2, 2))), r"FactorOut.*\(1, 2, 2\) -> \(4, 1, 1\)"),
    ],
)
def test_parts_that_do_not_fit_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("batch", [(), (2, 3), (0,)])
def test_columns(batch):
    f = SqueezeColumns((3, 2, 6))
    x = torch.randn(*batch, 3, 2, 6)
    y = f(x)
    assert y.shape == (*batch, 6, 2, 3)
    for column in range(6):
        half = slice(0, 3) if column % 2 == 0 else slice(3, 6)
        assert torch.equal(y[..., half, :, column // 2], x[..., column])
    assert torch.equal(f.inv(y.clone()), x)
    assert not f.log_abs_det_jacobian(x, y).any()


@pytest.mark.parametrize("shape", [(3, 2, 5), (3, 2, 0), (4,), (2, 4)])
def test_columns_of_what_has_none_are_refused(shape):
    with pytest.raises(ValueError, match=r"SqueezeColumns.*even width"):
        SqueezeColumns(shape)


def test_parallel_is_each_on_its_half():
    first, second = split((2, 2, 3)), Scale((2, 2, 3))
    f = Halves(first, second)
    randomize(f)
    x = torch.randn(5, 4, 2, 3)
    y, log_det = f.forward_and_log_det(x)
    (y1, log_det1), (y2, log_det2) = first.forward_and_log_det(x[:, :2]), second.forward_and_log_det(x[:, 2:])
    torch.testing.assert_close(y, torch.cat([y1, y2], 1))
    torch.testing.assert_close(log_det, log_det1 + log_det2)


def test_parallel_of_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"Halves.*\(2, 2, 3\).*\(2, 3, 2\)"):
        Halves(Scale((2, 2, 3)), Scale((2, 3, 2)))
    with pytest.raises(ValueError, match="Halves"):
        Halves(Scale((2, 2, 2)), Squeeze((2, 2, 2)))
    with pytest.raises(ValueError, match="Halves"):
        Halves(Scale((2,)), Scale((2,)))


@pytest.mark.parametrize("batch", [(), (2, 3), (0,)])
def test_squares(batch):
    f = SqueezeCheckerboard((2, 3, 6))
    x = torch.randn(*batch, 2, 3, 6)
    y = f(x)
    assert y.shape == (*batch, 4, 3, 3)
    for i in range(3):
        for k in range(3):
            assert torch.equal(y[..., :2, i, k], x[..., i, 2 * k + i % 2])
            assert torch.equal(y[..., 2:, i, k], x[..., i, 2 * k + (i + 1) % 2])
    assert torch.equal(f.inv(y.clone()), x)
    even = checkerboard((2, 3, 6))
    assert torch.equal(y[..., :2, :, :].flatten().sort()[0], x[..., even].flatten().sort()[0])


@pytest.mark.parametrize("shape", [(4,), (1, 2, 3), (1, 2, 0)])
def test_squares_of_what_has_none_are_refused(shape):
    with pytest.raises(ValueError, match=r"SqueezeCheckerboard.*even width"):
        SqueezeCheckerboard(shape)
