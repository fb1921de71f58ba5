"""A compiled train step, and its cost: memory, operations, and their share of the device's peak."""

import math
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.extend import core

from mmlm.parallel.hosts import meet

# Dense products a second of one device in bfloat16 (float16 where there is none), from the vendors'
# data sheets; of a TPU for one device of jax, which is a core up to v3. The first name that
# `device_kind` contains applies.
PEAKS = (
  ('B200', 2250e12),
  ('H200', 989e12),
  ('H100 PCIe', 756e12),
  ('H100 NVL', 835e12),
  ('H100', 989e12),
  ('GH200', 989e12),
  ('A100', 312e12),
  ('A800', 312e12),
  ('H800', 989e12),
  ('L40S', 362e12),
  ('L4', 121e12),
  ('A10G', 70e12),
  ('A10', 125e12),
  ('A40', 150e12),
  ('A30', 165e12),
  ('V100', 125e12),
  ('T4', 65e12),
  ('RTX 4090', 165e12),
  ('RTX 3090', 71e12),
  ('MI300X', 1307e12),
  ('MI250', 181e12),
  ('TPU v6', 918e12),
  ('TPU v5 lite', 197e12),
  ('TPU v5e', 197e12),
  ('TPU v5', 459e12),
  ('TPU v4', 275e12),
  ('TPU v3', 61.5e12),
  ('TPU v2', 22.5e12),
)


def peak_flops(device: Any = None) -> float | None:
  """Returns the peak floating-point operations a second of a device; None if unknown (a CPU)."""
  device = device or jax.devices()[0]
  if device.platform == 'cpu':
    return None
  for kind, peak in PEAKS:
    if re.search(rf'\b{re.escape(kind)}(?!\d)', device.device_kind):
      return peak
  return None


class Cost(NamedTuple):
  """The cost of one call of a program; bytes are those of one device."""

  flops: float  # matrix products and convolutions on all devices, loops included; 0 = not counted
  xla_flops: float  # all operations of one device by XLA, which counts the body of a loop once
  arguments: int
  outputs: int
  donated: int  # outputs in the memory of arguments
  temporaries: int

  @property
  def memory(self) -> int:
    """Bytes of one device."""
    return self.arguments + self.outputs - self.donated + self.temporaries

  def __str__(self) -> str:
    products = ''
    if self.flops:
      products = f', {format_number(self.flops, 1000)}FLOP in matrix products'
    return (
      f'{format_number(self.memory)}B a device (arguments {format_number(self.arguments)}B, '
      f'temporaries {format_number(self.temporaries)}B, outputs {format_number(self.outputs)}B, '
      f'of which {format_number(self.donated)}B in place){products}; '
      f'XLA counts {format_number(self.xla_flops, 1000)}FLOP a device, loops once'
    )


def format_number(number: float, base: int = 1024) -> str:
  """Formats 12345678 as '11.8 Mi', or with base 1000 as '12.3 M'."""
  power = 0
  if number >= base:
    power = min(int(math.log(number, base)), 5)
  prefix = ['', 'k', 'M', 'G', 'T', 'P'][power]
  if base == 1024 and power:
    prefix += 'i'
  digits = 1 if power else 0
  return f'{number / base**power:.{digits}f} {prefix}'


def _unchanged(metrics: Any) -> Any:
  return metrics


class Step:
  """(state, batch) -> (state, metrics), compiled once for each shape of batch.

  The old state is donated.

  Args:
    program: state -> the jitted function.
    prepare: batch on the host -> the batch that the function takes.
    finish: metrics of the function -> one copy of them.
    ahead: compile ahead of time, so that `cost` is known without compiling twice.
  """

  def __init__(
    self,
    program: Callable[[Any], Callable],
    prepare: Callable[[dict], dict],
    finish: Callable[[Any], Any] = _unchanged,
    ahead: bool = True,
  ):
    self._program = program
    self._prepare = prepare
    self._finish = finish
    self._ahead = ahead
    self._compiled = {}
    self._jitted = None
    self.cost: Cost | None = None  # of the program that ran last

  def __call__(self, state: Any, batch: dict) -> tuple[Any, Any]:
    batch = self._prepare(batch)
    key = tuple((name, x.shape, x.dtype) for name, x in sorted(batch.items()))
    if key not in self._compiled:
      if self._ahead:
        self._compiled[key] = self.compile(state, batch)
      else:
        self._compiled[key] = (self._function(state), None)
    run, self.cost = self._compiled[key]
    state, metrics = run(state, batch)
    return state, self._finish(metrics)

  def _function(self, state: Any) -> Any:
    if self._jitted is None:
      self._jitted = self._program(state)
    return self._jitted

  def compile(self, state: Any, batch: dict) -> tuple[Any, Cost]:
    """Compiles the program for arrays or their shapes, as `prepare` returns them.

    Returns the compiled program and its cost.
    """
    function = self._function(state)
    jaxpr = None
    if hasattr(function, 'trace'):
      traced = function.trace(state, batch)
      lowered = traced.lower()
      jaxpr = traced.jaxpr
    else:  # of pmap, which traces again
      lowered = function.lower(state, batch)
    compiled = lowered.compile()
    meet('a step is compiled')  # processes compile at different speeds
    if jaxpr is None and peak_flops():
      jaxpr = jax.make_jaxpr(function)(state, batch)
    flops = 0
    if jaxpr is not None:
      flops = flops_of(jaxpr.jaxpr)
    return compiled, cost_of(compiled, flops)


def cost_of(compiled: Any, flops: float = 0) -> Cost:
  """Returns the cost of a compiled program with `flops` operations in matrix products."""
  memory = compiled.memory_analysis()
  counted = compiled.cost_analysis() or {}
  sizes = []
  for kind in ('argument', 'output', 'alias', 'temp'):
    sizes.append(getattr(memory, f'{kind}_size_in_bytes', 0))
  return Cost(flops, counted.get('flops', 0), *sizes)


def flops_of(jaxpr: core.Jaxpr) -> float:
  """Counts two operations for each multiplication of matrix products and convolutions.

  The body of a while loop, whose length is unknown, counts once.
  """
  return sum(_flops_of_equation(equation) for equation in jaxpr.eqns)


def _flops_of_equation(equation: core.JaxprEqn) -> float:
  params = equation.params
  input_types: list[Any] = [x.aval for x in equation.invars]
  output_types: list[Any] = [x.aval for x in equation.outvars]
  match equation.primitive.name:
    case 'dot_general':
      (contracted, _), _ = params['dimension_numbers']
      shape = input_types[0].shape
      return 2 * output_types[0].size * math.prod(shape[i] for i in contracted)
    case 'conv_general_dilated':
      kernel = input_types[1].shape
      output_channels = kernel[params['dimension_numbers'].rhs_spec[0]]
      return 2 * output_types[0].size * math.prod(kernel) // output_channels
    case 'cond':
      branches = [flops_of(inner) for inner in _inner_programs(params)]
      return max(branches, default=0)
    case 'scan':
      repeats = params['length']
    case 'shard_map':
      repeats = params['mesh'].size
    case _:
      repeats = 1
  return repeats * sum(flops_of(inner) for inner in _inner_programs(params))


def _inner_programs(params: dict) -> Iterator[core.Jaxpr]:
  """Yields the programs among the parameters of an operation."""
  for value in params.values():
    candidates = value if isinstance(value, tuple | list) else (value,)
    for candidate in candidates:
      if isinstance(candidate, core.ClosedJaxpr):
        yield candidate.jaxpr
      elif isinstance(candidate, core.Jaxpr):
        yield candidate
