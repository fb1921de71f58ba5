"""Encoders, one a modality: (values, mask, train) -> Sequence.

A new encoder is a subclass of `Encoder` and one line in `ENCODERS`, which maps the names of configs
to classes.
"""

from mmlm.models.encoders.audio_encoders import AudioRecurrent, AudioTransformer
from mmlm.models.encoders.bert_encoder import BertEncoder
from mmlm.models.encoders.conformer import Conformer
from mmlm.models.encoders.encoder import Encoder
from mmlm.models.encoders.feature_encoders import FeatureEncoder, FeatureRecurrent
from mmlm.models.encoders.text_encoders import RecurrentEncoder, TextCnn, TextEncoder
from mmlm.models.encoders.vision_encoders import EfficientNetGrid, VisionTransformer
from mmlm.models.encoders.whisper_encoder import WhisperEncoder

ENCODERS: dict[str, type[Encoder]] = {
  'bert': BertEncoder,
  'text_cnn': TextCnn,
  'features': FeatureEncoder,
  'feature_recurrent': FeatureRecurrent,
  'vit': VisionTransformer,
  'efficientnet_lite0': EfficientNetGrid,
  'text_transformer': TextEncoder,
  'text_recurrent': RecurrentEncoder,
  'audio_transformer': AudioTransformer,
  'conformer': Conformer,
  'audio_recurrent': AudioRecurrent,
  'whisper': WhisperEncoder,
}
