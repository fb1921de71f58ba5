# The other software is installed only for the comparison.
# pyright: reportMissingImports=false
"""Runs gensim beside word_vectors.py, in its own process.

`peer_word_vectors.py SETTINGS`, then a question a line, an answer a line.

First comes a line with the versions of what it uses. Settings: {"text": a file, "kind", "options":
those of gensim's class}. A question is {"seed", "epochs", "output": where the vectors go in
word2vec's binary form, or ''}, the answer the seconds of training. The vocabulary is counted
before, once a question.
"""

import json
import sys
import time

import gensim
import numpy
from gensim.models import FastText, Word2Vec

KINDS = {
  'skip_gram': (Word2Vec, {'sg': 1}),
  'cbow': (Word2Vec, {'sg': 0}),
  'fasttext': (FastText, {'sg': 1}),
}


def main():
  settings = json.loads(sys.argv[1])
  with open(settings['text'], encoding='utf-8') as file:
    sentences = [line.split() for line in file]
  make, options = KINDS[settings['kind']]
  print(json.dumps({'gensim': gensim.__version__, 'numpy': numpy.__version__}), flush=True)
  for line in sys.stdin:
    question = json.loads(line)
    model = make(**options, **settings['options'], epochs=question['epochs'], seed=question['seed'])
    model.build_vocab(sentences)
    began = time.perf_counter()
    model.train(sentences, total_examples=len(sentences), epochs=question['epochs'])
    seconds = time.perf_counter() - began
    if question['output']:
      model.wv.save_word2vec_format(question['output'], binary=True)
    print(json.dumps(seconds), flush=True)


if __name__ == '__main__':
  main()
