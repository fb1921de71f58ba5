# The other software is installed only for the comparison.
# pyright: reportMissingImports=false
"""Common code of the PyTorch peers (eager, float32).

A trainer of the same sums as mmlm's, and `generate` of transformers.
"""

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

PAD = 0
BOS = 1
EOS = 2
NORM_EPSILON = 1e-6  # flax's


def use_all_cores():
  torch.set_num_threads(os.cpu_count())


def drop_nothing_in_attention(model: nn.Module):
  """As in mmlm; `nn.Transformer*Layer` would use the dropout of its residuals there."""
  for module in model.modules():
    if isinstance(module, nn.MultiheadAttention):
      module.dropout = 0.0


def shifted(batch: dict) -> tuple:
  """Returns inputs [B, T] of the decoder and targets [B, T] (-100 for padding) of a batch."""
  target = torch.from_numpy(batch['target']).long()
  inputs = F.pad(target[:, :-1], (1, 0), value=BOS)
  return inputs, target.masked_fill(~torch.from_numpy(batch['target_mask']), -100)


class Trainer:
  """Trains with AdamW (fused), clipping, label smoothing and the moving average of the config.

  `read`: batch -> (what the model takes, ..., targets).
  """

  def __init__(self, config: Any, model: nn.Module, read: Callable):
    self.config = config
    self.model = model.train()
    self.read = read
    self.parameters = list(self.model.parameters())
    c = config.optimizer
    groups = [
      {'params': [p for p in self.parameters if p.ndim > 1], 'weight_decay': c.weight_decay},
      {'params': [p for p in self.parameters if p.ndim == 1], 'weight_decay': 0.0},
    ]
    self.optimizer = torch.optim.AdamW(
      groups, c.learning_rate, (c.beta1, c.beta2), c.epsilon, fused=True
    )
    if config.train.ema_decay:
      self.average = [p.detach().clone() for p in self.parameters]
    else:
      self.average = []

  def loss(self, batch: dict):
    *inputs, target = self.read(batch)
    logits = self.model(*inputs)
    return F.cross_entropy(
      logits.flatten(0, 1), target.flatten(), label_smoothing=self.config.train.label_smoothing
    )

  def __call__(self, batches: list):
    for batch in batches:
      self.optimizer.zero_grad(set_to_none=True)
      loss = self.loss(batch)
      loss.backward()
      if self.config.optimizer.clip_norm:
        torch.nn.utils.clip_grad_norm_(
          self.parameters, self.config.optimizer.clip_norm, foreach=True
        )
      self.optimizer.step()
      if self.average:
        torch._foreach_lerp_(
          self.average, [p.detach() for p in self.parameters], 1 - self.config.train.ema_decay
        )
    if not loss.isfinite():
      raise SystemExit('the loss of the peer is not finite')


class Generator:
  """`generate` of transformers, forced to `steps` steps. `read`: batch -> what it takes."""

  def __init__(self, model: Any, read: Callable, beams: int, steps: int, length_penalty: float):
    self.model = model
    self.read = read
    self.options: dict[str, Any] = dict(
      num_beams=beams, do_sample=False, min_new_tokens=steps, max_new_tokens=steps, use_cache=True
    )
    if beams > 1:
      self.options['length_penalty'] = length_penalty

  @torch.inference_mode()
  def __call__(self, batches: list) -> list:
    """Tokens [n, steps] of the examples of each batch."""
    tokens = []
    for batch in batches:
      found = self.model.generate(**self.read(batch), **self.options)
      if found.shape != (int(batch['weight'].sum()), 1 + self.options['max_new_tokens']):
        raise SystemExit(f'transformers generated {tuple(found.shape)}')
      tokens.append(found[:, 1:].numpy())
    return tokens
