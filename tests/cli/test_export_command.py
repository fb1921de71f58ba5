"""`export`: which formats go with which run. What is written: tests/inference/test_export.py."""

import pytest
from program import refused

from mmlm.config import load_config
from mmlm.utils import run_dir

CAPTIONS = 'configs/captioning/unicode_pictures.py:smoke'
WORD_VECTORS = 'configs/word_vectors/skipgram.py:smoke,text=text.txt'
LANGUAGE = 'configs/language_model/text.py:smoke,text=text.txt'


@pytest.mark.parametrize(
  'config, words, message',
  [
    (CAPTIONS, ['--format=huggingface'], 'Formats that do: safetensors, stablehlo.'),
    (CAPTIONS, ['--format=glove', '--output=x'], 'Formats that do: safetensors, stablehlo.'),
    (CAPTIONS, ['--format=gguf'], "--format: no 'gguf'"),
    (CAPTIONS, ['--format=safetensors', '--platforms=tpu'], 'goes with --format stablehlo'),
    (LANGUAGE, ['--format=huggingface,stablehlo', '--output=x'], 'choose one'),
    (LANGUAGE, ['--format=huggingface'], '--format huggingface needs --output'),
    (WORD_VECTORS, [], 'word2vec, word2vec_binary, glove, fasttext.'),
    (WORD_VECTORS, ['--format=glove'], '--format glove needs --output'),
  ],
)
def test_a_format_that_does_not_go_with_the_run_or_its_flags_is_refused(
  tmp_path, config, words, message
):
  run_dir.write_json(tmp_path / 'config.json', load_config(config).to_dict())
  assert message in refused('export', tmp_path, *words)
  assert [path.name for path in tmp_path.iterdir()] == ['config.json']


def test_a_folder_that_is_no_run_is_refused(tmp_path):
  assert 'not a run folder' in refused('export', tmp_path)
