"""n-grams of letters of words, as fastText takes and numbers them (Bojanowski et al. 2017, 3.2)."""

# of FNV-1a with 32 bits
_START = 2166136261
_PRIME = 16777619


def piece_hashes(word: str, shortest: int, longest: int) -> list[int]:
  """FNV-1a of every n-gram of '<word>' with shortest..longest letters, in the order of fastText; '<' and '>' alone are none.

  As in fastText, bytes are signed. An n-gram that is longer begins like the shorter one before it, and so does its hash.
  """
  letters = [letter.encode('utf-8') for letter in f'<{word}>']
  found = []
  for start in range(len(letters)):
    value = _START
    for length, letter in enumerate(letters[start : start + longest], 1):
      for byte in letter:
        value = ((value ^ (byte if byte < 128 else byte | 0xFFFFFF00)) * _PRIME) & 0xFFFFFFFF
      if length >= shortest and not (length == 1 and letter in (b'<', b'>')):
        found.append(value)
  return found
