"""Heads: they make the outputs of a model from its memory.

A new head is a subclass of `Head` or `Decoder` and one line in `HEADS`, which maps the names of
configs to classes.
"""

from mmlm.models.heads.ctc_heads import Ctc, JointRecurrent, JointTransformer
from mmlm.models.heads.head import Decoder, Head
from mmlm.models.heads.lstm_language_model import LstmLanguageModel
from mmlm.models.heads.masked_tokens import MaskedTokens
from mmlm.models.heads.pooled_heads import Classifier, Regressor
from mmlm.models.heads.recurrent_decoder import RecurrentDecoder
from mmlm.models.heads.transformer_decoder import TransformerDecoder

__all__ = ['HEADS', 'Decoder', 'Head', 'TransformerDecoder']

HEADS: dict[str, type[Head]] = {
  'transformer_decoder': TransformerDecoder,
  'recurrent_decoder': RecurrentDecoder,
  'classifier': Classifier,
  'regressor': Regressor,
  'ctc': Ctc,
  'joint': JointTransformer,
  'joint_recurrent': JointRecurrent,
  'lstm': LstmLanguageModel,
  'masked_tokens': MaskedTokens,
}
