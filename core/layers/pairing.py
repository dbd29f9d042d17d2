"""Which norm follows which convolution, found by running the network.

The order of names says nothing reliable: a shortcut's convolution is listed after layers that run
later, a module may be used twice, and what a `forward` does between two modules (a sum, a ReLU as
a function) has no name at all. So the network is run once and two things are watched: every module
that is called, by hooks, and every operation on tensors, by a dispatch mode. A norm follows a
convolution directly when it receives the very tensor that the convolution returned and nothing
outside the norm ever reads or writes that tensor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from core.layers.norms import BatchNorm

Norm = nn.BatchNorm2d | BatchNorm
SIZES = (64, 224)  # pixels of the images tried when no example is given; some networks need more


class Pair(NamedTuple):
    """A convolution and the batch norm that takes its output and nothing else does."""

    conv: str
    norm: str


@dataclass(frozen=True)
class Run:
    """What one pass through a network in evaluation mode showed."""

    pairs: tuple[Pair, ...]  # convolutions with their norms, in the order in which they ran
    single: Mapping[str, str]  # other convolutions -> why they have no norm
    example: tuple[Any, ...]  # the arguments of the pass
    outputs: tuple[Tensor, ...]  # every tensor that it returned


def pairs(model: nn.Module, example: Any = None) -> Run:
    """Run `model` once in evaluation mode and pair its convolutions with its batch norms.

    Nothing in the model changes, also not its running statistics.

    Args:
        model: any module with `nn.Conv2d` and `nn.BatchNorm2d` (or labtune's own `BatchNorm`).
        example: an input, or a tuple of arguments; None for random images.

    Raises ValueError: a norm does not follow a convolution directly, a convolution's output is also
    used elsewhere, a module or its weights are used twice, or the example does not run.
    """
    record, arguments, outputs = _run(model, example)
    modules = dict(model.named_modules())
    found, taken = [], {}
    for norm in record.calls:
        if not isinstance(modules[norm], Norm):
            continue
        conv = _conv_of(modules, record, norm, outputs)
        if conv in taken:
            raise ValueError(f"{conv}: its output goes to both {taken[conv]} and {norm}")
        taken[conv] = norm
        found.append(Pair(conv, norm))
    _check_tied(model, found)
    single = {
        name: "no batch norm follows it" if record.calls[name] else "the example did not reach it"
        for name, module in modules.items()
        if isinstance(module, nn.Conv2d) and name not in taken
    }
    return Run(tuple(found), single, arguments, outputs)


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode while inside, without gradients."""
    were = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in were:
            module.training = training


def tensors(content: Any) -> Iterator[Tensor]:
    """Yield every tensor in nested tuples, lists and dicts."""
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, Mapping):
        for value in content.values():
            yield from tensors(value)
    elif isinstance(content, list | tuple):
        for value in content:
            yield from tensors(value)


@dataclass
class _Record:
    """What hooks and dispatch mode saw of one pass."""

    calls: Counter[str] = field(default_factory=Counter)  # modules, by their first call
    stack: list[str] = field(default_factory=list)  # modules that are running now
    # id -> the convolution that made the tensor; the tensor is kept, so that no id is used twice
    made: dict[int, tuple[str, Tensor]] = field(default_factory=dict)
    norm_input: dict[str, str | None] = field(default_factory=dict)
    readers: dict[str, list[tuple[str, ...]]] = field(default_factory=dict)  # conv -> stacks

    def maker_of(self, tensor: Tensor | None) -> str | None:
        """Return the convolution that made a tensor, if one did."""
        return self.made.get(id(tensor), (None, tensor))[0]


