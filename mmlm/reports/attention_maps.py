"""Decodes examples of a report again: n-best answers, and the decoder's attention to the inputs.

Axes: B batch, L layers, H heads, T tokens written, W words written, S positions of the memory or of
one modality.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmlm.data.text import Texts
from mmlm.data.transforms.ops import apply_ops, parse_ops
from mmlm.decoding.score_fusion import NO_FUSION, Fusion
from mmlm.decoding.search_options import SearchOptions
from mmlm.evaluation.evaluator import Evaluator
from mmlm.experiment.experiment import Experiment
from mmlm.inference.predictor import Predictor
from mmlm.models.apply import apply
from mmlm.models.fusion import FUSIONS
from mmlm.models.multimodal import MultimodalModel
from mmlm.reports.speech_view import words_of
from mmlm.tasks.base import Batch, Task

N_BEST = 5
SHOWN = ('text', 'image', 'audio')  # modalities whose attention a page can show


@dataclass(frozen=True)
class WithAttention(Task):
  """A task that writes text; its predictions also hold the attention of the decoder.

  A prediction has 'attention': {'words' that were written, for each modality [W, S], 'read_words'
  (those of the text that S counts), 'shares' {modality: [W]} of the attention to a word, if several
  modalities are in the memory}.

  Attributes:
    inputs: decodes the texts that are read.
    positioned: modalities that keep positions in the memory (`Fusion.keeps_positions`).
  """

  task: Task
  inputs: Texts
  positioned: tuple[str, ...]

  def answer(
    self,
    model: MultimodalModel,
    params: dict,
    batch: Batch,
    options: SearchOptions,
    rng: jax.Array,
    fusion: Fusion = NO_FUSION,
  ) -> dict[str, jax.Array]:
    """Returns the answers of the task and the arrays of `decoder_attention`."""
    answer = self.task.answer(model, params, batch, options, rng, fusion)
    tokens = answer['tokens'][:, 0]
    attention = decoder_attention(model, params, batch, tokens, self.positioned)
    answer = answer | attention
    if 'attention_text' in attention:
      answer['source'] = batch['text']
    return answer

  def read(self, answer: dict, outputs: Texts) -> list[dict]:
    """Returns the prediction of the task, with its 'attention' if anything was written."""
    (prediction,) = self.task.read(answer, outputs)
    words = _whole_words(outputs, answer['tokens'][0])
    attention: dict[str, Any] = {'words': [text for text, _, _ in words], 'shares': {}}
    for key in answer:
      if not words or not key.startswith('attention_'):
        continue
      modality = key.removeprefix('attention_')
      mask = np.asarray(answer[f'mask_{modality}'])
      of_tokens = np.asarray(answer[key], np.float64)[:, mask]  # [T, S]
      of_words = [of_tokens[first : last + 1].mean(0) for _, first, last in words]
      weights = np.stack(of_words)  # [W, S]
      if len(self.positioned) > 1 and modality in self.positioned:
        attention['shares'][modality] = weights.sum(1)
      if modality == 'text':
        attention['read_words'], weights = self._by_read_word(answer['source'], weights)
      attention[modality] = weights
    if len(attention) > 2:
      prediction['attention'] = attention
    return [prediction]

  def _by_read_word(self, source: Any, weights: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Returns the words of the text that was read, and the attention summed over their tokens."""
    words = _whole_words(self.inputs, source)
    if not words:
      return [], weights[:, :1]
    summed = [weights[:, first : last + 1].sum(1) for _, first, last in words]
    return [text for text, _, _ in words], np.stack(summed, 1)


def _whole_words(texts: Texts, tokens: Any) -> list[tuple[str, int, int]]:
  """Returns (word, its first token, its last) up to the end of a text."""
  special = (texts.tokenizer.pad_id, *texts.tokenizer.eos_ids)
  before_end = []
  for token in tokens:
    if int(token) in special:
      break
    before_end.append(int(token))
  pieces = texts.decode_pieces(before_end)
  return words_of([[piece, i, i] for i, piece in enumerate(pieces)])


def decoder_attention(
  model: MultimodalModel,
  params: dict,
  batch: Batch,
  tokens: jax.Array,
  positioned: tuple[str, ...],
) -> dict[str, jax.Array]:
  """Returns the attention to the memory while tokens [B, T] are written, mean over layers and heads.

  A 'selective' fusion keeps no positions of the modalities other than the main one, but attends to
  them from those of the main one: both are followed.

  Returns:
    {'attention_<modality>' [B, T, S], 'mask_<modality>' [B, S]}.
  """
  start = jnp.full_like(tokens[:, :1], model.special_tokens.bos_id)
  inputs = jnp.concatenate([start, tokens[:, :-1]], 1)
  paths = {(f'encoders_{modality}',) for modality in model.encoders}

  def is_encoder(module: Any, method: str) -> bool:
    return module.path in paths and method == '__call__'

  _, updated = apply(
    model,
    params,
    batch,
    inputs,
    mutable=['intermediates'],
    capture_intermediates=is_encoder,
  )
  intermediates = updated['intermediates']
  to_memory = jnp.stack(attention_weights_of(intermediates.get('head', {}))).mean(0)  # [B, T, S]
  result = {}
  first = 0
  for modality in positioned:
    mask = _encoder_mask(intermediates, modality)
    result[f'attention_{modality}'] = to_memory[..., first : first + mask.shape[1]]
    result[f'mask_{modality}'] = mask
    first += mask.shape[1]
  for name, part in intermediates.get('fusion', {}).items():
    modality = name.removesuffix('_attention')
    if modality in model.encoders and modality not in positioned:
      to_main = result[f'attention_{positioned[0]}']
      from_main = attention_weights_of(part)[0]
      result[f'attention_{modality}'] = jnp.einsum('bts,bsu->btu', to_main, from_main)
      result[f'mask_{modality}'] = _encoder_mask(intermediates, modality)
  return result


