# The other software is installed only for the comparison.
# pyright: reportMissingImports=false
"""The translator in PyTorch (eager, float32), with the sums of mmlm.

Also its Marian form for transformers and for CTranslate2.

Axes: B batch, S source, T time, D width, V vocabulary.
"""

import itertools
import re
from typing import Any, NamedTuple

import ctranslate2
import numpy as np
import torch
from ctranslate2.converters.transformers import BartLoader
from peer import BOS, EOS, NORM_EPSILON, PAD, Generator, drop_nothing_in_attention, shifted
from torch import nn
from transformers import MarianConfig, MarianMTModel


class Size(NamedTuple):
  dim: int
  heads: int
  ffn_dim: int
  encoder_layers: int
  decoder_layers: int
  vocabulary: int
  max_length: int
  dropout: float

  @classmethod
  def of(cls, config: Any, vocabulary: int) -> 'Size':
    """The sizes of a completed config of mmlm."""
    encoder = config.model.encoders.text
    head = config.model.head
    plain = {
      'activation': 'relu',
      'pre_norm': False,
      'hidden_dropout': False,
      'positions': 'sinusoidal',
    }
    equal = (encoder.heads, encoder.ffn_dim) == (head.heads, head.ffn_dim)
    for key, value in plain.items():
      equal = equal and encoder[key] == value and head[key] == value
    if not (
      equal
      and config.model.shared_embeddings
      and head.tied
      and not head.kv_heads
      and not head.gated
    ):
      raise SystemExit(
        'the peer knows post-norm blocks with relu, sinusoidal positions and one shared table'
      )
    return cls(
      config.model.dim,
      encoder.heads,
      encoder.ffn_dim,
      encoder.layers,
      head.layers,
      vocabulary,
      config.data.max_length,
      config.model.dropout,
    )


# Training


