"""The captioner in PyTorch (eager, float32), the same sums as mmlm's, and its decoder for `generate` of transformers.

Axes: B batch, S places of the grid, C channels of the grid, T time, D width, V vocabulary.
"""

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import MBartConfig, MBartForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

PAD, BOS, EOS = 0, 1, 2
NORM_EPSILON = 1e-6  # flax's


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
  def of(cls, config, vocabulary: int, grid: tuple) -> 'Size':
    """The sizes of a completed config of mmlm; `grid` is (places, channels)."""
    encoder, head = config.model.encoders.image, config.model.head
    if (head.kv_heads, head.ffn_dim, head.gated, head.pre_norm, head.tied) != (0, 0, False, True, True):
      raise SystemExit('the peer knows pre-norm blocks, tied embeddings, a feed-forward width of 4 D and plain heads')
    return cls(
      *reversed(grid), config.model.dim, encoder.layers, encoder.heads, head.layers, head.heads, vocabulary,
      config.data.max_length, config.model.dropout, encoder.grid_dropout,
    )  # fmt: skip


class Captioner(nn.Module):
  """Grid [B, S, C] and inputs [B, T] -> logits [B, T, V]."""

  def __init__(self, size: Size):
    super().__init__()
    dim = size.dim
    shared = dict(
      dim_feedforward=4 * dim, dropout=size.dropout, activation=functools.partial(F.gelu, approximate='tanh'),
      batch_first=True, norm_first=True, layer_norm_eps=NORM_EPSILON,
    )  # fmt: skip
    norm = functools.partial(nn.LayerNorm, eps=NORM_EPSILON)
    self.grid_dropout, self.dropout = nn.Dropout(size.grid_dropout), nn.Dropout(size.dropout)
    self.grid_norm, self.projection = norm(size.channels), nn.Linear(size.channels, dim)
    self.places = nn.Parameter(0.02 * torch.randn(size.places, dim))
    encoder = [nn.TransformerEncoderLayer(dim, size.encoder_heads, **shared) for _ in range(size.encoder_layers)]
    self.encoder, self.encoder_norm = nn.ModuleList(encoder), norm(dim)
    self.tokens = nn.Embedding(size.vocabulary, dim)
    nn.init.normal_(self.tokens.weight, std=dim**-0.5)
    self.positions = nn.Parameter(0.02 * torch.randn(size.max_length, dim))
    decoder = [nn.TransformerDecoderLayer(dim, size.decoder_heads, **shared) for _ in range(size.decoder_layers)]
    self.decoder, self.decoder_norm = nn.ModuleList(decoder), norm(dim)
    for module in self.modules():
      if isinstance(module, nn.MultiheadAttention):
        module.dropout = 0.0  # mmlm drops nothing inside attention

  def encode(self, grid):
    x = self.projection(self.grid_norm(self.grid_dropout(grid))) + self.places
    x = self.dropout(x)
    for layer in self.encoder:
      x = layer(x)
    return self.encoder_norm(x)

  def forward(self, grid, inputs):
    memory, length = self.encode(grid), inputs.shape[1]
    x = self.tokens(inputs) * self.tokens.embedding_dim**0.5 + self.positions[:length]
    x = self.dropout(x)
    mask = nn.Transformer.generate_square_subsequent_mask(length)
    for layer in self.decoder:
      x = layer(x, memory, tgt_mask=mask, tgt_is_causal=True)
    return self.decoder_norm(x) @ self.tokens.weight.T


def tensors(batch: dict):
  """A batch of mmlm's -> grid, inputs, targets (-100 where there is none)."""
  target = torch.from_numpy(batch['target']).long()
  inputs = F.pad(target[:, :-1], (1, 0), value=BOS)
  target = target.masked_fill(~torch.from_numpy(batch['target_mask']), -100)
  return torch.from_numpy(batch['image']).float(), inputs, target


class Trainer:
  """AdamW (fused), clipping, label smoothing and the moving average of the parameters, as the config asks."""

  def __init__(self, config, size: Size):
    self.config, self.model = config, Captioner(size).train()
    self.parameters = list(self.model.parameters())
    c = config.optimizer
    groups = [
      {'params': [p for p in self.parameters if p.ndim > 1], 'weight_decay': c.weight_decay},
      {'params': [p for p in self.parameters if p.ndim == 1], 'weight_decay': 0.0},
    ]
    self.optimizer = torch.optim.AdamW(groups, c.learning_rate, (c.beta1, c.beta2), c.epsilon, fused=True)
    self.average = [p.detach().clone() for p in self.parameters] if config.train.ema_decay else []

  def loss(self, batch: dict):
    grid, inputs, target = tensors(batch)
    logits = self.model(grid, inputs)
    smoothing = self.config.train.label_smoothing
    return F.cross_entropy(logits.flatten(0, 1), target.flatten(), label_smoothing=smoothing)

  def __call__(self, batches: list) -> int:
    for batch in batches:
      self.optimizer.zero_grad(set_to_none=True)
      self.loss(batch).backward()
      torch.nn.utils.clip_grad_norm_(self.parameters, self.config.optimizer.clip_norm, foreach=True)
      self.optimizer.step()
      if self.average:
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - self.config.train.ema_decay)
    return sum(int(batch['weight'].sum()) for batch in batches)


class Generator:
  """`generate` of an MBart decoder (pre-norm, cross-attention) of the same sizes, behind the encoder of `Captioner`."""

  def __init__(self, size: Size, beams: int, steps: int, length_penalty: float):
    self.captioner = Captioner(size).eval()
    self.model = MBartForConditionalGeneration(MBartConfig(
      vocab_size=size.vocabulary, d_model=size.dim, max_position_embeddings=size.max_length,
      encoder_layers=1, encoder_attention_heads=size.decoder_heads, encoder_ffn_dim=4 * size.dim,  # never called
      decoder_layers=size.decoder_layers, decoder_attention_heads=size.decoder_heads, decoder_ffn_dim=4 * size.dim,
      activation_function='gelu_pytorch_tanh', scale_embedding=True, tie_word_embeddings=True,
      pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS, decoder_start_token_id=BOS, forced_eos_token_id=None,
    )).eval()  # fmt: skip
    self.options = dict(num_beams=beams, do_sample=False, min_new_tokens=steps, max_new_tokens=steps, use_cache=True)
    if beams > 1:
      self.options['length_penalty'] = length_penalty

  @torch.inference_mode()
  def __call__(self, batches: list) -> int:
    for batch in batches:
      memory = self.captioner.encode(torch.from_numpy(batch['image']).float())
      found = self.model.generate(encoder_outputs=BaseModelOutput(last_hidden_state=memory), **self.options)
      if found.shape != (len(memory), 1 + self.options['max_new_tokens']):
        raise SystemExit(f'transformers generated {tuple(found.shape)}')
    return sum(int(batch['weight'].sum()) for batch in batches)
