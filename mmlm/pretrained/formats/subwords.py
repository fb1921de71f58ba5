"""n-grams of letters of words, as fastText takes and numbers them (Bojanowski et al. 2017, 3.2)."""

# of FNV-1a with 32 bits
_START = 2166136261
_PRIME = 16777619
_MASK = 0xFFFFFFFF


def piece_hashes(
  word: str,
  shortest: int,
  longest: int,
) -> list[int]:
  """Returns the FNV-1a hash of every n-gram of '<word>' with `shortest` to `longest` letters.

  They come in the order of fastText; '<' and '>' alone are left out. As in fastText, bytes are
  signed.
  """
  letters = [letter.encode('utf-8') for letter in f'<{word}>']
  hashes = []
  for start in range(len(letters)):
    value = _START
    # The hash of an n-gram continues that of the n-gram one letter shorter.
    for length, letter in enumerate(letters[start : start + longest], 1):
      for byte in letter:
        signed = byte if byte < 128 else byte | 0xFFFFFF00
        value = ((value ^ signed) * _PRIME) & _MASK
      is_mark = length == 1 and letter in (b'<', b'>')
      if length >= shortest and not is_mark:
        hashes.append(value)
  return hashes
