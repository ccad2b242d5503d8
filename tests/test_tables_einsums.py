"""Einsum in ONNX files: the rows that PyTorch's table has of the same equation, and what is not known of it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from onnx_graphs import node, write_graph
from operator_rows import row_of
from torch import nn

from mcompress.compress.cost import Input, table_on
from mcompress.export.tables import table_of_file

EINSUMS: dict[str, tuple[tuple[int, ...], ...]] = {
    # of one: a transposition, a sum, both
    "bij->bji": ((2, 3, 4),),
    "bij->bi": ((2, 3, 4),),
    "bij->i": ((2, 3, 4),),
    "bcij->bij": ((2, 1, 3, 4),),
    "...i->...": ((2, 3, 4),),
    "ij...->...": ((2, 3, 4),),
    # of two: products, with a sum before them, over two axes, into another order, and what only multiplies
    "bmd,bnd->bmn": ((2, 3, 4), (2, 5, 4)),
    "bhid,bhjd->bhij": ((2, 3, 4, 8), (2, 3, 5, 8)),
    "bxhd,byhd->bhxy": ((2, 5, 4, 8), (2, 6, 4, 8)),
    "bhxy,byhd->bxhd": ((2, 4, 5, 6), (2, 6, 4, 8)),
    "bij,jk->bk": ((2, 3, 4), (4, 5)),
    "bij,ji->b": ((2, 3, 4), (4, 3)),
    "bij,bij->bi": ((2, 3, 4), (2, 3, 4)),
    "bhwc,hkc->bhwk": ((2, 5, 6, 8), (5, 6, 8)),
    "...ij,jk->...ik": ((2, 6, 3, 4), (4, 5)),
    "ij,jk": ((2, 3), (3, 4)),
    "i,i->": ((5,), (5,)),
    "bi,bj->bij": ((1, 8), (1, 4)),
    "bchw,bc->bchw": ((1, 4, 8, 8), (1, 4)),
    "bij,bk->bk": ((2, 3, 4), (2, 5)),
    # of several: chains, from either end, with a copy between, with what is shared by all
    "ij,jk,kl->il": ((4, 8), (8, 5), (5, 6)),
    "ij,jk,kl,lm->im": ((4, 8), (8, 5), (5, 6), (6, 3)),
    "abij,abjk,abk->abi": ((2, 3, 4, 5), (2, 3, 5, 6), (2, 3, 6)),
    "bn,anm,bm->ba": ((2, 8), (4, 8, 8), (2, 8)),
    "ki,kj,kl->ijl": ((7, 4), (7, 5), (7, 6)),
    "ab,cd,bd->ac": ((2, 3), (4, 5), (3, 5)),
    "bj,bj,bj->b": ((2, 8), (2, 8), (2, 8)),
    "bj,cj,dk->bc": ((2, 8), (3, 8), (4, 5)),
    "bi,ij,bj->b": ((2, 1), (1, 8), (2, 8)),
}


class Summed(nn.Module):
    """An einsum between two operators, its last operand held or not."""

    def __init__(self, equation: str, held: tuple[int, ...] | None) -> None:
        super().__init__()
        self.equation = equation
        self.held = None if held is None else nn.Parameter(torch.rand(held))

    def forward(self, *given: torch.Tensor) -> torch.Tensor:
        operands = [torch.sigmoid(one) for one in given]
        return torch.sin(torch.einsum(self.equation, *operands, *([] if self.held is None else [self.held])))


@pytest.mark.parametrize("path_found", [True, False])
@pytest.mark.parametrize(("equation", "held"), [(text, held) for text, shapes in EINSUMS.items() for held in (False, True)[: len(shapes)]])
def test_an_einsum_has_the_rows_that_it_has_in_the_network(
    equation: str, held: bool, path_found: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the order that opt_einsum finds, and without it."""
    shapes = EINSUMS[equation]
    if not path_found:
        monkeypatch.setattr(torch.backends.opt_einsum, "enabled", False)
        monkeypatch.setitem(sys.modules, "opt_einsum", None)
    entering = shapes[:-1] if held else shapes
    names = [f"x{i}" for i in range(len(entering))]
    operands = " ".join([*(f"{name}s" for name in names), *(["w"] if held else [])])
    nodes = [node("Sigmoid", name, f"{name}s") for name in names] + [node("Einsum", operands, "e", equation=equation), node("Sin", "e", "y")]
    path = write_graph(tmp_path / "graph.onnx", nodes, dict(zip(names, entering, strict=True)), ["y"], {"w": shapes[-1]} if held else {})
    network = Summed(equation, shapes[-1] if held else None)
    feed = {name: np.ones(shape, np.float32) for name, shape in zip(names, entering, strict=True)}
    read = table_of_file(path).table
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert session.run(None, feed)[0].shape == tuple(network(*(torch.from_numpy(value) for value in feed.values())).shape)
    own = table_on(network, [Input(shape, torch.float32) for shape in entering])
    assert [(row.operation, row_of(row)) for row in read.operators] == [(row.operation, row_of(row)) for row in own.operators]
    assert not read.unknown


def test_a_chain_of_products_costs_what_its_products_cost(tmp_path: Path) -> None:
    path = write_graph(
        tmp_path / "graph.onnx", [node("Einsum", "a b c", "y", equation="ij,jk,kl->il")], {"a": (4, 8), "b": (8, 5), "c": (5, 6)}, ["y"]
    )
    table = table_of_file(path).table
    assert (table.macs, table.assumed_macs) == (4 * 8 * 5 + 4 * 5 * 6, 0)


@pytest.mark.parametrize(("equation", "shapes"), [("bii->bi", ((2, 3, 3),)), ("ii,ij->j", ((3, 3), (3, 4)))])
def test_a_diagonal_is_not_known(equation: str, shapes: tuple[tuple[int, ...], ...], tmp_path: Path) -> None:
    inputs = {f"x{i}": shape for i, shape in enumerate(shapes)}
    path = write_graph(tmp_path / "graph.onnx", [node("Einsum", " ".join(inputs), "y", equation=equation)], inputs, ["y"])
    (row,) = table_of_file(path).table.unknown
    assert row.operation == f"einsum {equation}"
    assert row.macs > 0