class Translator(nn.Module):
  """Source [B, S], where it is padding [B, S] and inputs [B, T] -> logits [B, T, V]."""

  def __init__(self, size: Size):
    super().__init__()
    dim = size.dim
    shared = dict(
      dim_feedforward=size.ffn_dim,
      dropout=size.dropout,
      activation='relu',
      batch_first=True,
      norm_first=False,
      layer_norm_eps=NORM_EPSILON,
    )
    self.tokens = nn.Embedding(size.vocabulary, dim)
    nn.init.normal_(self.tokens.weight, std=dim**-0.5)
    angles = torch.arange(size.max_length)[:, None] / 10000 ** (torch.arange(dim // 2) / (dim // 2))
    self.register_buffer('positions', torch.cat([angles.sin(), angles.cos()], 1))
    self.dropout = nn.Dropout(size.dropout)
    self.encoder = nn.ModuleList(
      nn.TransformerEncoderLayer(dim, size.heads, **shared) for _ in range(size.encoder_layers)
    )
    self.decoder = nn.ModuleList(
      nn.TransformerDecoderLayer(dim, size.heads, **shared) for _ in range(size.decoder_layers)
    )
    drop_nothing_in_attention(self)
    for layer in (*self.encoder, *self.decoder):
      layer.dropout = nn.Identity()  # inside the feed-forward mmlm drops nothing either

  def embed(self, tokens: torch.Tensor):
    return self.dropout(
      self.tokens(tokens) * self.tokens.embedding_dim**0.5 + self.positions[: tokens.shape[1]]
    )

  def forward(self, source: torch.Tensor, padding: torch.Tensor, inputs: torch.Tensor):
    memory = self.embed(source)
    for layer in self.encoder:
      memory = layer(memory, src_key_padding_mask=padding)
    x = self.embed(inputs)
    mask = nn.Transformer.generate_square_subsequent_mask(inputs.shape[1])
    for layer in self.decoder:
      x = layer(x, memory, tgt_mask=mask, tgt_is_causal=True, memory_key_padding_mask=padding)
    return x @ self.tokens.weight.T


def real_rows(batch: dict) -> dict:
  """Without what fills a batch."""
  real = batch['weight'] > 0
  if real.all():
    return batch
  return {key: value[real] for key, value in batch.items()}


def tensors(batch: dict) -> tuple:
  """A batch of mmlm's -> source, its padding, inputs, targets (-100 where there is none)."""
  batch = real_rows(batch)
  return (
    torch.from_numpy(batch['text']).long(),
    ~torch.from_numpy(batch['text_mask']),
    *shifted(batch),
  )


# Decoding

# Paths of mmlm's parameters -> names of Marian's.
RENAMED = {
  'encoders_text/embeddings/table': 'model.shared.weight',
  r'encoders_text/transformer/block_(\d+)/': r'model.encoder.layers.\1.',
  r'head/transformer/block_(\d+)/': r'model.decoder.layers.\1.',
  'self_attention/': 'self_attn.',
  'cross_attention/': 'encoder_attn.',
  '(q|k|v)(uery|ey|alue)/': r'\1_proj.',
  'out/': 'out_proj.',
  'self_norm/': 'self_attn_layer_norm.',
  'cross_norm/': 'encoder_attn_layer_norm.',
  'ffn_norm/': 'final_layer_norm.',
  'ffn/up/': 'fc1.',
  'ffn/down/': 'fc2.',
  '(kernel|scale)$': 'weight',
}


def marian(params: dict, size: Size) -> MarianMTModel:
  """Returns the Marian model with mmlm's parameters {path: array}.

  The start token and padding are never written, as in mmlm.
  """
  model = MarianMTModel(
    MarianConfig(
      vocab_size=size.vocabulary,
      d_model=size.dim,
      max_position_embeddings=size.max_length,
      encoder_layers=size.encoder_layers,
      encoder_attention_heads=size.heads,
      encoder_ffn_dim=size.ffn_dim,
      decoder_layers=size.decoder_layers,
      decoder_attention_heads=size.heads,
      decoder_ffn_dim=size.ffn_dim,
      activation_function='relu',
      scale_embedding=True,
      pad_token_id=PAD,
      bos_token_id=BOS,
      eos_token_id=EOS,
      decoder_start_token_id=BOS,
      forced_eos_token_id=None,
    )
  ).eval()
  weights = {}
  for path, value in params.items():
    value = np.asarray(value)
    if path.endswith('kernel'):
      shape = (-1, size.dim) if '/out/' in path else (len(value), -1)
      value = value.reshape(shape).T
    for pattern, name in RENAMED.items():
      path = re.sub(pattern, name, path)
    weights[path] = torch.tensor(value.reshape(-1) if path.endswith('bias') else value)
  missing, unknown = model.load_state_dict(weights, strict=False)
  if unknown or {name for name in missing if not re.search('embed_|lm_head|logits_bias', name)}:
    raise SystemExit(f'Marian lacks {unknown}, mmlm {missing}')
  model.final_logits_bias[0, [PAD, BOS]] = -1e9
  return model


def generator(model: MarianMTModel, beams: int, steps: int, length_penalty: float) -> Generator:
  def read(batch: dict):
    batch = real_rows(batch)
    return {
      'input_ids': torch.from_numpy(batch['text']).long(),
      'attention_mask': torch.from_numpy(batch['text_mask']),
    }

  return Generator(model, read, beams, steps, length_penalty)


def convert(model: MarianMTModel, folder: str):
  """Writes the model for CTranslate2, whose words are the ids as text."""
  model.config.normalize_before = model.config.normalize_embedding = (
    False  # what the loader asks for
  )
  # That of MBart's shape: Marian's own starts from a zero embedding in place of the start token.
  spec = BartLoader().get_model_spec(model)
  words = list(map(str, range(model.config.vocab_size)))
  spec.register_source_vocabulary(words)
  spec.register_target_vocabulary(words)
  spec.config.bos_token = spec.config.decoder_start_token = words[BOS]
  spec.config.eos_token = words[EOS]
  spec.config.unk_token = words[EOS + 1]
  spec.validate()
  spec.optimize()
  spec.save(folder)


class CTranslate2:
  """The layout `workers` x `threads` of CTranslate2, float32.

  It gets all batches at once, and spreads them.
  """

  def __init__(
    self, folder: str, workers: int, threads: int, beams: int, steps: int, length_penalty: float
  ):
    self.translator = ctranslate2.Translator(
      folder, inter_threads=workers, intra_threads=threads, compute_type='float32'
    )
    self.options = dict(
      beam_size=beams,
      length_penalty=length_penalty,
      min_decoding_length=steps,
      max_decoding_length=steps,
    )

  @staticmethod
  def words(batches: list) -> list:
    """The sources as CTranslate2 reads them."""
    result = []
    for batch in batches:
      sources = []
      for tokens, mask in zip(batch['text'], batch['text_mask']):
        if mask.any():
          sources.append(list(map(str, tokens[mask])))
      result.append(sources)
    return result

  def __call__(self, batches: list) -> list:
    """Of `words`: tokens [n, steps] of the examples of each batch."""
    sources = list(itertools.chain.from_iterable(batches))
    sizes = list(map(len, batches))
    found = self.translator.translate_batch(
      sources, max_batch_size=max(sizes), batch_type='examples', **self.options
    )
    tokens = [list(map(int, result.hypotheses[0])) for result in found]
    if set(map(len, tokens)) != {self.options['max_decoding_length']}:
      raise SystemExit('CTranslate2 gave hypotheses of other lengths')
    return np.split(np.array(tokens), np.cumsum(sizes)[:-1])