class _Watch(TorchDispatchMode):
    """Notes which operation reads or writes what a convolution has returned."""

    def __init__(self, record: _Record):
        super().__init__()
        self.record = record

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run `func` as it is."""
        for tensor in tensors([args, kwargs or {}]):
            maker = self.record.maker_of(tensor)
            if maker is not None:
                self.record.readers.setdefault(maker, []).append(tuple(self.record.stack))
        return func(*args, **(kwargs or {}))


def _run(model: nn.Module, example: Any) -> tuple[_Record, tuple[Any, ...], tuple[Tensor, ...]]:
    """Run the example, or the first of the random images that the network takes."""
    error: Exception | None = None
    for arguments in [_prepared(model, example)] if example is not None else _images(model):
        record = _Record()
        try:
            with _hooks(model, record), evaluation(model), _Watch(record):
                outputs = model(*arguments)
            return record, arguments, tuple(tensors(outputs))
        except (RuntimeError, ValueError, TypeError) as e:
            error = e
    given = "the example" if example is not None else "random images: give example=, an input"
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    raise ValueError(f"{type(model).__name__} does not run on {given} ({reason})") from error


def _prepared(model: nn.Module, example: Any) -> tuple[Any, ...]:
    """Return the arguments with tensors on the model's device, of its type where they are float."""
    like = next(model.parameters(), torch.empty(0))
    arguments = example if isinstance(example, tuple) else (example,)
    return tuple(
        (a.to(like.device, like.dtype) if a.is_floating_point() else a.to(like.device))
        if isinstance(a, Tensor)
        else a
        for a in arguments
    )


def _images(model: nn.Module) -> Iterator[tuple[Any, ...]]:
    """Yield two random images (2, C, S, S), small ones first; torch's generator is left alone."""
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    channels = 3 if first is None else first.in_channels
    for size in SIZES:
        generator = torch.Generator().manual_seed(0)
        yield _prepared(model, torch.randn(2, channels, size, size, generator=generator))


@contextmanager
def _hooks(model: nn.Module, record: _Record) -> Iterator[None]:
    """Note the calls of all modules while inside."""
    names = {module: name for name, module in model.named_modules()}

    def before(module: nn.Module, args: tuple, kwargs: dict) -> None:
        name = names[module]
        record.calls[name] += 1
        record.stack.append(name)
        if isinstance(module, Norm):
            record.norm_input[name] = record.maker_of(next(tensors([args, kwargs]), None))

    def after(module: nn.Module, args: tuple, output: Any) -> None:
        record.stack.pop()
        if isinstance(module, nn.Conv2d) and isinstance(output, Tensor):
            record.made[id(output)] = (names[module], output)

    with ExitStack() as handles:
        for module in names:
            handles.enter_context(module.register_forward_pre_hook(before, with_kwargs=True))
            handles.enter_context(module.register_forward_hook(after))
        yield


def _conv_of(
    modules: Mapping[str, nn.Module], record: _Record, norm: str, outputs: tuple[Tensor, ...]
) -> str:
    """Return the convolution whose output `norm` takes; raise unless it does so alone and once."""
    conv = record.norm_input[norm]
    if record.calls[norm] > 1:
        raise ValueError(f"{norm}: this norm is used {record.calls[norm]} times in one pass")
    if conv is None:
        raise ValueError(
            f"{norm}: disconnected {type(modules[norm]).__name__}, its input is not the output of a"
            " convolution: only chains of convolution, norm, ReLU can be converted"
        )
    if record.calls[conv] > 1:
        raise ValueError(f"{conv}: this convolution is used {record.calls[conv]} times in one pass")
    elsewhere = [stack for stack in record.readers.get(conv, []) if norm not in stack]
    returned = any(record.maker_of(t) == conv for t in outputs)
    if elsewhere or returned:
        places = sorted({stack[-1] or type(modules[""]).__name__ for stack in elsewhere if stack})
        where = f"in {', '.join(places)}" if places else "as an output of the network"
        raise ValueError(f"{conv}: its output is used not only by {norm} but also {where}")
    return conv


def _check_tied(model: nn.Module, found: list[Pair]) -> None:
    """Raise when a parameter of a pair belongs to another module, too."""
    owners: dict[Tensor, list[str]] = {}
    for name, module in model.named_modules():
        for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            owners.setdefault(tensor, []).append(name)
    for pair in found:
        for shared in owners.values():
            others = [name for name in shared if name not in (pair.conv, pair.norm)]
            if others and len(others) < len(shared):
                first = pair.conv if pair.conv in shared else pair.norm
                raise ValueError(f"{first}: it shares a parameter with {', '.join(others)}")
