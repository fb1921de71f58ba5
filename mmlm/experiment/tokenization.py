"""The tokenizer of a run: read from its folder, taken from elsewhere, or trained."""

import pathlib
from collections.abc import Callable
from typing import Any

from mmlm.data.text import words
from mmlm.data.tokenizers.tokenizer import Tokenizer
from mmlm.data.tokenizers.train_tokenizer import train_tokenizer, usual_casing
from mmlm.pretrained import tokenizer_loaders
from mmlm.utils.errors import UserError


def tokenizer_of_run(run: str) -> Tokenizer:
  """Loads the tokenizer of another run folder."""
  path = pathlib.Path(run) / 'tokenizer.json'
  if not path.is_file():
    raise UserError(
      f"tokenizer.source={run!r}: with tokenizer.kind='run' it is the folder of a run with a "
      'tokenizer.json.'
    )
  return Tokenizer.load(path)


def load_or_train_tokenizer(
  config: Any, folder: pathlib.Path, task: Any, open_train: Callable[[], Any]
) -> Tokenizer | None:
  """Returns the tokenizer of a run folder, which is written there first if it has none.

  Args:
    open_train: opens the training split, whose texts a new tokenizer is trained on.

  Returns:
    None for tokenizer.kind='none'.
  """
  options = config.tokenizer
  if options.kind == 'none':
    return None
  path = folder / 'tokenizer.json'
  if not path.exists():
    # Kinds that are not trained.
    loaders = tokenizer_loaders() | {'run': tokenizer_of_run}
    if options.kind in loaders:
      tokenizer = loaders[options.kind](options.source)
    else:
      tokenizer = _train(config, task.texts_to_learn(open_train()))
    tokenizer.save(path)
  return Tokenizer.load(path)


def _train(config: Any, texts: dict[str, list[str]]) -> Tokenizer:
  """Trains a tokenizer on the texts of inputs ('text') and answers ('target')."""
  languages = config.data.languages
  split_texts = {}
  for side in texts:
    split_texts[side] = [words(text, languages[side]) for text in texts[side]]
  casing = {}
  if config.tokenizer.lowercase and languages.target:
    casing = usual_casing(split_texts['target'])
  options = config.tokenizer.to_dict()
  del options['source']
  return train_tokenizer([*split_texts['text'], *split_texts['target']], **options, casing=casing)
