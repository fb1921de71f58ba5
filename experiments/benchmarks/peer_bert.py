# The other software is installed only for the comparison.
# pyright: reportMissingImports=false
"""A BERT that names classes in PyTorch (eager, float32).

The encoder of transformers with mmlm's head, from the same weights.

It imports nothing of mmlm, so that a process which trains it alone holds nothing else.
Axes: B batch, S sequence, V vocabulary, W width, C classes.
"""

import pathlib
from typing import Any, NamedTuple

import numpy as np
import peer
import torch
from torch import nn
from transformers import BertConfig, BertModel, logging

logging.set_verbosity_error()  # says else that the pooler of the file is not read
logging.disable_progress_bar()


class Weights(NamedTuple):
  """The folder of a BERT, and mmlm's head."""

  folder: str
  kernel: np.ndarray  # [W, C]
  bias: np.ndarray  # [C]
  dropout: float


class Classifier(nn.Module):
  """Computes logits [B, 1, C] of tokens [B, S] of mmlm and their mask [B, S].

  Mean pooling, dropout, a linear layer.

  Attention is what transformers takes by itself, but drops nothing, as in mmlm.
  """

  def __init__(self, weights: Weights):
    super().__init__()
    rates = {'hidden_dropout_prob': weights.dropout, 'attention_probs_dropout_prob': 0.0}
    self.bert = BertModel.from_pretrained(
      weights.folder, add_pooling_layer=False, dtype=torch.float32, **rates
    )
    self.dropout = nn.Dropout(weights.dropout)
    self.head = nn.Linear(*weights.kernel.shape)
    self._as_in_mmlm(weights)

  @torch.no_grad()
  def _as_in_mmlm(self, weights: Weights):
    self.head.weight.copy_(torch.tensor(weights.kernel.T))
    self.head.bias.copy_(torch.tensor(weights.bias))
    embeddings = self.bert.embeddings
    types = embeddings.token_type_embeddings
    # mmlm's positions hold the vector of the one segment. Here it is added to them too; the table
    # of segments stays zero and is not trained.
    embeddings.position_embeddings.weight += types.weight[0]
    nothing = torch.zeros_like(types.weight)
    del types.weight
    types.register_buffer('weight', nothing)

  def forward(self, tokens: torch.Tensor, mask: torch.Tensor):
    x = self.bert(input_ids=tokens, attention_mask=mask).last_hidden_state
    kept = mask[..., None].to(x.dtype)
    mean = (x * kept).sum(1, keepdim=True) / kept.sum(1, keepdim=True)  # [B, 1, W]
    return self.head(self.dropout(mean))


def inputs(batch: dict) -> tuple:
  """A batch of mmlm's -> tokens and mask; rows that only fill a batch are left out."""
  real = batch['weight'] > 0
  return torch.from_numpy(batch['text'][real]).long(), torch.from_numpy(
    batch['text_mask'][real]
  ).long()


def tensors(batch: dict) -> tuple:
  """The same with the numbers of the classes [B, 1]."""
  return *inputs(batch), torch.from_numpy(batch['label'][batch['weight'] > 0]).long()


@torch.inference_mode()
def probabilities(model: Classifier, batches: list) -> np.ndarray:
  """Of the classes, for the examples of the batches one after another: [N, C]."""
  return torch.cat([model(*inputs(batch))[:, 0].softmax(-1) for batch in batches]).numpy()


def train_alone(config: Any, weights: Weights, batches: list):
  peer.use_all_cores()
  peer.Trainer(config, Classifier(weights), tensors)(batches)


def write_small(folder: pathlib.Path) -> str:
  """A BERT of random weights, as transformers writes it."""
  words = [
    '[PAD]',
    *(f'[unused{i}]' for i in range(60)),
    '[UNK]',
    '[CLS]',
    '[SEP]',
    *(f'w{i}' for i in range(36)),
  ]
  sizes = dict(
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=48,
    max_position_embeddings=16,
  )
  BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
  (folder / 'vocab.txt').write_text('\n'.join(words) + '\n', encoding='utf-8')
  return str(folder)
