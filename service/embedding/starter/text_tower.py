"""Text tower of the starter model: one vector for each token of CLIP's vocabulary, and their mean.

The vectors are fitted, in closed form, so that their sums point where the sentence model's vectors of whole texts do.
One layer of open_clip's text transformer computes the mean: its attention is the same everywhere, and everything else
in it does nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import scipy.sparse
    import torch

Vectors = npt.NDArray[np.float64]

CONTEXT = 77
_FILLER = 64  # dimensions beside those of the vectors; the width must be a multiple of 64
_SHRINKAGE = 10.0
"""Weight of staying near the vectors of single words, against pointing where whole texts do.

Chosen by the cosine to the sentence model's vectors of texts that the fit did not see.
"""
_STEPS = 12  # leave a thousandth of the residual; a fixed number, so that every machine takes the same steps


def words(tokenizer: Any) -> dict[int, str]:
    """Return the tokens that are whole words of three letters or more, by number."""
    return {number: token[:-4] for number, token in tokenizer.decoder.items() if re.fullmatch("[a-z]{3,}</w>", token)}


def fit(tokenizer: Any, word_vectors: dict[int, Vectors], texts: Sequence[str], targets: Vectors) -> Vectors:
    """Return one vector for each token, (vocabulary, D), whose sums over a text point where its target does.

    This is ridge regression towards the vectors of single words. Only directions count, so a text's target has the
    length that the sum of its words has in that direction. Fitting again with the lengths of the first fit is worse on
    texts that the fit did not see.

    Args:
        tokenizer: open_clip's tokenizer.
        word_vectors: (D,) vectors of single words, by token.
        texts: N texts.
        targets: (N, D) unit vectors of the texts.
    """
    table = np.zeros((tokenizer.vocab_size, targets.shape[1]))
    table[list(word_vectors)] = list(word_vectors.values())
    counts = _counts(tokenizer, texts)
    used = np.unique(counts.indices)
    counts = counts[:, used].tocsr()
    start = counts @ table[used]
    lengths = np.maximum((start * targets).sum(axis=1, keepdims=True), 0)
    table[used] += _solve(counts, counts.T @ (lengths * targets - start))
    return table


def _counts(tokenizer: Any, texts: Sequence[str]) -> scipy.sparse.csr_array:
    """Return how often each text has each token: (N, vocabulary)."""
    from scipy import sparse

    rows = [tokenizer.encode(text)[: CONTEXT - 2] for text in texts]
    owners = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    tokens = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])
    return sparse.csr_array((np.ones(len(tokens)), (owners, tokens)), shape=(len(rows), tokenizer.vocab_size))


def _solve(counts: scipy.sparse.csr_array, wanted: Vectors) -> Vectors:
    """Solve (C^T C + shrinkage I) X = `wanted` (tokens, D).

    By conjugate gradients for all D columns at once. Tokens differ in frequency by four orders of magnitude, so the
    diagonal is the preconditioner.
    """
    transposed = counts.T.tocsr()
    scale = 1 / (np.asarray(counts.power(2).sum(axis=0)).reshape(-1, 1) + _SHRINKAGE)
    solution, residual = np.zeros_like(wanted), wanted.copy()
    direction = scale * residual
    size = (residual * direction).sum(axis=0)
    for _ in range(_STEPS):
        product = transposed @ (counts @ direction) + _SHRINKAGE * direction
        step = size / (direction * product).sum(axis=0)
        solution += step * direction
        residual -= step * product
        before, size = size, (residual * scale * residual).sum(axis=0)
        direction = scale * residual + size / before * direction
    return solution


def config(table: Vectors) -> dict[str, Any]:
    """Return open_clip's `text_cfg` of the tower with these token vectors."""
    width = table.shape[1] + _FILLER
    heads = width // 64
    return {
        "context_length": CONTEXT,
        "vocab_size": len(table),
        "width": width,
        "heads": heads,
        "layers": 1,
        "mlp_ratio": 1.0,
    }


def state(table: Vectors, dimension: int) -> dict[str, torch.Tensor]:
    """Return the weights of the tower that averages token vectors, by open_clip's names.

    The tower's LayerNorm would lose the lengths of the vectors. So each is filled up to one length in a direction that
    is thrown away afterwards. All directions are orthogonal to (1, ..., 1), so the mean that LayerNorm subtracts is 0.

    Args:
        table: (vocabulary, D) token vectors.
        dimension: dimension of the model's vectors, at least D. The other components are 0.
    """
    import torch

    width = table.shape[1] + _FILLER
    basis = _cosines(width)
    filler, kept = basis[1], basis[2 : 2 + table.shape[1]]
    squares = (table**2).sum(axis=1)
    tokens = table @ kept + np.sqrt(1.02 * squares.max() - squares)[:, None] * filler
    projection = np.zeros((width, dimension))
    projection[:, : table.shape[1]] = kept.T
    block, nothing = "transformer.resblocks.0", torch.zeros
    tensors = {
        "token_embedding.weight": torch.from_numpy(tokens),
        "positional_embedding": nothing(CONTEXT, width),
        "text_projection": torch.from_numpy(projection),
        # Queries and keys are 0, so every token has the same attention.
        f"{block}.attn.in_proj_weight": torch.cat([nothing(2 * width, width), torch.from_numpy(kept.T @ kept)]),
        f"{block}.attn.in_proj_bias": nothing(3 * width),
        f"{block}.attn.out_proj.weight": torch.eye(width),
        f"{block}.attn.out_proj.bias": nothing(width),
    }
    for name in ("mlp.c_fc", "mlp.c_proj"):
        tensors |= {f"{block}.{name}.weight": nothing(width, width), f"{block}.{name}.bias": nothing(width)}
    for name in (f"{block}.ln_1", f"{block}.ln_2", "ln_final"):
        tensors |= {f"{name}.weight": torch.ones(width), f"{name}.bias": nothing(width)}
    return {name: tensor.float().contiguous() for name, tensor in tensors.items()}


def _cosines(width: int) -> Vectors:
    """Return the rows of the discrete cosine transform, (width, width): orthonormal, the first one constant."""
    rows, columns = np.arange(width)[:, None], np.arange(width)[None, :]
    basis: Vectors = np.cos(np.pi * rows * (2 * columns + 1) / (2 * width)) * np.sqrt(2 / width)
    basis[0] /= np.sqrt(2)
    return basis
