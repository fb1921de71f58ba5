"""Results of a transcription: of a window, of a segment, of a file."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class DecodingResult:
  """What the model wrote for a window.

  Attributes:
    tokens: without the end token.
    avg_logprob: mean log-probability of a token in nats, including the end token.
    no_speech_prob: probability that nobody speaks in the window.
    temperature: 0 = found by search, above 0 = sampled.
    compression_ratio: bytes of the text by bytes of the compressed text.
  """

  tokens: tuple[int, ...]
  text: str
  avg_logprob: float
  no_speech_prob: float
  temperature: float
  compression_ratio: float


@dataclasses.dataclass(frozen=True)
class Segment:
  """A stretch of text with its times, in seconds from the start of the file.

  The other fields are those of the window; a run without Whisper does not know them (None).
  """

  start: float
  end: float
  text: str
  avg_logprob: float | None = None
  no_speech_prob: float | None = None
  temperature: float | None = None
  compression_ratio: float | None = None


@dataclasses.dataclass(frozen=True)
class Transcript:
  """The text of a file.

  Attributes:
    language: code of the language.
    duration: seconds of the recording.
  """

  text: str
  language: str
  duration: float
  segments: tuple[Segment, ...]
