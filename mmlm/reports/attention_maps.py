"""What the model says again of the examples that a page shows: its n best answers, and what of the input each word was written from.

Axes: B batch, H heads, T tokens written, S places of the memory or of the input.
"""

import base64
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from mmlm.data.transforms.ops import apply_ops, parse_ops
from mmlm.decoding.score_fusion import NO_FUSION
from mmlm.inference.predictor import Predictor
from mmlm.models.fusion import FUSIONS
from mmlm.reports.speech_view import words_of

N_BEST = 5


@dataclass(frozen=True)
class Looking:
  """A task of text whose answers also tell where the decoder looked; `kept`: modalities that have places in the memory (`Fusion.keeps_positions`).

  A row gets 'look': {'words': what was written, for each modality [words, S], 'read': the words that stand for S of 'text', and 'shares', what each
  modality has of the attention of a word, where several are in the memory}.
  """

  task: object
  inputs: object  # Texts of what is read
  kept: tuple

  def answer(self, model, params, batch, options, rng, fusion=NO_FUSION) -> dict:
    found = self.task.answer(model, params, batch, options, rng, fusion)
    looked = where_it_looks(model, params, batch, found['tokens'][:, 0], self.kept)
    return found | looked | ({'source': batch['text']} if 'look_text' in looked else {})

  def read(self, found: dict, outputs) -> list[dict]:
    (row,) = self.task.read(found, outputs)
    written = _whole_words(outputs, found['tokens'][0])
    look = {'words': [text for text, *_ in written], 'shares': {}}
    for key in [key for key in found if key.startswith('look_')]:
      modality = key.removeprefix('look_')
      weights = np.asarray(found[key], np.float64)[
        :, np.asarray(found[f'there_{modality}'])
      ]  # [T, S]
      weights = np.stack(
        [weights[first : last + 1].mean(0) for _, first, last in written] or [weights[0]]
      )
      if len(self.kept) > 1 and modality in self.kept:
        look['shares'][modality] = weights.sum(1)
      if modality == 'text':
        read = _whole_words(self.inputs, found['source'])
        look['read'] = [text for text, *_ in read]
        weights = np.stack(
          [weights[:, first : last + 1].sum(1) for _, first, last in read] or [weights[:, 0]], 1
        )
      look[modality] = weights
    return [row | ({'look': look} if written and len(look) > 2 else {})]


def _whole_words(texts, tokens) -> list[tuple[str, int, int]]:
  """(word, its first token, its last) up to the end of a text."""
  tokens = [int(token) for token in tokens]
  special = (texts.tokenizer.pad_id, *texts.tokenizer.eos_ids)
  ends = [i for i, token in enumerate(tokens) if token in special]
  pieces = texts.decode_pieces(tokens[: ends[0]] if ends else tokens)
  return words_of([[piece, i, i] for i, piece in enumerate(pieces)])


def where_it_looks(model, params, batch, tokens, kept: tuple) -> dict:
  """{'look_<modality>' [B, T, S], 'there_<modality>' [B, S]}: attention to the memory as `tokens` [B, T] are written, mean over layers and heads.

  A 'selective' fusion has no places of the others, but attends to them from those of the main modality: both are followed.
  """
  inputs = jnp.concatenate(
    [jnp.full_like(tokens[:, :1], model.special_tokens.bos_id), tokens[:, :-1]],
    1,
  )
  encoders = {(f'encoders_{modality}',): modality for modality in model.encoders}

  def is_encoder(module, method):
    return module.path in encoders and method == '__call__'

  _, made = model.apply(
    {'params': params}, batch, inputs, mutable=['intermediates'], capture_intermediates=is_encoder
  )
  made = made['intermediates']
  looked = jnp.stack(_weights(made.get('head', {}))).mean(0)  # [B, T, S]
  found = {}
  start = 0
  for modality in kept:
    ((_, there),) = made[f'encoders_{modality}']['__call__']
    found |= {
      f'look_{modality}': looked[..., start : start + there.shape[1]],
      f'there_{modality}': there,
    }
    start += there.shape[1]
  for name, part in made.get('fusion', {}).items():
    modality = name.removesuffix('_attention')
    if modality in model.encoders and modality not in kept:
      ((_, there),) = made[f'encoders_{modality}']['__call__']
      through = jnp.einsum('bts,bsu->btu', found[f'look_{kept[0]}'], _weights(part)[0])
      found |= {f'look_{modality}': through, f'there_{modality}': there}
  return found


