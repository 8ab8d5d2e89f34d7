"""The dense energy loss against literal sums, and its lattice against pydensecrf and the exact kernel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from seedbed.methods.rrm.dense_energy import (
    PermutohedralLattice,
    dense_energy_loss,
    enclosing_simplices,
    gaussian_filter_exact,
    pixel_features,
)

Batch = tuple[Tensor, Tensor, Tensor, Tensor]


def random_batch(side: int = 20, dtype: torch.dtype = torch.float64) -> Batch:
    """Return probabilities, images, labels (a third of them set) and ROI with padding, for two images."""
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.randn(2, 3, side, side, generator=generator, dtype=dtype).mul(2).softmax(1)
    images = torch.rand(2, 3, side, side, generator=generator, dtype=dtype) * 60 + 100
    labels = torch.randint(0, 3, (2, side, side), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) > 1 / 3] = 255
    roi = torch.ones(2, side, side, dtype=dtype)
    roi[0, :, side - 5 :] = 0
    labels[0, 2:5, side - 5 :] = 1  # A label in the padding: its gate is max(0, 0 − max P) = 0.
    return probabilities.requires_grad_(), images, labels, roi


def literal(batch: Batch, sigma_rgb: float, sigma_xy: float) -> tuple[Tensor, Tensor]:
    """Return the value by the double sum over pixels, and g (K s) ROI, of a batch that is not resized."""
    probabilities, images, labels, roi = batch
    count, _, height, width = probabilities.shape
    pixels = [(row, column) for row in range(height) for column in range(width)]
    total = torch.zeros((), dtype=torch.float64)
    coded = torch.zeros_like(probabilities)
    for n in range(count):
        place = torch.tensor(pixels, dtype=torch.float64)
        colour = torch.stack([images[n, :, r, c] for r, c in pixels])
        apart = ((place[:, None] - place) ** 2).sum(2) / sigma_xy**2
        unlike = ((colour[:, None] - colour) ** 2).sum(2) / sigma_rgb**2
        kernel = torch.exp(-(apart + unlike) / 2)
        s = torch.stack([probabilities[n, :, r, c] * roi[n, r, c] for r, c in pixels])
        gate = []
        for r, c in pixels:
            highest = float(probabilities[n, :, r, c].detach().max())
            gate.append(1.0 if labels[n, r, c] == 255 else max(0.0, float(roi[n, r, c]) - highest))
        g = torch.tensor(gate, dtype=torch.float64)
        for label in range(s.shape[1]):
            total = total - (g[:, None] * s[:, label, None] * kernel * s[None, :, label]).sum() / count
        filtered = (g[:, None] * (kernel @ s)).detach()
        for index, (r, c) in enumerate(pixels):
            coded[n, :, r, c] = filtered[index] * roi[n, r, c]
    return total, coded.detach()


def test_one_by_two_pixels_by_hand():
    """Left labelled with P = (0.8, 0.2): g = 0.2; right not, (0.5, 0.5): g = 1; same colour, k = exp(−½) apart.

    K s = (0.8 + 0.5 k, 0.2 + 0.5 k) and (0.5 + 0.8 k, 0.5 + 0.2 k). The value is
    −[0.2 (0.8 (0.8 + 0.5 k) + 0.2 (0.2 + 0.5 k)) + 0.5 (0.5 + 0.8 k) + 0.5 (0.5 + 0.2 k)] = −(0.636 + 0.6 k).
    """
    probabilities = torch.tensor([[[[0.8, 0.5]], [[0.2, 0.5]]]], requires_grad=True)
    labels = torch.tensor([[[0, 255]]])
    k = math.exp(-0.5)
    arguments = (torch.full((1, 3, 1, 2), 90.0), labels, torch.ones(1, 1, 2))
    loss = dense_energy_loss(probabilities, *arguments, sigma_xy=1.0, scale=1.0, kernel="exact")
    assert loss.item() == pytest.approx(-(0.636 + 0.6 * k), rel=1e-6)
    (coded,) = torch.autograd.grad(loss, probabilities)
    left, right = (0.8 + 0.5 * k, 0.2 + 0.5 * k), (0.5 + 0.8 * k, 0.5 + 0.2 * k)
    expected = [[-2 * 0.2 * left[c], -2 * right[c]] for c in range(2)]
    np.testing.assert_allclose(coded[0, :, 0], expected, rtol=1e-6)

    # The derivative: −g (K s) − K (g s), where g s is (0.16, 0.04) on the left and (0.5, 0.5) on the right.
    loss = dense_energy_loss(probabilities, *arguments, sigma_xy=1.0, scale=1.0, kernel="exact", gradient="exact")
    (exact,) = torch.autograd.grad(loss, probabilities)
    gated = [[0.16 + 0.5 * k, 0.5 + 0.16 * k], [0.04 + 0.5 * k, 0.5 + 0.04 * k]]
    expected = [[-0.2 * left[c] - gated[c][0], -right[c] - gated[c][1]] for c in range(2)]
    np.testing.assert_allclose(exact[0, :, 0], expected, rtol=1e-6)


def test_value_and_backward_as_coded_on_ten_by_ten_pixels():
    batch = random_batch(10)
    loss = dense_energy_loss(*batch, sigma_rgb=20, sigma_xy=4, scale=1, kernel="exact")
    value, coded = literal(batch, 20, 4)
    torch.testing.assert_close(loss, value, rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(loss, batch[0])
    torch.testing.assert_close(gradient, -2 / 2 * coded, rtol=1e-12, atol=1e-14)
    assert not gradient[0, :, :, 5:].any()  # padding


def test_the_exact_gradient_is_the_derivative_with_a_constant_gate():
    """With an ROI below 1, as a smooth border would have, the gate's lower limit of 0 is seen too."""
    batch = random_batch(10)
    batch[3][1] *= 0.7
    settings = {"sigma_rgb": 20.0, "sigma_xy": 4.0, "scale": 1.0}
    loss = dense_energy_loss(*batch, **settings, kernel="exact", gradient="exact")
    value, coded = literal(batch, 20, 4)
    (derivative,) = torch.autograd.grad(value, batch[0])
    (gradient,) = torch.autograd.grad(loss, batch[0])
    torch.testing.assert_close(gradient, derivative, rtol=1e-12, atol=1e-14)
    assert (gradient + coded).norm() > 0.05 * gradient.norm()  # −2/2 g (K s) ROI is something else


