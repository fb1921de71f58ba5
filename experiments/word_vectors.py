"""Word vectors of a text on similarity sets and analogies.

No number is published for the texts at hand: gensim stands beside in benchmarks/.
"""

CONFIG = 'configs/word_vectors/skipgram.py'
DATASET = 'similarity sets'
METRICS = {
  'ws-353-all': ('WS-353', 1, None, None),
  'men-tr-3k': ('MEN', 1, None, None),
  'simlex-999': ('SimLex-999', 1, None, None),
  'rw-stanford': ('rare words', 1, None, None),
  'questions-words': ('analogies, %', 100, None, None),
}
