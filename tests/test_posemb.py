"""Position interpolation: PyTorch's bicubic resampling, in two matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vit.posemb import bicubic_matrix, interpolate, interpolate_table, linear_matrix, sincos

PAIRS = [(14, 24), (24, 14), (14, 15), (14, 13), (7, 28), (28, 7), (5, 11), (11, 5), (3, 100), (100, 3), (2, 3), (1, 4),
         (4, 1), (1, 1)]  # fmt: skip
GRIDS = [((14, 14), (24, 24)), ((14, 14), (7, 7)), ((4, 4), (6, 5)), ((3, 7), (8, 2)), ((5, 9), (9, 5)),
         ((2, 8), (4, 4)), ((1, 1), (3, 2))]  # fmt: skip


def torch_bicubic(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return F.interpolate(torch.from_numpy(images), size, mode="bicubic", align_corners=False).numpy()


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_the_matrix_equals_torch_along_one_axis(old, new):
    identity = np.eye(old)[None, None]  # (1, 1, old, old): resample its rows
    np.testing.assert_allclose(bicubic_matrix(old, new), torch_bicubic(identity, (new, old))[0, 0], rtol=0, atol=1e-13)


@pytest.mark.parametrize(("old_grid", "new_grid"), GRIDS)
def test_two_matrices_equal_torch_on_images(old_grid, new_grid):
    images = np.random.default_rng(0).standard_normal((2, 3, *old_grid))
    rows, columns = (bicubic_matrix(old, new) for old, new in zip(old_grid, new_grid, strict=True))
    np.testing.assert_allclose(rows @ images @ columns.T, torch_bicubic(images, new_grid), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_rows_sum_to_one(old, new):
    np.testing.assert_allclose(bicubic_matrix(old, new).sum(axis=1), 1, rtol=0, atol=1e-14)


@pytest.mark.parametrize("size", [1, 2, 3, 14, 37])
def test_the_same_length_is_the_identity_exactly(size):
    np.testing.assert_array_equal(bicubic_matrix(size, size), np.eye(size))


def test_the_shared_matrix_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        bicubic_matrix(4, 6)[0, 0] = 1


@pytest.mark.parametrize(("old_grid", "new_grid"), GRIDS)
def test_interpolate_resamples_the_patches_and_keeps_the_cls_token(old_grid, new_grid):
    tokens = np.random.default_rng(1).standard_normal((1, 1 + old_grid[0] * old_grid[1], 6))
    result = interpolate(tokens, old_grid, new_grid)
    patches = tokens[:, 1:].reshape(1, *old_grid, 6).transpose(0, 3, 1, 2)
    expected = torch_bicubic(patches, new_grid).reshape(1, 6, -1).transpose(0, 2, 1)
    np.testing.assert_array_equal(result[:, :1], tokens[:, :1])
    np.testing.assert_allclose(result[:, 1:], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_interpolate_rounds_once_to_the_dtype_it_was_given(dtype):
    import ml_dtypes  # noqa: F401  (makes "bfloat16" a NumPy dtype)

    tokens = np.random.default_rng(2).standard_normal((1, 17, 4)).astype(dtype)
    result = interpolate(tokens, (4, 4), (5, 6))
    assert result.dtype == np.dtype(dtype)
    exact = interpolate(tokens.astype(np.float64), (4, 4), (5, 6))
    np.testing.assert_array_equal(result, exact.astype(dtype))


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_the_antialiased_and_the_linear_matrix_equal_torch(old, new):
    identity = torch.eye(old, dtype=torch.float64)[None, None]
    for found, mode, antialias in ((bicubic_matrix(old, new, antialias=True), "bicubic", True),
                                   (linear_matrix(old, new), "bilinear", False)):  # fmt: skip
        expected = F.interpolate(identity, (new, old), mode=mode, align_corners=False, antialias=antialias)
        np.testing.assert_allclose(found, expected[0, 0], rtol=0, atol=1e-13)
        assert not found.flags.writeable


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_an_offset_changes_the_distances_as_a_scale_factor_does_in_torch(old, new):
    identity = torch.eye(old, dtype=torch.float64)[None, None]
    scale = ((new + 0.1) / old, 1.0)
    expected = F.interpolate(identity, scale_factor=scale, mode="bicubic", align_corners=False)
    assert expected.shape[2] == new
    np.testing.assert_allclose(bicubic_matrix(old, new, 0.1), expected[0, 0], rtol=0, atol=1e-13)


@pytest.mark.parametrize(("old_grid", "new_grid"), GRIDS)
def test_tables_of_biases_are_resampled_by_distance_and_those_of_cls_stay(old_grid, new_grid):
    old, new = ([2 * length - 1 for length in grid] for grid in (old_grid, new_grid))
    table = np.random.default_rng(3).standard_normal((old[0] * old[1] + 3, 4)).astype(np.float32)
    found = interpolate_table(table, old_grid, new_grid)
    patches = torch.from_numpy(table[:-3].astype(float).reshape(1, *old, 4)).permute(0, 3, 1, 2)
    expected = F.interpolate(patches, new, mode="bilinear", align_corners=False)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[:-3], expected.permute(0, 2, 3, 1).reshape(-1, 4), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(found[-3:], table[-3:])


def test_fixed_embeddings_are_sines_and_cosines_of_the_column_and_of_the_row():
    found = sincos((2, 3), 8)
    assert found.shape == (1, 6, 8)
    for row, column in np.ndindex(2, 3):
        angles = [[place / 10000**power for power in (0, 0.5)] for place in (column, row)]
        expected = [f(angle) for pair in angles for f in (np.sin, np.cos) for angle in pair]
        np.testing.assert_allclose(found[0, 3 * row + column], expected, rtol=0, atol=1e-15)
