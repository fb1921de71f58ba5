# The other software is installed only for the comparison.
# pyright: reportMissingImports=false
"""The PyTorch side of language_model.py.

A decoder-only Transformer with mmlm's sums, attention by PyTorch's fused function.

Axes: B batch, T time, D width, H heads, E width of a head, V vocabulary.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from flax.traverse_util import flatten_dict
from peer import NORM_EPSILON
from torch import nn


class Size(NamedTuple):
  vocabulary: int
  width: int
  layers: int
  heads: int
  context: int

  @classmethod
  def of(cls, config: Any, vocabulary: int):
    return cls(
      vocabulary,
      config.model.dim,
      config.model.head.layers,
      config.model.head.heads,
      config.data.max_length,
    )


def tensors(batch: dict) -> tuple:
  """A batch of mmlm's -> inputs [B, T] and targets [B, T] (-100 where none is predicted)."""
  target = torch.from_numpy(batch['target']).long()
  return torch.from_numpy(batch['inputs']).long(), target.masked_fill(
    ~torch.from_numpy(batch['target_mask']), -100
  )


class Block(nn.Module):
  def __init__(self, size: Size):
    super().__init__()
    self.heads = size.heads
    self.self_norm = nn.LayerNorm(size.width, NORM_EPSILON)
    self.ffn_norm = nn.LayerNorm(size.width, NORM_EPSILON)
    self.joined = nn.Linear(size.width, 3 * size.width)
    self.out = nn.Linear(size.width, size.width)
    self.up = nn.Linear(size.width, 4 * size.width)
    self.down = nn.Linear(4 * size.width, size.width)

  def forward(self, x: torch.Tensor):
    batch, time, width = x.shape

    def split(y: torch.Tensor):
      return y.view(batch, time, self.heads, -1).transpose(1, 2)  # [B, H, T, E]

    query, key, value = map(split, self.joined(self.self_norm(x)).split(width, -1))
    seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    x = x + self.out(seen.transpose(1, 2).reshape(x.shape))
    return x + self.down(F.gelu(self.up(self.ffn_norm(x)), approximate='tanh'))


class Decoder(nn.Module):
  """Inputs [B, T] -> logits [B, T, V]; the output is tied to the input."""

  def __init__(self, size: Size):
    super().__init__()
    self.size = size
    self.table = nn.Parameter(torch.randn(size.vocabulary, size.width) * size.width**-0.5)
    self.positions = nn.Parameter(torch.randn(size.context, size.width) * 0.02)
    self.blocks = nn.ModuleList(Block(size) for _ in range(size.layers))
    self.norm = nn.LayerNorm(size.width, NORM_EPSILON)

  def forward(self, inputs: torch.Tensor):
    positions = self.positions[: inputs.shape[1]]
    x = F.embedding(inputs, self.table) * self.size.width**0.5 + positions
    for block in self.blocks:
      x = block(x)
    return self.norm(x) @ self.table.T

  @torch.no_grad()
  def load(self, params: dict):
    """Takes mmlm's weights."""
    found = {}
    for name, leaf in flatten_dict(params['head'], sep='/').items():
      found[name] = torch.from_numpy(np.array(leaf))
    width = self.size.width
    self.table.copy_(found['tokens/table'])
    self.positions.copy_(found['position/positions'])
    _norm(self.norm, found, 'transformer/norm')
    for number, block in enumerate(self.blocks):
      place = f'transformer/block_{number}'
      _norm(block.self_norm, found, f'{place}/self_norm')
      _norm(block.ffn_norm, found, f'{place}/ffn_norm')
      kernels = []
      biases = []
      for part in ('query', 'key', 'value'):
        projection = f'{place}/self_attention/{part}'
        kernels.append(found[f'{projection}/kernel'].reshape(width, width).T)
        biases.append(found[f'{projection}/bias'].reshape(width))
      block.joined.weight.copy_(torch.cat(kernels))
      block.joined.bias.copy_(torch.cat(biases))
      for linear, name in (
        (block.out, 'self_attention/out'),
        (block.up, 'ffn/up'),
        (block.down, 'ffn/down'),
      ):
        linear.weight.copy_(found[f'{place}/{name}/kernel'].reshape(linear.weight.shape[::-1]).T)
        linear.bias.copy_(found[f'{place}/{name}/bias'])


def _norm(norm: nn.LayerNorm, found: dict, name: str):
  norm.weight.copy_(found[f'{name}/scale'])
  norm.bias.copy_(found[f'{name}/bias'])
