"""Our data sets. `DATASETS` maps the names of configs to builders; a new one is a line."""

from mmlm.data.datasets.builder import DatasetBuilder
from mmlm.data.datasets.flickr8k import Flickr8k
from mmlm.data.datasets.keypad_tones import KeypadTones
from mmlm.data.datasets.mosi import Mosi
from mmlm.data.datasets.multi30k import Multi30k
from mmlm.data.datasets.numerals import Numerals
from mmlm.data.datasets.sentences import Mr, Sst2, Vader
from mmlm.data.datasets.sounds import An4, Fsdd, Mboshi
from mmlm.data.datasets.speech_folders import Covost, LibriSpeech
from mmlm.data.datasets.texts import Brown, TinyShakespeare
from mmlm.data.datasets.three_modalities import ThreeModalities
from mmlm.data.datasets.unicode_pictures import UnicodePictures

DATASETS: dict[str, type[DatasetBuilder]] = {
  'unicode_pictures': UnicodePictures,
  'flickr8k': Flickr8k,
  'multi30k': Multi30k,
  'numerals': Numerals,
  'sst2': Sst2,
  'mr': Mr,
  'vader': Vader,
  'mosi': Mosi,
  'three_modalities': ThreeModalities,
  'keypad_tones': KeypadTones,
  'fsdd': Fsdd,
  'an4': An4,
  'mboshi': Mboshi,
  'librispeech': LibriSpeech,
  'covost': Covost,
  'tiny_shakespeare': TinyShakespeare,
  'brown': Brown,
}
