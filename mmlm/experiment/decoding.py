"""How an experiment searches for its answers, and what else scores hypotheses beside the model."""

import dataclasses
from typing import Any

import numpy as np

from mmlm.data.tokenizers.special_tokens import SpecialTokens
from mmlm.decoding.ngram import begin_ngram, train_ngram
from mmlm.decoding.score_fusion import Fusion, FusionOptions, Scorer
from mmlm.decoding.search_options import SearchOptions
from mmlm.experiment.data import ExperimentData, ctc_labels_of
from mmlm.experiment.run import OpenRun
from mmlm.tasks.text_generation import begin_decoder
from mmlm.utils.errors import UserError

# Changes to config.decoding for greedy search by the model alone.
GREEDY = {
  'method': 'greedy',
  'n_best': 1,
  'temperature': 1.0,
  'top_k': 0,
  'top_p': 1.0,
  'ctc_weight': 0.0,
  'language_model_weight': 0.0,
  'ngram_weight': 0.0,
}


def check_decoding(config: Any) -> None:
  """Checks config.decoding without reading a tokenizer.

  Raises:
    UserError: a value that cannot be used.
  """
  search, _ = _decoding_fields(config, {})
  SearchOptions(**search)


def search_options(
  config: Any, special: SpecialTokens, changes: dict
) -> tuple[SearchOptions, FusionOptions]:
  """Returns how to search, and what with; `changes` override config.decoding."""
  fields, fusion = _decoding_fields(config, changes)
  search = SearchOptions(
    **fields, pad_id=special.pad_id, bos_id=special.bos_id, eos_ids=special.eos_ids
  )
  return search, fusion


def _decoding_fields(config: Any, changes: dict) -> tuple[dict, FusionOptions]:
  """Returns the fields of SearchOptions that a config has, and the options of score fusion."""
  decoding = config.decoding.to_dict() | changes
  decoding['max_length'] = decoding['max_length'] or config.data.max_length
  names = [field.name for field in dataclasses.fields(FusionOptions)]
  fusion = FusionOptions(**{name: decoding.pop(name) for name in names})
  head = config.model.head.name
  if fusion.ctc_weight and (head == 'ctc' or ctc_labels_of(config.model.head) != 'target'):
    raise UserError(
      f'decoding.ctc_weight={fusion.ctc_weight}: the head {head!r} has no CTC branch beside a '
      'decoder that has learned the targets.'
    )
  if head == 'ctc' and decoding['method'] == 'sample':
    raise UserError("decoding.method='sample': a CTC head alone is decoded by 'greedy' or 'beam'.")
  return decoding, fusion


def score_fusion(
  data: ExperimentData,
  search: SearchOptions,
  options: FusionOptions,
  open_run: OpenRun,
) -> Fusion:
  """Returns what scores hypotheses beside the model, ready to use.

  Args:
    open_run: (run folder, overrides of its config) -> its experiment.
  """
  scorers = []
  if options.ngram_weight:
    scorers.append(_ngram_scorer(data, search, options))
  if options.language_model_weight:
    scorers.append(_language_model_scorer(data, search, options, open_run))
  if scorers:
    return Fusion(options.ctc_weight, *zip(*scorers))
  return Fusion(options.ctc_weight)


def _ngram_scorer(
  data: ExperimentData, search: SearchOptions, options: FusionOptions
) -> tuple[Scorer, Any]:
  """Returns an n-gram model of the training targets."""
  source = data.source(*data.splits('train'))
  targets = data.task.table(source, *data.texts).targets
  assert data.tokenizer is not None
  model = train_ngram(targets, options.ngram, data.tokenizer.vocab_size, search)
  return Scorer(options.ngram_weight, begin_ngram), model


def _language_model_scorer(
  data: ExperimentData,
  search: SearchOptions,
  options: FusionOptions,
  open_run: OpenRun,
) -> tuple[Scorer, Any]:
  """Returns the language model of a run folder."""
  parallel = {f'parallel.{key}': str(value) for key, value in data.config.parallel.items()}
  run = open_run(options.language_model, parallel)
  _check_language_model(data, search, run, options.language_model)

  def begin(params: Any, examples: int, options: SearchOptions) -> Any:
    return begin_decoder(run.model, params, None, examples, options)

  no_inputs = {'weight': np.ones(1, np.float32)}
  shapes = run.abstract_params(no_inputs)
  params, _ = run.trained_params(shapes)
  return Scorer(options.language_model_weight, begin), run.weights(params)


def _check_language_model(data: ExperimentData, search: SearchOptions, run: Any, name: str) -> None:
  """Raises UserError where a language model cannot score the hypotheses of an experiment."""
  key = f'decoding.language_model={name}'
  assert data.tokenizer is not None
  if not run.task.continues_text(run.modalities):
    raise UserError(
      f'{key}: its task is {run.config.task} and it reads {", ".join(run.modalities)}: '
      'expected a model without encoders.'
    )
  if run.data.tokenizer.fingerprint != data.tokenizer.fingerprint:
    raise UserError(
      f'{key}: it has another vocabulary. Train it with tokenizer.kind=run '
      f'tokenizer.source={data.folder}, which takes over the tokenizer of this run.'
    )
  if not run.config.data.ends:
    raise UserError(
      f'{key}: it has not learned where texts end (data.ends=False), so hypotheses would never end.'
    )
  if run.config.data.max_length <= search.max_length:
    raise UserError(
      f'{key}: it reads less than {run.config.data.max_length} tokens, and '
      f'decoding.max_length={search.max_length}.'
    )
