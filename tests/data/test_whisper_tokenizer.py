"""The tokenizer of Whisper: texts, times, languages and tasks."""

import json

import pytest
from whispers import END, FIRST_TIME, write_tokenizer

from mmlm.data.tokenizers.whisper_tokenizer import WhisperTokenizer
from mmlm.utils.errors import UserError


@pytest.mark.parametrize('separate', [False, True])
def test_texts_and_times_come_back(tmp_path, separate):
  write_tokenizer(tmp_path, separate)
  tokenizer = WhisperTokenizer.from_folder(tmp_path)
  text = '<|0.00|> the naïve ♪ <|en|> 漢字<|0.50|><|0.52|> a<|1.00|>'
  ids = tokenizer.encode(text)
  assert ids[0] == FIRST_TIME
  assert ids[-1] == FIRST_TIME + 50
  assert END + 2 not in ids  # <|en|> in a text is text
  assert tokenizer.decode(ids, with_timestamps=True) == text
  assert tokenizer.decode([END + 1, *ids, END]) == ' the naïve ♪ <|en|> 漢字 a'


def test_special_tokens_are_found_by_their_names(tmp_path):
  write_tokenizer(tmp_path)
  tokenizer = WhisperTokenizer.from_folder(tmp_path)
  assert tokenizer.languages == {'en': END + 2, 'de': END + 3, 'yue': END + 4}
  assert tokenizer.prompt('de', 'translate', True) == [END + 1, END + 3, END + 5]
  assert tokenizer.prompt('en', 'transcribe', False)[-1] == FIRST_TIME - 1
  assert tokenizer.blank_tokens == (*tokenizer.encode(' '), END)
  non_speech = set(tokenizer.non_speech_tokens)
  assert non_speech >= {END + 1, END + 9, *tokenizer.encode('(')}
  assert not non_speech & {*tokenizer.encode('the.,'), END, FIRST_TIME - 1}


def test_unknown_languages_and_tasks_are_refused(tmp_path):
  write_tokenizer(tmp_path)
  tokenizer = WhisperTokenizer.from_folder(tmp_path)
  assert tokenizer.language_code('German') == 'de'
  assert tokenizer.language_code('EN') == 'en'
  with pytest.raises(UserError, match="--language englisch: unknown. Nearest: 'english'"):
    tokenizer.language_code('englisch')
  with pytest.raises(UserError, match="--task translat: .* Nearest: 'translate'"):
    tokenizer.check_task('translat')


def test_an_english_only_model_has_no_other_language_and_no_translation(tmp_path):
  write_tokenizer(tmp_path)
  (tmp_path / 'generation_config.json').write_text('{"is_multilingual": false}')
  tokenizer = WhisperTokenizer.from_folder(tmp_path)
  assert tokenizer.prompt('en', 'transcribe', True) == [END + 1]
  assert tokenizer.languages == {}
  with pytest.raises(UserError, match='English only'):
    tokenizer.language_code('de')
  with pytest.raises(UserError, match='English only'):
    tokenizer.check_task('translate')


def test_a_file_that_is_no_tokenizer_of_whisper_is_named(tmp_path):
  (tmp_path / 'tokenizer.json').write_text(json.dumps({}))
  with pytest.raises(UserError, match='no tokenizer of a Whisper'):
    WhisperTokenizer.from_folder(tmp_path)
