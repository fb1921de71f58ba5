# The other software is installed only for the comparison.
# pyright: reportMissingImports=false
"""The captioner in PyTorch (eager, float32), with the sums of mmlm.

Also its decoder for `generate` of transformers.

Axes: B batch, S places of the grid, C channels of the grid, T time, D width, V vocabulary.
"""

import functools
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from peer import BOS, EOS, NORM_EPSILON, PAD, Generator, drop_nothing_in_attention, shifted
from torch import nn
from transformers import MBartConfig, MBartForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput


class Size(NamedTuple):
  channels: int  # of the grid
  places: int
  dim: int
  encoder_layers: int
  encoder_heads: int
  decoder_layers: int
  decoder_heads: int
  vocabulary: int
  max_length: int
  dropout: float
  grid_dropout: float

  @classmethod
  def of(cls, config: Any, vocabulary: int, grid: tuple) -> 'Size':
    """The sizes of a completed config of mmlm; `grid` is (places, channels)."""
    encoder = config.model.encoders.image
    head = config.model.head
    form = (head.kv_heads, head.ffn_dim, head.gated, head.pre_norm, head.tied)
    if form != (0, 0, False, True, True):
      raise SystemExit(
        'the peer has pre-norm blocks, tied embeddings, a feed-forward width of 4 D, plain heads'
      )
    places, channels = grid
    return cls(
      channels=channels,
      places=places,
      dim=config.model.dim,
      encoder_layers=encoder.layers,
      encoder_heads=encoder.heads,
      decoder_layers=head.layers,
      decoder_heads=head.heads,
      vocabulary=vocabulary,
      max_length=config.data.max_length,
      dropout=config.model.dropout,
      grid_dropout=encoder.grid_dropout,
    )


class Captioner(nn.Module):
  """Grid [B, S, C] and inputs [B, T] -> logits [B, T, V]."""

  def __init__(self, size: Size):
    super().__init__()
    dim = size.dim
    shared = dict(
      dim_feedforward=4 * dim,
      dropout=size.dropout,
      activation=functools.partial(F.gelu, approximate='tanh'),
      batch_first=True,
      norm_first=True,
      layer_norm_eps=NORM_EPSILON,
    )
    norm = functools.partial(nn.LayerNorm, eps=NORM_EPSILON)
    self.grid_dropout = nn.Dropout(size.grid_dropout)
    self.dropout = nn.Dropout(size.dropout)
    self.grid_norm = norm(size.channels)
    self.projection = nn.Linear(size.channels, dim)
    self.places = nn.Parameter(0.02 * torch.randn(size.places, dim))
    encoder = []
    for _ in range(size.encoder_layers):
      encoder.append(nn.TransformerEncoderLayer(dim, size.encoder_heads, **shared))
    self.encoder = nn.ModuleList(encoder)
    self.encoder_norm = norm(dim)
    self.tokens = nn.Embedding(size.vocabulary, dim)
    nn.init.normal_(self.tokens.weight, std=dim**-0.5)
    self.positions = nn.Parameter(0.02 * torch.randn(size.max_length, dim))
    decoder = []
    for _ in range(size.decoder_layers):
      decoder.append(nn.TransformerDecoderLayer(dim, size.decoder_heads, **shared))
    self.decoder = nn.ModuleList(decoder)
    self.decoder_norm = norm(dim)
    drop_nothing_in_attention(self)

  def encode(self, grid: torch.Tensor):
    x = self.projection(self.grid_norm(self.grid_dropout(grid))) + self.places
    x = self.dropout(x)
    for layer in self.encoder:
      x = layer(x)
    return self.encoder_norm(x)

  def forward(self, grid: torch.Tensor, inputs: torch.Tensor):
    memory = self.encode(grid)
    length = inputs.shape[1]
    x = self.tokens(inputs) * self.tokens.embedding_dim**0.5 + self.positions[:length]
    x = self.dropout(x)
    mask = nn.Transformer.generate_square_subsequent_mask(length)
    for layer in self.decoder:
      x = layer(x, memory, tgt_mask=mask, tgt_is_causal=True)
    return self.decoder_norm(x) @ self.tokens.weight.T


def tensors(batch: dict) -> tuple:
  """A batch of mmlm's -> grid, inputs, targets (-100 where there is none)."""
  return torch.from_numpy(batch['image']).float(), *shifted(batch)


def generator(size: Size, beams: int, steps: int, length_penalty: float) -> Generator:
  """`generate` of an MBart decoder of the same sizes, behind the encoder of `Captioner`.

  The decoder is pre-norm, with cross-attention.
  """
  captioner = Captioner(size).eval()
  model = MBartForConditionalGeneration(
    MBartConfig(
      vocab_size=size.vocabulary,
      d_model=size.dim,
      max_position_embeddings=size.max_length,
      encoder_layers=1,
      encoder_attention_heads=size.decoder_heads,
      encoder_ffn_dim=4 * size.dim,  # never called
      decoder_layers=size.decoder_layers,
      decoder_attention_heads=size.decoder_heads,
      decoder_ffn_dim=4 * size.dim,
      activation_function='gelu_pytorch_tanh',
      scale_embedding=True,
      tie_word_embeddings=True,
      pad_token_id=PAD,
      bos_token_id=BOS,
      eos_token_id=EOS,
      decoder_start_token_id=BOS,
      forced_eos_token_id=None,
    )
  ).eval()

  def read(batch: dict):
    memory = captioner.encode(torch.from_numpy(batch['image']).float())
    return {'encoder_outputs': BaseModelOutput(last_hidden_state=memory)}

  return Generator(model, read, beams, steps, length_penalty)