def _weights(tree) -> list:
  """[B, T, S] of each layer, mean over heads, of the weights that stand in a tree of intermediates."""
  found = []
  for name, part in tree.items():
    if name != 'weights':
      found += _weights(part)
    elif part[0].ndim == 5:  # of layers that were scanned [B, L, H, T, S]
      found += list(jnp.moveaxis(part[0].mean(2), 1, 0))
    else:  # [B, H, T, S]
      found.append(part[0].mean(1))
  return found


class CloserLook:
  """The checkpoint of a run, which is asked again about raw examples."""

  def __init__(self, experiment, method: str = ''):
    """`method`: of decoding, where it is not the config's."""
    self.ops = experiment.config.data.eval_ops
    changes = {'method': method} if method else {}
    options, _ = experiment.search_options(**changes)
    if options.method == 'beam':
      changes['n_best'] = max(options.n_best, min(N_BEST, options.beam_size))
    self.predictor = Predictor(experiment, looking_evaluator(experiment, **changes))

  @property
  def step(self) -> int:
    """Of the checkpoint, once it was asked."""
    return self.predictor.step

  def __call__(self, examples: list[dict]) -> dict:
    """{id: {'hypothesis', 'n_best': [(text, score)], 'look'}}, of these what the run can give.

    'look' has 'words', and for each of 'text', 'image', 'audio' that the decoder attends to the 'values' of each word, bytes in base64 with 255 for
    the most of that word, and its 'shares' of the attention where there are several; with 'text' the words 'read', with 'image' the 'picture' [H, W, C] as the model sees it and the 'rows' and 'columns' of
    its places.
    """
    found = {}
    for example, row in zip(
      examples, self.predictor(examples, 'the examples of the report'), strict=True
    ):
      look = _told(row.pop('look', {}), example, self.ops)
      found[row['id']] = {'hypothesis': row['hypothesis'], 'n_best': row.get('n_best', [])} | (
        {'look': look} if look else {}
      )
    return found


def looking_evaluator(experiment, align: bool = False, **changes):
  """`Experiment.evaluator` whose rows also have 'look' (`Looking`), where there is a decoder and its memory has places of the input."""
  fusion = experiment.config.model.fusion
  kept = FUSIONS[fusion.name].keeps_positions(experiment.modalities, fusion.get('main', ''))
  decodes = experiment.task.writes_text and experiment.model.head.decodes
  if kept and decodes:

    def around(task):
      return Looking(task, experiment.data.texts.inputs, tuple(kept))
  else:
    around = None
  return experiment.evaluator(align, around, **changes)


def _told(look: dict, example: dict, ops: tuple) -> dict:
  """What stands in the page of the places that a decoder looked at."""
  told = {}
  for modality in look.keys() & {'text', 'image', 'audio'}:
    told[modality] = {'values': [_bytes(row) for row in look[modality]]}
    if modality in look['shares']:
      told[modality]['shares'] = [round(float(share), 3) for share in look['shares'][modality]]
  if 'text' in told:
    told['text']['read'] = look['read']
  if 'image' in told:
    picture = picture_seen(example, ops)
    if picture is None:
      del told['image']
    else:
      rows, columns = grid_of(look['image'].shape[1], *picture.shape[:2])
      told['image'] |= {'picture': picture, 'rows': rows, 'columns': columns}
  if told:
    return {'words': look['words']} | told
  return {}


def picture_seen(example: dict, ops: tuple):
  """The picture of a raw example as the model sees it, uint8 [H, W, C]; None where it has none."""
  return apply_ops(
    parse_ops(op for op in ops if not op.startswith('normalize')),
    {**example},
    np.random.default_rng(0),
  ).get('image')


def _bytes(values) -> str:
  """[S] from 0 on -> a byte each, 255 for the largest."""
  scaled = np.round(
    255
    * values
    / max(
      float(values.max(initial=0)),
      1e-12,
    )
  ).astype(np.uint8)
  return base64.b64encode(scaled.tobytes()).decode()


def grid_of(places: int, height: int, width: int) -> tuple[int, int]:
  """(rows, columns) of `places` that have most nearly the shape of a picture."""
  pairs = [(rows, places // rows) for rows in range(1, places + 1) if places % rows == 0]
  return min(
    pairs,
    key=lambda pair: abs(np.log(pair[0] / pair[1]) - np.log(height / width)),
  )
