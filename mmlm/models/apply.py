"""Calls of flax modules with a type that says what they return."""

from typing import Any

import flax.linen as nn


def apply(module: nn.Module, params: Any, *inputs: Any, **options: Any) -> Any:
  """Returns the outputs of a module with these parameters.

  The declared type of `nn.Module.apply` is a union with the outputs beside the updated variables,
  which come with the option `mutable` alone.

  Args:
    inputs: of the method that is called.
    options: of `nn.Module.apply`, and arguments of the method by name.
  """
  return module.apply({'params': params}, *inputs, **options)