def _encoder_mask(intermediates: dict, modality: str) -> jax.Array:
  """Returns the mask [B, S] of the output of an encoder."""
  ((_, mask),) = intermediates[f'encoders_{modality}']['__call__']
  return mask


def attention_weights_of(tree: dict) -> list[jax.Array]:
  """Returns the attention weights [B, T, S] of each layer in a tree of intermediates, mean over H."""
  layers = []
  for name, part in tree.items():
    if name != 'weights':
      layers += attention_weights_of(part)
    elif part[0].ndim == 5:  # scanned layers [B, L, H, T, S]
      layers += list(jnp.moveaxis(part[0].mean(2), 1, 0))
    else:  # [B, H, T, S]
      layers.append(part[0].mean(1))
  return layers


class AttentionReader:
  """Decodes raw examples with the checkpoint of a run, and reads the attention of the decoder.

  Args:
    method: of decoding; '' for the config's.
  """

  def __init__(self, experiment: Experiment, method: str = ''):
    self.eval_ops = experiment.config.data.eval_ops
    changes: dict[str, Any] = {}
    if method:
      changes['method'] = method
    options, _ = experiment.search_options(**changes)
    if options.method == 'beam':
      changes['n_best'] = max(options.n_best, min(N_BEST, options.beam_size))
    self.predictor = Predictor(experiment, attention_evaluator(experiment, **changes))

  @property
  def step(self) -> int:
    """The step of the checkpoint; -1 before anything was decoded."""
    return self.predictor.step

  def __call__(self, examples: list[dict]) -> dict[str, dict]:
    """Returns {id: {'hypothesis', 'n_best': [(text, score)], 'attention' if there is any}}.

    'attention' holds the 'words' and, for each of `SHOWN` that the decoder attends to, the 'values'
    of each word, bytes in base64 with 255 for the highest of that word; and the 'shares' of the
    attention if several modalities have some. 'text' also holds the words 'read', 'image' the
    'picture' [H, W, C] as the model reads it and the 'rows' and 'columns' of its positions.
    """
    predictions = self.predictor(examples, 'the examples of the report')
    result = {}
    for example, prediction in zip(examples, predictions, strict=True):
      entry = {
        'hypothesis': prediction['hypothesis'],
        'n_best': prediction.get('n_best', []),
      }
      attention = _for_page(prediction.get('attention', {}), example, self.eval_ops)
      if attention:
        entry['attention'] = attention
      result[prediction['id']] = entry
    return result


def attention_evaluator(experiment: Experiment, align: bool = False, **changes: Any) -> Evaluator:
  """Returns the evaluator of an experiment, whose predictions also hold the attention if they can.

  They can if there is a decoder and its memory keeps positions of the inputs.

  Args:
    align: align the texts with the sound, by CTC.
    changes: of the config's decoding.
  """
  fusion = experiment.config.model.fusion
  positioned = FUSIONS[fusion.name].keeps_positions(experiment.modalities, fusion.get('main', ''))
  decodes = experiment.task.writes_text and experiment.model.head.decodes

  def with_attention(task: Task) -> Task:
    return WithAttention(task, experiment.data.texts.inputs, tuple(positioned))

  if positioned and decodes:
    return experiment.evaluator(align, with_attention, **changes)
  return experiment.evaluator(align, **changes)


def _for_page(attention: dict, example: dict, eval_ops: Sequence[str]) -> dict:
  """Returns attention as the page reads it; {} if there is none that it can show."""
  result = {}
  for modality in SHOWN:
    if modality not in attention:
      continue
    part: dict[str, Any] = {'values': [_as_bytes(weights) for weights in attention[modality]]}
    if modality in attention['shares']:
      shares = attention['shares'][modality]
      part['shares'] = [round(float(share), 3) for share in shares]
    result[modality] = part
  if 'text' in result:
    result['text']['read'] = attention['read_words']
  if 'image' in result:
    picture = model_picture(example, eval_ops)
    if picture is None:
      del result['image']
    else:
      rows, columns = grid_of(attention['image'].shape[1], *picture.shape[:2])
      result['image'] |= {'picture': picture, 'rows': rows, 'columns': columns}
  if not result:
    return {}
  return {'words': attention['words']} | result


def model_picture(example: dict, eval_ops: Sequence[str]) -> np.ndarray | None:
  """Returns the picture of a raw example as the model reads it, uint8 [H, W, C]; None without one."""
  ops = parse_ops(op for op in eval_ops if not op.startswith('normalize'))
  return apply_ops(ops, {**example}, np.random.default_rng(0)).get('image')


def _as_bytes(values: np.ndarray) -> str:
  """Encodes values [S] from 0 on as a byte each, 255 for the largest, in base64."""
  largest = max(float(values.max(initial=0)), 1e-12)
  scaled = np.round(255 * values / largest).astype(np.uint8)
  return base64.b64encode(scaled.tobytes()).decode()


def grid_of(positions: int, height: int, width: int) -> tuple[int, int]:
  """Returns (rows, columns) of a grid whose shape is nearest to that of a picture."""
  pairs = []
  for rows in range(1, positions + 1):
    if positions % rows == 0:
      pairs.append((rows, positions // rows))

  def distance(pair: tuple[int, int]) -> float:
    rows, columns = pair
    return abs(np.log(rows / columns) - np.log(height / width))

  return min(pairs, key=distance)
