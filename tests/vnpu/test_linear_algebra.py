"""Decompositions and solutions of small matrices against PyTorch's on the CPU, or against what they mean."""

from __future__ import annotations

import pytest
import torch
from tests.vnpu.against_cpu import agree, same, strided
from tests.vnpu.support import called

LIMIT = 2e-4


def positive(*shape: int) -> torch.Tensor:
    x = torch.randn(*shape)
    return x @ x.mT + shape[-1] * torch.eye(shape[-1])


@pytest.mark.parametrize("shape", [(4, 4), (2, 3, 3), (0, 3, 3)])
def test_square_matrices(shape: tuple[int, ...]) -> None:
    x = positive(*shape)
    agree(torch.inverse, x, runs="Inverse", limit=LIMIT)
    agree(torch.linalg.cholesky, x, runs="LinalgCholesky", limit=LIMIT)
    agree(lambda x: torch.linalg.cholesky(x, upper=True), x, runs="LinalgCholesky", limit=LIMIT)
    agree(lambda x: tuple(torch.slogdet(x)), x, runs="Slogdet", limit=LIMIT)


def test_a_matrix_without_inverse_is_refused() -> None:
    with pytest.raises(RuntimeError, match="singular"):
        torch.inverse(torch.zeros(3, 3).npu())


@pytest.mark.parametrize("dim", [-1, 0])
def test_cross_products(dim: int) -> None:
    x, y = torch.randn(3, 4, 3), torch.randn(3, 1, 3)
    agree(lambda x, y: torch.linalg.cross(x, y, dim=dim), x, y, runs="LinalgCross")


@pytest.mark.parametrize("mode", ["reduced", "complete", "r"])
@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 4)])
def test_qr(shape: tuple[int, ...], mode: str) -> None:
    agree(lambda x: tuple(torch.linalg.qr(x, mode)), torch.randn(shape), runs="LinalgQr", limit=LIMIT)


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 4)])
def test_singular_values(shape: tuple[int, ...], full: bool) -> None:
    x = torch.randn(shape)
    with called() as names:
        u, s, vh = (part.cpu() for part in torch.linalg.svd(strided(x), full_matrices=full))
    assert "Svd" in names
    k = min(shape[-2:])
    torch.testing.assert_close(u[..., :k] @ torch.diag_embed(s) @ vh[..., :k, :], x, rtol=LIMIT, atol=LIMIT)
    torch.testing.assert_close(
        u.mT @ u, torch.eye(u.shape[-1]).expand(u.mT.shape[:-1] + u.shape[-1:]), rtol=0, atol=LIMIT
    )
    agree(torch.linalg.svdvals, x, runs="Svd", limit=LIMIT)


@pytest.mark.filterwarnings("ignore:torch.triangular_solve is deprecated")
@pytest.mark.parametrize("upper", [True, False])
@pytest.mark.parametrize("transpose", [True, False])
@pytest.mark.parametrize("unitriangular", [True, False])
def test_triangular_systems(upper: bool, transpose: bool, unitriangular: bool) -> None:
    a, b = positive(3, 3), torch.randn(2, 3, 4)
    agree(
        lambda b, a: torch.triangular_solve(b, a, upper, transpose, unitriangular)[0],
        b,
        a.expand(2, 3, 3),
        runs="TriangularSolve",
        limit=LIMIT,
    )


@pytest.mark.filterwarnings("ignore:torch.triangular_solve is deprecated")
def test_a_triangular_system_gives_its_matrix_back() -> None:
    a, b = positive(3, 3), torch.randn(3, 2)
    same(torch.triangular_solve(b.npu(), a.npu())[1], a)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.int32))
def test_traces(dtype: torch.dtype) -> None:
    agree(torch.trace, torch.randint(0, 9, (3, 5)).to(dtype), runs="Trace")
