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
from mmlm.reports.speech_view import Word, words_of
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
    if not words:
      return [prediction]
    attention: dict[str, Any] = {}
    shares = {}
    has_several = len(self.positioned) > 1
    for key in answer:
      if not key.startswith('attention_'):
        continue
      modality = key.removeprefix('attention_')
      mask = np.asarray(answer[f'mask_{modality}'])
      of_tokens = np.asarray(answer[key], np.float64)
      weights = _mean_by_word(of_tokens[:, mask], words)
      if has_several and modality in self.positioned:
        shares[modality] = weights.sum(1)
      if modality == 'text':
        read_words, weights = self._by_read_word(answer['source'], weights)
        attention['read_words'] = read_words
      attention[modality] = weights
    if attention:
      attention['words'] = _texts_of(words)
      attention['shares'] = shares
      prediction['attention'] = attention
    return [prediction]

  def _by_read_word(self, source: Any, weights: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Returns the words of the text that was read, and the attention summed over their tokens."""
    words = _whole_words(self.inputs, source)
    if not words:
      return [], weights[:, :1]
    sums = []
    for _, first, last in words:
      of_word = weights[:, first : last + 1]
      sums.append(of_word.sum(1))
    return _texts_of(words), np.stack(sums, 1)


def _texts_of(words: list[Word]) -> list[str]:
  return [text for text, _, _ in words]


def _mean_by_word(of_tokens: np.ndarray, words: list[Word]) -> np.ndarray:
  """Averages values [T, S] of tokens over the tokens of each word, [W, S]."""
  means = []
  for _, first, last in words:
    of_word = of_tokens[first : last + 1]
    means.append(of_word.mean(0))
  return np.stack(means)


def _whole_words(texts: Texts, tokens: Any) -> list[Word]:
  """Returns (word, its first token, its last) up to the end of a text."""
  tokenizer = texts.tokenizer
  special = (tokenizer.pad_id, *tokenizer.eos_ids)
  before_end = []
  for value in tokens:
    token = int(value)
    if token in special:
      break
    before_end.append(token)
  pieces = []
  for number, text in enumerate(texts.decode_pieces(before_end)):
    pieces.append([text, number, number])
  return words_of(pieces)


def decoder_attention(
  model: MultimodalModel,
  params: dict,
  batch: Batch,
  tokens: jax.Array,
  positioned: tuple[str, ...],
) -> dict[str, jax.Array]:
  """Returns the attention to the memory while tokens [B, T] are written, mean over layers, heads.

  A 'selective' fusion keeps no positions of the modalities other than the main one, but attends to
  them from those of the main one: both are followed.

  Returns:
    {'attention_<modality>' [B, T, S], 'mask_<modality>' [B, S]}.
  """
  intermediates = _intermediates(model, params, batch, tokens)
  of_layers = attention_weights_of(intermediates.get('head', {}))
  to_memory = jnp.stack(of_layers).mean(0)  # [B, T, S]
  result = {}
  first = 0
  for modality in positioned:
    mask = _encoder_mask(intermediates, modality)
    end = first + mask.shape[1]
    result[f'attention_{modality}'] = to_memory[..., first:end]
    result[f'mask_{modality}'] = mask
    first = end
  for name, part in intermediates.get('fusion', {}).items():
    modality = name.removesuffix('_attention')
    if modality not in model.encoders or modality in positioned:
      continue
    to_main = result[f'attention_{positioned[0]}']
    from_main = attention_weights_of(part)[0]
    followed = jnp.einsum('bts,bsu->btu', to_main, from_main)
    result[f'attention_{modality}'] = followed
    result[f'mask_{modality}'] = _encoder_mask(intermediates, modality)
  return result


def _intermediates(
  model: MultimodalModel,
  params: dict,
  batch: Batch,
  tokens: jax.Array,
) -> dict:
  """Returns attention and outputs of encoders while tokens [B, T] are written, by module."""
  bos_id = model.special_tokens.bos_id
  start = jnp.full_like(tokens[:, :1], bos_id)
  previous = tokens[:, :-1]
  inputs = jnp.concatenate([start, previous], 1)
  encoder_names = [f'encoders_{modality}' for modality in model.encoders]

  def is_encoder(module: Any, method: str) -> bool:
    if method != '__call__' or len(module.path) != 1:
      return False
    return module.path[0] in encoder_names

  _, updated = apply(
    model,
    params,
    batch,
    inputs,
    mutable=['intermediates'],
    capture_intermediates=is_encoder,
  )
  return updated['intermediates']


def _encoder_mask(intermediates: dict, modality: str) -> jax.Array:
  """Returns the mask [B, S] of the output of an encoder."""
  ((_, mask),) = intermediates[f'encoders_{modality}']['__call__']
  return mask


def attention_weights_of(tree: dict) -> list[jax.Array]:
  """Returns the attention weights [B, T, S] of each layer in a tree, mean over H."""
  layers = []
  for name, part in tree.items():
    if name != 'weights':
      layers += attention_weights_of(part)
      continue
    weights = part[0]
    if weights.ndim == 5:  # scanned layers [B, L, H, T, S]
      means = weights.mean(2)
      layers += list(jnp.moveaxis(means, 1, 0))
    else:  # [B, H, T, S]
      layers.append(weights.mean(1))
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
      most = min(N_BEST, options.beam_size)
      changes['n_best'] = max(options.n_best, most)
    evaluator = attention_evaluator(experiment, **changes)
    self.predictor = Predictor(experiment, evaluator)

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
      if 'attention' in prediction:
        attention = _for_page(prediction['attention'], example, self.eval_ops)
        if attention:
          entry['attention'] = attention
      result[prediction['id']] = entry
    return result


def attention_evaluator(
  experiment: Experiment,
  align: bool = False,
  **changes: Any,
) -> Evaluator:
  """Returns the evaluator of an experiment, whose predictions also hold the attention if they can.

  They can if there is a decoder and its memory keeps positions of the inputs.

  Args:
    align: align the texts with the sound, by CTC.
    changes: of the config's decoding.
  """
  options = experiment.config.model.fusion
  fusion = FUSIONS[options.name]
  main = options.get('main', '')
  positioned = fusion.keeps_positions(experiment.modalities, main)
  decodes = experiment.task.writes_text and experiment.model.head.decodes

  def with_attention(task: Task) -> Task:
    inputs = experiment.data.texts.inputs
    return WithAttention(task, inputs, tuple(positioned))

  if positioned and decodes:
    return experiment.evaluator(align, with_attention, **changes)
  return experiment.evaluator(align, **changes)


def _for_page(attention: dict, example: dict, eval_ops: Sequence[str]) -> dict:
  """Returns attention as the page reads it; {} if there is none that it can show."""
  result = {}
  for modality in SHOWN:
    if modality not in attention:
      continue
    values = []
    for weights in attention[modality]:
      values.append(_as_bytes(weights))
    part: dict[str, Any] = {'values': values}
    if modality in attention['shares']:
      shares = []
      for share in attention['shares'][modality]:
        shares.append(round(float(share), 3))
      part['shares'] = shares
    result[modality] = part
  if 'text' in result:
    result['text']['read'] = attention['read_words']
  if 'image' in result:
    picture = model_picture(example, eval_ops)
    if picture is None:
      del result['image']
    else:
      positions = attention['image'].shape[1]
      height, width = picture.shape[:2]
      rows, columns = grid_of(positions, height, width)
      result['image'] |= {
        'picture': picture,
        'rows': rows,
        'columns': columns,
      }
  if not result:
    return {}
  return {'words': attention['words']} | result


def model_picture(example: dict, eval_ops: Sequence[str]) -> np.ndarray | None:
  """Returns the picture of a raw example as the model reads it, uint8 [H, W, C], or None."""
  names = []
  for name in eval_ops:
    if not name.startswith('normalize'):
      names.append(name)
  ops = parse_ops(names)
  unused_rng = np.random.default_rng(0)
  as_read = apply_ops(ops, {**example}, unused_rng)
  return as_read.get('image')


def _as_bytes(values: np.ndarray) -> str:
  """Encodes values [S] from 0 on as a byte each, 255 for the largest, in base64."""
  largest = max(float(values.max(initial=0)), 1e-12)
  scaled = np.round(255 * values / largest)
  content = scaled.astype(np.uint8).tobytes()
  return base64.b64encode(content).decode()


def grid_of(positions: int, height: int, width: int) -> tuple[int, int]:
  """Returns (rows, columns) of a grid whose shape is nearest to that of a picture."""
  pairs = []
  for rows in range(1, positions + 1):
    columns, rest = divmod(positions, rows)
    if rest == 0:
      pairs.append((rows, columns))
  log_ratio = np.log(height / width)

  def distance(pair: tuple[int, int]) -> float:
    rows, columns = pair
    return abs(np.log(rows / columns) - log_ratio)

  return min(pairs, key=distance)
