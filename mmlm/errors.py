"""The one exception that is meant for people: `main` prints its text without a traceback and exits with code 2."""


class UserError(Exception):
  """Bad input: says which file, line, key or value was wrong, and what to do."""