@pytest.mark.parametrize("kernel", ["lattice", "exact"])
def test_numerical_derivative_where_nothing_is_labelled(kernel):
    """All gates are 1, so nothing is held constant; of the lattice too, which is not symmetric."""
    probabilities, images, labels, roi = (x[:1] for x in random_batch(4))
    labels.fill_(255)

    def loss(p: Tensor) -> Tensor:
        return dense_energy_loss(p, images, labels, roi, sigma_xy=6, kernel=kernel, gradient="exact")

    assert torch.autograd.gradcheck(loss, probabilities.detach().requires_grad_())


@pytest.mark.parametrize("side", [20, 21])
def test_inputs_are_halved_and_sigma_with_them(side):
    """Probabilities bilinearly (for an even side the mean of four), the others by the nearest pixel."""
    probabilities, images, labels, roi = random_batch(side)
    loss = dense_energy_loss(probabilities, images, labels, roi, sigma_rgb=20, sigma_xy=8, kernel="exact")
    index = [math.floor(i * side / 10) for i in range(10)]
    # Output pixel i is centred at (i + ½) · side / 10 − ½ in the input.
    linear = torch.zeros(10, side, dtype=torch.float64)
    for i in range(10):
        centre = (i + 0.5) * side / 10 - 0.5
        linear[i, math.floor(centre)] = 1 - centre % 1
        linear[i, math.floor(centre) + 1] += centre % 1
    halved = linear @ probabilities @ linear.T
    nearest = [x[..., index, :][..., index] for x in (images, labels, roi)]
    value, coded = literal((halved, *nearest), 20, 4)
    torch.testing.assert_close(loss, value, rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(loss, probabilities)
    torch.testing.assert_close(gradient, linear.T @ -coded @ linear, rtol=1e-12, atol=1e-14)


def test_the_defaults_are_those_of_the_authors_code():
    batch = random_batch(12)
    given = dense_energy_loss(*batch, sigma_rgb=15, sigma_xy=100, scale=0.5, kernel="lattice", gradient="as_coded")
    assert torch.equal(dense_energy_loss(*batch), given)


@pytest.mark.parametrize("kernel", ["lattice", "exact"])
def test_images_of_a_batch_do_not_see_each_other(kernel):
    batch = random_batch(12)
    alone = [dense_energy_loss(*(x[n : n + 1] for x in batch), kernel=kernel) for n in range(2)]
    torch.testing.assert_close(dense_energy_loss(*batch, kernel=kernel), (alone[0] + alone[1]) / 2)


@pytest.mark.parametrize("kernel", ["lattice", "exact"])
@pytest.mark.parametrize("gradient", ["as_coded", "exact"])
def test_padding_alone_gives_zero(kernel, gradient):
    probabilities, images, labels, roi = random_batch(8)
    loss = dense_energy_loss(probabilities, images, labels, roi * 0, kernel=kernel, gradient=gradient)
    loss.backward()
    assert loss == 0
    assert probabilities.grad is not None
    assert not probabilities.grad.any()


@pytest.mark.parametrize("value", [0, 255])
def test_all_or_no_pixels_labelled_is_finite(value):
    probabilities, images, labels, roi = random_batch(8)
    loss = dense_energy_loss(probabilities, images, labels.fill_(value), roi)
    loss.backward()
    assert loss < 0
    assert probabilities.grad is not None
    assert probabilities.grad.isfinite().all()


@pytest.mark.parametrize("kernel", ["lattice", "exact"])
def test_autocast_changes_nothing_and_bfloat16_is_lifted_to_float32(kernel):
    probabilities, images, labels, roi = (x.detach() for x in random_batch(12, torch.float32))
    plain = dense_energy_loss(probabilities, images, labels, roi, kernel=kernel)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(dense_energy_loss(probabilities, images, labels, roi, kernel=kernel), plain)
        coarse = dense_energy_loss(probabilities.bfloat16(), images, labels, roi, kernel=kernel)
    assert plain.dtype == coarse.dtype == torch.float32
    torch.testing.assert_close(coarse, plain, rtol=0.02, atol=0)


@pytest.mark.parametrize("kernel", ["lattice", "exact"])
def test_twice_the_same_bits(kernel):
    results = []
    for _ in range(2):
        batch = random_batch(24, torch.float32)
        loss = dense_energy_loss(*batch, kernel=kernel)
        results.append((loss, *torch.autograd.grad(loss, batch[0])))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_features_are_column_row_and_colour():
    images = torch.arange(12.0).reshape(1, 3, 2, 2)
    features = pixel_features(images, sigma_rgb=2, sigma_xy=10)
    torch.testing.assert_close(features[0, 1], torch.tensor([0.1, 0.0, 0.5, 2.5, 4.5]))
    torch.testing.assert_close(features[0, 2], torch.tensor([0.0, 0.1, 1.0, 3.0, 5.0]))


def photograph_like(side: int) -> Tensor:
    """Return features (side², 5) of an image of soft regions with noise, σ as in the loss."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.randn(1, 3, 5, 5, generator=generator) * 60 + 120
    image = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic")
    image += torch.randn(image.shape, generator=generator) * 8
    return pixel_features(image.round().clamp(0, 255), 15, 50)[0]


def test_exact_filter_is_the_dense_kernel_for_any_block():
    features = photograph_like(12).double()
    values = torch.rand(144, 3, dtype=torch.float64)
    kernel = torch.exp(-(features[:, None] - features).square().sum(2) / 2)
    for block in (1, 50, 144, 1000):
        torch.testing.assert_close(gaussian_filter_exact(features, values, block), kernel @ values)


def test_exact_filter_in_float32_is_near_that_in_float64():
    features = photograph_like(32)
    values = torch.rand(1024, 3)
    exact = gaussian_filter_exact(features.double(), values.double())
    torch.testing.assert_close(gaussian_filter_exact(features, values).double(), exact, rtol=1e-4, atol=0)


def test_simplices_enclose_their_points():
    """Barycentric weights; vertices on Σ = 0, congruent to their number; distances in features are kept."""
    features = torch.randn(500, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    vertices, weights = enclosing_simplices(features)
    torch.testing.assert_close(weights.sum(1), torch.ones(500, dtype=torch.float64))
    assert (weights > -1e-12).all()
    assert not vertices.sum(2).any()
    assert (vertices % 6 == torch.arange(6)[None, :, None]).all()
    extent = (vertices.amax(1) - vertices.amin(1)).amax()
    assert extent < 6  # a simplex, not any six vertices
    points = (weights[..., None] * vertices).sum(1)
    apart = (features[:, None] - features).square().sum(2)
    torch.testing.assert_close((points[:, None] - points).square().sum(2), apart * 2 / 3 * 6**2)


def test_slice_is_the_transpose_of_splat_and_the_transposed_filter_of_the_filter():
    features = photograph_like(16).double()
    lattice = PermutohedralLattice(features)
    identity = torch.eye(256, dtype=torch.float64)
    splat = lattice.splat(identity)
    torch.testing.assert_close(splat.sum(0), torch.ones(256, dtype=torch.float64))  # nothing is lost
    torch.testing.assert_close(lattice.slice(torch.eye(len(splat), dtype=torch.float64)), splat.T)
    matrix = lattice.filter(identity)
    torch.testing.assert_close(lattice.filter(identity, transposed=True), matrix.T)
    assert not torch.allclose(matrix, matrix.T)


def test_every_vertex_is_kept_apart_from_the_others():
    """Points all over the range of a crop of 321."""
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(3000, 5, generator=generator) * torch.tensor([3.2, 3.2, 17, 17, 17])
    vertices, _ = enclosing_simplices(features)
    distinct, inverse = vertices.flatten(0, 1).unique(dim=0, return_inverse=True)
    lattice = PermutohedralLattice(features)
    assert len(lattice.starts) == len(distinct)
    pairs = torch.stack([inverse, lattice.vertices.flatten()]).unique(dim=1)
    assert pairs.shape[1] == len(distinct)  # one to one


def test_the_lattice_is_pydensecrfs():
    """One mean-field step with Potts weight w is log q₀ − log q₁ = u₁ − u₀ + w K (p₀ − p₁), p = softmax(−u)."""
    from pydensecrf import densecrf

    generator = torch.Generator().manual_seed(0)
    extent = torch.tensor([3.2, 3.2, 17, 17, 17])  # of a crop of 321 in the loss
    features = (torch.rand(8, 5, generator=generator) * extent).repeat(50, 1)
    features += torch.rand(400, 5, generator=generator) * 3
    unary = torch.randn(2, 400, generator=generator)
    crf = densecrf.DenseCRF(400, 2)
    crf.setUnaryEnergy(unary.numpy().copy())
    crf.addPairwiseEnergy(
        features.T.contiguous().numpy(),
        compat=0.1,
        kernel=densecrf.DIAG_KERNEL,
        normalization=densecrf.NO_NORMALIZATION,
    )
    logs = np.log(np.array(crf.inference(1), np.float64))
    theirs = (logs[0] - logs[1] + (unary[0] - unary[1]).numpy()) / 0.1
    p = (-unary).softmax(0)
    ours = PermutohedralLattice(features).filter((p[0] - p[1])[:, None].contiguous())[:, 0].numpy()
    np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(theirs).max())


def test_the_lattice_in_two_dimensions_has_the_gaussians_width():
    """With every vertex present: variance 1, and the integral (1.5^(D/2) / √(D+1)) · 2^(D+1) / (1 + 2^−D).

    For D = 2 that is 5.543, where the Gaussian has 2π. It is 69.8 for D = 5, where the Gaussian has 99.0.
    """
    axis = torch.linspace(-8, 8, 129, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    near = points.abs().amax(1) < 1
    response = PermutohedralLattice(points).filter(near.double()[:, None])[:, 0]
    spread = (response[:, None] * points**2).sum(0) / response.sum() - points[near].square().mean(0)
    torch.testing.assert_close(spread, torch.ones(2, dtype=torch.float64), rtol=0.05, atol=0)
    integral = response.sum() / near.sum() / 8**2  # 8² points in a unit of area
    assert integral.item() == pytest.approx(5.543, rel=0.01)


@pytest.mark.parametrize("side", [32, 64])
def test_the_lattice_is_about_half_of_the_exact_kernel(side):
    """As measured on photographs: a factor of 1.5 to 2.2 for each image, and 5 to 14 % left of the difference."""
    features = photograph_like(side)
    coarse = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(5)) * 3
    values = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").softmax(1)[0].flatten(1).mT
    lattice = PermutohedralLattice(features).filter(values.contiguous())
    exact = gaussian_filter_exact(features, values)
    factor = (lattice * exact).sum() / lattice.square().sum()
    assert 1.5 < factor < 2.2
    assert (factor * lattice - exact).norm() < 0.15 * exact.norm()


def test_a_tiny_standard_deviation_is_refused():
    features = torch.tensor([[0.0, 0, 0, 0, 0], [0, 0, 0, 0, 5000]])
    with pytest.raises(ValueError, match="standard deviation"):
        PermutohedralLattice(features)
