# The other software is installed only for the comparison.
# pyright: reportMissingImports=false
"""Runs one peer of whisper.py in its own process.

`peer_whisper.py SIDE FOLDER SETTINGS`, then a question a line, an answer a line.

First comes a line with the versions of what it uses. A question is {"path": an .npz of windows,
"prompts": their prompts}, the answer the tokens of each window, without the end. It imports nothing
of mmlm but the log-mel spectrogram, which CTranslate2 has none of. Axes: N windows, S frames, M mel
bands.
"""

import json
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import numpy as np  # noqa: E402

WINDOW = 480000  # samples


def frames_of(samples: np.ndarray) -> np.ndarray:
  from mmlm.data.transforms.audio import log_mel_spectrogram

  return log_mel_spectrogram(np.pad(samples, (0, WINDOW - len(samples))))


class CTranslate2:
  """Features [S, M] of windows, or their samples -> tokens; `together` windows at a time."""

  def __init__(self, folder: str, settings: dict, samples: bool, together: int = 1):
    import ctranslate2

    self.view = ctranslate2.StorageView.from_array
    self.model = ctranslate2.models.Whisper(
      folder, compute_type='float32', intra_threads=os.cpu_count()
    )
    self.settings = settings
    self.samples = samples
    self.together = together

  def __call__(self, windows: list, prompts: list) -> list:
    found = []
    for i in range(0, len(windows), self.together):
      some = windows[i : i + self.together]
      if self.samples:
        some = list(map(frames_of, some))
      features = np.stack(some)  # [N, S, M]
      answers = self.model.generate(
        self.view(np.ascontiguousarray(features.swapaxes(1, 2))),
        prompts[i : i + self.together],
        beam_size=1,
        suppress_blank=True,
        suppress_tokens=[-1],
        max_initial_timestamp_index=50,
        max_length=self.settings['max_tokens'] * 2,
      )
      found += [answer.sequences_ids[0] for answer in answers]
    return found


class FasterWhisper:
  """Transcribes windows one at a time, as its users call it, without further temperatures."""

  def __init__(self, folder: str, settings: dict, compute_type: str):
    import faster_whisper

    self.model = faster_whisper.WhisperModel(
      folder, device='cpu', compute_type=compute_type, cpu_threads=os.cpu_count()
    )

  def __call__(self, windows: list, prompts: list) -> list:
    options = dict(
      language='en',
      beam_size=1,
      temperature=0.0,
      condition_on_previous_text=False,
      vad_filter=False,
    )
    result = []
    for window in windows:
      segments, _ = self.model.transcribe(window, **options)
      tokens = []
      for segment in segments:
        tokens += segment.tokens
      result.append(tokens)
    return result


class Transformers:
  """Transcribes windows one at a time by `generate`, with its rules of timestamps."""

  def __init__(self, folder: str, settings: dict):
    import torch
    from transformers import (
      GenerationConfig,
      WhisperFeatureExtractor,
      WhisperForConditionalGeneration,
      logging,
    )

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(os.cpu_count())
    self.torch = torch
    self.extract = WhisperFeatureExtractor()
    self.model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    self.settings = settings
    end = settings['end']
    first_time = settings['first_time']
    self.model.generation_config = GenerationConfig(
      eos_token_id=end,
      pad_token_id=end,
      decoder_start_token_id=end + 1,
      no_timestamps_token_id=first_time - 1,
      suppress_tokens=settings['never'],
      begin_suppress_tokens=settings['not_first'],
      max_initial_timestamp_index=50,
      is_multilingual=not settings['english_only'],
      return_timestamps=True,
      max_new_tokens=settings['max_tokens'],
    )

  def __call__(self, windows: list, prompts: list) -> list:
    from transformers import GenerationMixin
    from transformers.generation.logits_process import (
      LogitsProcessorList,
      WhisperTimeStampLogitsProcessor,
    )

    found = []
    for window, prompt in zip(windows, prompts):
      features = self.extract(window, sampling_rate=16000, return_tensors='pt').input_features
      rules = LogitsProcessorList(
        [WhisperTimeStampLogitsProcessor(self.model.generation_config, begin_index=len(prompt))]
      )
      with (
        self.torch.inference_mode()
      ):  # the plain search: Whisper's own `generate` would cut and merge segments
        row = GenerationMixin.generate(
          self.model,
          features,
          decoder_input_ids=self.torch.tensor([prompt]),
          logits_processor=rules,
          do_sample=False,
          num_beams=1,
        )
      found.append(
        [token for token in row[0, len(prompt) :].tolist() if token != self.settings['end']]
      )
    return found


SIDES = {
  'features': lambda folder, settings: CTranslate2(folder, settings, samples=False),
  'samples': lambda folder, settings: CTranslate2(folder, settings, samples=True),
  'samples_together': lambda folder, settings: CTranslate2(
    folder, settings, samples=True, together=settings['batch']
  ),
  'faster_float32': lambda folder, settings: FasterWhisper(folder, settings, 'float32'),
  'faster_int8': lambda folder, settings: FasterWhisper(folder, settings, 'int8'),
  'transformers': Transformers,
}


def main():
  side, folder, settings = sys.argv[1:]
  answer = SIDES[side](folder, json.loads(settings))
  names = ('torch', 'transformers', 'ctranslate2', 'faster_whisper')
  print(
    json.dumps({name: sys.modules[name].__version__ for name in names if name in sys.modules}),
    flush=True,
  )
  for line in sys.stdin:
    question = json.loads(line)
    with np.load(question['path']) as file:
      windows = [file[name] for name in file.files]
    print(json.dumps(answer(windows, question['prompts'])), flush=True)


if __name__ == '__main__':
  main()
