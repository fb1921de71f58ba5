"""A compiled train step, and what it costs: memory, floating-point operations, their share of what the device can do."""

import math
import re
from typing import NamedTuple

import jax
from jax.extend import core

from mmlm.parallel.hosts import meet

# Dense products a second of one device in bfloat16 (float16 where there is none), as the vendors' data sheets give them; of a TPU one
# device of jax, which is a core up to v3. The first that `device_kind` contains.
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


def peak_flops(device=None) -> float | None:
  """Floating-point operations a second that a device can do at most; None where nobody has said (a CPU)."""
  device = device or jax.devices()[0]
  if device.platform == 'cpu':
    return None
  return next(
    (peak for kind, peak in PEAKS if re.search(rf'\b{re.escape(kind)}(?!\d)', device.device_kind)),
    None,
  )


class Cost(NamedTuple):
  """Of one call of a program; bytes are those of one device."""

  flops: float  # of its matrix products and convolutions on all devices, as often as loops run; 0 = not counted
  xla_flops: float  # all operations of one device as XLA counts them: what is in a loop once
  arguments: int
  outputs: int
  donated: int  # of the outputs, what lies where arguments were
  temporaries: int

  @property
  def memory(self) -> int:
    return self.arguments + self.outputs - self.donated + self.temporaries

  def __str__(self):
    if self.flops:
      products = f', {format_number(self.flops, 1000)}FLOP in matrix products'
    else:
      products = ''
    return (
      f'{format_number(self.memory)}B a device (arguments {format_number(self.arguments)}B, temporaries {format_number(self.temporaries)}B, '
      f'outputs {format_number(self.outputs)}B, of which {format_number(self.donated)}B in place){products}; XLA counts '
      f'{format_number(self.xla_flops, 1000)}FLOP a device, loops once'
    )


def format_number(number: float, base: int = 1024) -> str:
  """12345678 -> '11.8 Mi', or with base 1000 '12.3 M'."""
  if number < base:
    power = 0
  else:
    power = min(int(math.log(number, base)), 5)
  unit = ['', 'k', 'M', 'G', 'T', 'P'][power] + ('i' if base == 1024 and power else '')
  return f'{number / base**power:.{1 if power else 0}f} {unit}'


class Step:
  """(state, batch) -> (state, metrics), compiled once for each shape of batch and kept; the old state is donated.

  Args:
    program: state -> the jitted function.
    prepare: batch on the host -> what the function takes.
    finish: its metrics -> one copy of them.
    ahead: compile by hand, so that `cost` is known without compiling twice.
  """

  def __init__(self, program, prepare, finish=lambda metrics: metrics, ahead: bool = True):
    self._program = program
    self._prepare = prepare
    self._finish = finish
    self._ahead = ahead
    self._compiled = {}
    self._jitted = None
    self.cost: Cost | None = None  # of the program that ran last

  def __call__(self, state, batch):
    batch = self._prepare(batch)
    key = tuple((name, x.shape, x.dtype) for name, x in sorted(batch.items()))
    if key not in self._compiled:
      self._compiled[key] = self.compile(state, batch) if self._ahead else (self._run(state), None)
    run, self.cost = self._compiled[key]
    state, metrics = run(state, batch)
    return state, self._finish(metrics)

  def _run(self, state):
    self._jitted = self._jitted or self._program(state)
    return self._jitted

  def compile(self, state, batch) -> tuple:
    """(the compiled program, its cost) for arrays or their shapes, as `prepare` gives them."""
    run = self._run(state)
    if hasattr(run, 'trace'):
      traced = run.trace(state, batch)
    else:
      traced = None
    compiled = (traced or run).lower(*() if traced else (state, batch)).compile()
    meet('a step is compiled')  # not all of them compile at the same speed
    # pmap would trace twice
    if traced:
      jaxpr = traced.jaxpr
    elif peak_flops():
      jaxpr = jax.make_jaxpr(run)(state, batch)
    else:
      jaxpr = None
    return compiled, cost_of(compiled, flops_of(jaxpr.jaxpr) if jaxpr else 0)


def cost_of(compiled, flops: float = 0) -> Cost:
  memory = compiled.memory_analysis()
  counted = compiled.cost_analysis() or {}
  sizes = []
  for kind in ('argument', 'output', 'alias', 'temp'):
    sizes.append(getattr(memory, f'{kind}_size_in_bytes', 0))
  return Cost(flops, counted.get('flops', 0), *sizes)


def flops_of(jaxpr) -> float:
  """Two for each multiplication of its matrix products and convolutions; the body of a while loop, whose length is not known, counts once."""
  total = 0.0
  for equation in jaxpr.eqns:
    name = equation.primitive.name
    inputs = [x.aval for x in equation.invars]
    outputs = [x.aval for x in equation.outvars]
    if name == 'dot_general':
      (contracted, _), _ = equation.params['dimension_numbers']
      total += 2 * outputs[0].size * math.prod(inputs[0].shape[i] for i in contracted)
    elif name == 'conv_general_dilated':
      kernel = inputs[1].shape
      total += (
        2
        * outputs[0].size
        * math.prod(kernel)
        // kernel[equation.params['dimension_numbers'].rhs_spec[0]]
      )
    else:
      if name == 'scan':
        times = equation.params['length']
      elif name == 'shard_map':
        times = equation.params['mesh'].size
      else:
        times = 1
      inner = [flops_of(each) for each in _inside(equation.params)]
      total += times * (max(inner, default=0) if name == 'cond' else sum(inner))
  return total


def _inside(params: dict):
  """The programs among the parameters of an operation."""
  for value in params.values():
    for each in value if isinstance(value, tuple | list) else (value,):
      if isinstance(each, core.ClosedJaxpr):
        yield each.jaxpr
      elif isinstance(each, core.Jaxpr):
        yield each
