"""Norm layers: torch's values and gradients, bit for bit where said; precision, memory, graphs."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.norms import PASSES, TORCHS, Options, measure, net_rows
from core.layers import kernels, planes
from core.layers.norms import (
    NORMS,
    BatchInstanceNorm,
    BatchNorm,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
)

OURS = ("bn", "in", "bin", "ln", "gn")
CHANNELS_LAST, CONTIGUOUS = torch.channels_last, torch.contiguous_format
AVX2 = torch.backends.cpu.get_cpu_capability() == "AVX2"


def make_pair(norm: str, channels: int) -> tuple[nn.Module, nn.Module]:
    """Ours and torch's layer in float64 with the same parameters, none of them special."""
    ours, torchs = NORMS[norm](channels).double(), TORCHS[norm](channels).double()
    with torch.no_grad():
        for name, p in torchs.named_parameters():
            p.uniform_(0.1, 0.9) if name == "gate" else p.normal_()
            ours.get_parameter(name).copy_(p)
    return ours, torchs


def make_input(shape: tuple[int, ...], memory_format=CONTIGUOUS, mean: float = 1.0) -> Tensor:
    """Float64 with another mean and spread in each channel."""
    spread = torch.rand(shape[1], 1, 1, dtype=torch.float64) + 0.5
    x = torch.randn(shape, dtype=torch.float64) * spread + mean * spread.flip(0)
    return x.contiguous(memory_format=memory_format).requires_grad_()


def results(layer: nn.Module, x: Tensor, dy: Tensor, compiled=None) -> dict[str, Tensor]:
    """Output, gradients and buffers after one pass, of the layer or of what was made of it."""
    y = (layer if compiled is None else compiled)(x)
    parameters = dict(layer.named_parameters())
    gradients = torch.autograd.grad(y, [x, *parameters.values()], dy)
    named = dict(zip(["x", *parameters], gradients, strict=True))
    buffers = {name.removeprefix("batch."): b.clone() for name, b in layer.named_buffers()}
    return {"y": y.detach()} | {f"d_{k}": v for k, v in named.items()} | buffers


def reference(layer: nn.Module, x: Tensor, dy: Tensor) -> dict[str, Tensor]:
    """`results` of torch's layer on contiguous copies.

    Its gradients of instance norm are wrong for a single channels_last image (torch 2.15).
    """
    x = x.detach().contiguous(memory_format=CONTIGUOUS)
    return results(layer, x.requires_grad_(), dy.contiguous(memory_format=CONTIGUOUS))


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-10):
    """Equal names, dtypes and values, relative to the largest value."""
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        scale = max(1.0, expected.abs().max().item())
        torch.testing.assert_close(
            ours[name], expected, atol=tolerance * scale, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )


SHAPES = [(4, 16, 6, 5), (2, 8, 40, 33), (1, 8, 3, 3), (3, 24, 1, 7), (2, 8, 13, 11)]
SHAPES_OF = [(norm, shape) for norm in OURS for shape in SHAPES] + [("bn", (6, 8, 1, 1))]


# Values and gradients.


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("memory_format", [CONTIGUOUS, CHANNELS_LAST], ids=["nchw", "nhwc"])
@pytest.mark.parametrize(("norm", "shape"), SHAPES_OF, ids=str)
def test_equals_torch(norm, shape, memory_format, training):
    ours, torchs = make_pair(norm, shape[1])
    for step in range(2):  # the first pass also moves the running averages off their start
        ours.train(training or step == 0)
        torchs.train(training or step == 0)
        x, dy = make_input(shape, memory_format), make_input(shape, memory_format).detach()
        got = results(ours, x, dy)
        assert_same(got, reference(torchs, x, dy))
        assert got["y"].is_contiguous(memory_format=memory_format)
        assert got["d_x"].is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("memory_format", [CONTIGUOUS, CHANNELS_LAST], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("mean", [1.0, 50.0], ids=["plain", "centred"])
@pytest.mark.parametrize("norm", OURS)
def test_many_chunks(norm, mean, memory_format, monkeypatch):
    monkeypatch.setattr(planes, "CPU_CHUNK", 192)
    shape = (5, 16, 6, 10)
    layout = planes.layout_of(make_input(shape, memory_format))
    assert -(-layout.blocks[0] // layout.step) > 3
    ours, torchs = make_pair(norm, shape[1])
    x, dy = make_input(shape, memory_format, mean), make_input(shape, memory_format).detach()
    assert_same(results(ours, x, dy), reference(torchs, x, dy), 1e-9)


@pytest.mark.parametrize("norm", OURS)
def test_views_and_odd_gradients(norm):
    ours, torchs = make_pair(norm, 8)
    base = torch.randn(8, 3, 10, 9, dtype=torch.float64)
    views = [
        base.repeat(1, 1, 2, 2).transpose(0, 1)[:, :, ::2, 3:],
        torch.randn(3, 8, 1, 9, dtype=torch.float64).expand(3, 8, 5, 9),
        torch.randn(6, 8, 4, 4, dtype=torch.float64)[::2],
    ]
    for view in views:
        x = view.requires_grad_()
        scalar = torch.ones((), dtype=torch.float64)
        for dy in (scalar.expand(x.shape), torch.randn(x.shape).double().to(
            memory_format=CHANNELS_LAST
        )):  # fmt: skip
            assert_same(results(ours, x, dy), reference(torchs, x, dy))


def test_group_norm_has_layer_and_instance_norm_as_its_ends():
    x, dy = make_input((3, 16, 5, 4)), make_input((3, 16, 5, 4)).detach()
    for groups, other in ((1, LayerNorm(16)), (16, InstanceNorm(16))):
        group = GroupNorm(16, groups=groups).double()
        nn.init.normal_(group.weight)
        other.double().load_state_dict(group.state_dict())
        assert_same(results(group, x, dy), results(other, x, dy), 0)
    assert GroupNorm(16).num_groups == 8


@pytest.mark.parametrize("norm", OURS)
def test_only_what_is_asked_for(norm):
    ours, torchs = make_pair(norm, 8)
    data, dy = make_input((2, 8, 4, 4)).detach(), make_input((2, 8, 4, 4)).detach()
    for layer in (ours, torchs):
        layer(data).backward(dy)
    for name, p in torchs.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name).grad, p.grad, atol=1e-10, rtol=0)
    for training in (True, False):
        gradients = []
        for layer in (ours, torchs):
            x = data.clone().requires_grad_()
            layer.train(training).requires_grad_(False)(x).backward(dy)
            gradients.append(x.grad)
        torch.testing.assert_close(*gradients, atol=1e-10, rtol=0)
    assert not ours(data).requires_grad
    x = data.requires_grad_()  # and the output may be changed in place
    expected = torch.autograd.grad(ours.train()(x).relu().square().sum(), x)
    torch.testing.assert_close(torch.autograd.grad(ours(x).relu_().square().sum(), x), expected)


# Batch norm bit for bit.


def random_batch_norms(channels: int) -> tuple[BatchNorm, nn.BatchNorm2d]:
    """Ours and torch's in float32 with the same random parameters."""
    torchs, ours = nn.BatchNorm2d(channels), BatchNorm(channels)
    nn.init.normal_(torchs.weight)
    nn.init.normal_(torchs.bias)
    ours.load_state_dict(torchs.state_dict())
    return ours, torchs


@pytest.mark.parametrize("mean", [0.5, 1000.0])
@pytest.mark.parametrize(
    "shape", [(50, 16, 24, 24), (50, 64, 6, 6), (7, 5, 13, 11), (6, 4, 2, 3), (1, 3, 5, 5)], ids=str
)
def test_batch_norm_is_torchs_bit_for_bit(shape, mean):
    ours, torchs = random_batch_norms(shape[1])
    for training in (True, True, False):
        ours.train(training)
        torchs.train(training)
        x, dy = (make_input(shape, mean=m).detach().float() for m in (mean, 0.0))
        got, expected = (results(n, x.requires_grad_(), dy) for n in (ours, torchs))
        if not AVX2:  # another order of summation: nothing but rounding may differ
            assert_same(got, expected, 1e-3 if mean > 1 else 1e-5)
            continue
        if not training:  # not trained in this mode: values only
            got, expected = ({k: v for k, v in r.items() if "d_" not in k} for r in (got, expected))
        assert_same(got, expected, 0)


def test_large_batch_norm_agrees_to_rounding():
    torch.manual_seed(0)  # whatever ran before: a sum near 0 has few digits
    ours, torchs = random_batch_norms(4)
    shape = (5, 4, 256, 256)
    assert torch.Size(shape).numel() > kernels.ORDERED_LIMIT
    x, dy = (make_input(shape, mean=m).detach().float() for m in (1.0, 0.0))
    expected = results(torchs.double(), x.double().requires_grad_(), dy.double())
    got = results(ours, x.requires_grad_(), dy)
    assert_same({k: v.double() if v.is_floating_point() else v for k, v in got.items()}, expected,
                2e-6)  # fmt: skip


# Precision, memory, kinds of input.


def used_variance(x: Tensor, y: Tensor, eps: float = 1e-5) -> Tensor:
    """Variance by which y = (x - mean) / sqrt(var + eps) was made: rows (..., n) by regression."""
    x, y = (t.double() - t.double().mean(-1, keepdim=True) for t in (x, y))
    return (x.square().sum(-1) / (x * y).sum(-1)).square() - eps


@pytest.mark.parametrize("memory_format", [CONTIGUOUS, CHANNELS_LAST], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("mean", [0.0, 3.9, 4.1, 30.0, 1000.0])
@pytest.mark.parametrize("norm", OURS)
def test_large_means_keep_the_variance(norm, mean, memory_format):
    torch.manual_seed(1)
    x = (torch.randn(8, 16, 48, 40) + mean).contiguous(memory_format=memory_format)
    layer, reference = NORMS[norm](16), TORCHS[norm](16).double()
    layer.momentum = 1.0
    if norm == "bin":  # a mixture has no single variance: look at the instance part
        nn.init.zeros_(layer.gate)
        nn.init.zeros_(reference.gate)
    groups = {"bn": (16, True), "ln": (1, False), "gn": (8, False)}.get(norm, (16, False))
    rows = [t.unflatten(1, (groups[0], -1)).flatten(2) for t in (x, layer(x).detach())]
    if groups[1]:
        rows = [t.transpose(0, 1).flatten(1) for t in rows]
    var = rows[0].double().var(-1, correction=0)
    assert ((used_variance(*rows) / var) - 1).abs().max() < 1e-5
    if norm in ("bn", "bin"):
        expected = x.double().transpose(0, 1).flatten(1).var(-1)
        assert (layer.running_var / expected - 1).abs().max() < 1e-5

    dy = torch.randn(x.shape)
    got = results(layer, x.requires_grad_(), dy)["d_x"]
    expected = results(reference, x.double().detach().requires_grad_(), dy.double())["d_x"]
    # an input of 1000 is itself only known to 3e-5
    assert (got - expected).norm() / expected.norm() < (1e-6 if mean < 100 else 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm", OURS)
def test_backward_keeps_the_input_and_little_else(norm, dtype):
    layer, kept = NORMS[norm](16), {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return t

    x = torch.randn(4, 16, 48, 48).to(dtype).requires_grad_()
    with saved_tensors_hooks(pack, lambda t: t):
        y = layer(x)
    assert x.data_ptr() in kept
    statistics = 8 * (4 * x.shape[0] * x.shape[1] + 6 * x.shape[1])  # at most, in float64
    assert sum(kept.values()) <= x.untyped_storage().nbytes() + statistics
    assert y.data_ptr() not in kept


@pytest.mark.parametrize("mean", [0, 30])
@pytest.mark.parametrize("norm", OURS)
def test_autocast_keeps_float32_statistics(norm, mean):
    conv, layer, reference = nn.Conv2d(3, 16, 3), NORMS[norm](16), TORCHS[norm](16).double()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = (conv(torch.randn(4, 3, 20, 20)) + mean).detach().requires_grad_()
        y = layer(x)
    dy = torch.randn(y.shape).to(y.dtype)
    dx, *rest = torch.autograd.grad(y, [x, *layer.parameters()], dy)
    assert x.dtype == y.dtype == dx.dtype == torch.bfloat16
    assert all(g.dtype == torch.float32 for g in rest)
    expected = results(reference, x.double().detach().requires_grad_(), dy.double())
    assert (y - expected["y"]).norm() / expected["y"].norm() < 3e-3  # bfloat16 has 8 bits
    assert (dx - expected["d_x"]).norm() / expected["d_x"].norm() < 3e-3
    for got, name in zip(rest, dict(layer.named_parameters()), strict=True):
        torch.testing.assert_close(got.double(), expected[f"d_{name}"], rtol=1e-4, atol=1e-3)
    for name, buffer in layer.named_buffers():
        torch.testing.assert_close(buffer, expected[name].to(buffer.dtype), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("norm", OURS)
def test_layers_in_half_precision(norm, dtype):
    layer = NORMS[norm](8).to(dtype)
    x = torch.randn(4, 8, 9, 9).to(dtype=dtype, memory_format=CHANNELS_LAST).requires_grad_()
    got = results(layer, x, torch.ones(x.shape, dtype=dtype))
    assert got["y"].dtype == dtype
    assert got["y"].is_contiguous(memory_format=CHANNELS_LAST)
    assert all(v.isfinite().all() for v in got.values())
    assert got["y"].float().mean().abs() < 0.01


def test_nothing_of_torchs_norms_is_called():
    class Names(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.seen = set()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen.add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    def names(layer: nn.Module) -> set[str]:
        with Names() as mode:
            for training in (True, False):
                x = torch.randn(4, 16, 6, 6, requires_grad=True)
                layer.train(training)(x).sum().backward()
        return {name for name in mode.seen if "norm" in name} - {"linalg_vector_norm"}

    assert names(nn.BatchNorm2d(16)) == {"native_batch_norm", "native_batch_norm_backward"}
    for norm in OURS:
        assert not names(NORMS[norm](16))


# Compilation.


@pytest.mark.slow
def test_compiled_layers_are_whole_graphs():
    class Beside(nn.ModuleList):  # one graph for all: each would cost a start of the compiler
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([layer(x) for layer in self], 1)

    layers = Beside([make_pair(norm, 16)[0] for norm in OURS])
    other = copy.deepcopy(layers)
    torch.compiler.reset()
    compiled = torch.compile(layers, backend="aot_eager", fullgraph=True)
    # Training in torch's own format is the next test's, of layers that do it another way.
    for training, memory_format in ((True, CHANNELS_LAST), (False, CONTIGUOUS)):
        layers.train(training)
        other.train(training)
        x, dy = make_input((4, 16, 7, 6), memory_format, mean=5), make_input((4, 80, 7, 6)).detach()
        assert_same(results(layers, x, dy, compiled), results(other, x, dy))


@pytest.mark.slow
def test_compiled_to_native_code():
    torch.compiler.reset()
    model = nn.Sequential(BatchNorm(8), LayerNorm(8), BatchInstanceNorm(8))
    other = copy.deepcopy(model).double()
    x, dy = torch.randn(4, 8, 12, 10) + 1000, torch.randn(4, 8, 12, 10)
    compiled = torch.compile(model, fullgraph=True, dynamic=False)
    found = results(model, x.requires_grad_(), dy, compiled)
    expected = results(other, x.double().detach().requires_grad_(), dy.double())
    for name, most in (("y", 1e-4), ("d_x", 1e-3)):
        assert (found[name] - expected[name]).norm() / expected[name].norm() < most
    variance = found["0.running_var"].double() / expected["0.running_var"]
    assert (variance - 1).abs().max() < 1e-5


# Errors.


@pytest.mark.parametrize("norm", OURS)
def test_wrong_inputs_are_named(norm):
    layer = NORMS[norm](16)
    name = type(layer).__name__
    bad = [torch.ones(2, 16, 4), torch.ones(2, 8, 4, 4), torch.ones(2, 16, 4, 4).long()]
    for x in (*bad, torch.ones(0, 16, 4, 4), torch.ones(2, 16, 0, 4)):
        with pytest.raises(ValueError, match=rf"{name}: expected .*\(N, 16, H, W\)"):
            layer(x)


@pytest.mark.parametrize(
    ("layer", "images", "told"),
    [
        (BatchNorm(16), 1, "BatchNorm: one value per channel"),
        (BatchNorm(16, track_running_stats=False).eval(), 1, "BatchNorm: one value per channel"),
        (InstanceNorm(16), 4, "one value per channel and image"),
        (BatchInstanceNorm(16), 4, "one value per channel and image"),
        (GroupNorm(16, groups=16), 1, "one value per group"),
    ],
)
def test_single_values_are_refused(layer, images, told):
    with pytest.raises(ValueError, match=told):
        layer(torch.ones(images, 16, 1, 1))


def test_groups_must_divide_channels_and_single_values_may_do():
    for groups in (8, 0, 16):
        with pytest.raises(ValueError, match=rf"GroupNorm: 12 channels .* {groups} groups"):
            GroupNorm(12, groups)
    assert BatchNorm(16).eval()(torch.ones(1, 16, 1, 1)).shape == (1, 16, 1, 1)
    # as torch: values of single pixels may be normalised over channels, or become the bias
    for groups in (1, 8):
        x = torch.randn(4, 8, 1, 1)
        torch.testing.assert_close(GroupNorm(8, groups)(x), nn.GroupNorm(groups, 8)(x))


def test_names():
    assert list(NORMS) == ["torch_bn", "bn", "in", "bin", "ln", "gn", "none"]
    assert type(NORMS["torch_bn"](8)) is nn.BatchNorm2d
    x = torch.randn(2, 8, 3, 3)
    assert NORMS["none"](8)(x) is x
    assert not list(NORMS["none"](8).parameters())
    for norm in OURS:
        layer = NORMS[norm](8)
        assert type(layer).__module__ == "core.layers.norms"
        names = set(layer.state_dict())
        assert {"weight", "bias"} <= names
        buffers = {"running_mean", "running_var", "num_batches_tracked"}
        assert names - {"weight", "bias", "gate"} == (buffers if norm in ("bn", "bin") else set())
        assert str(layer).startswith(f"{type(layer).__name__}(8, ")


@pytest.mark.parametrize("norm", OURS)
def test_other_devices_need_no_values_to_go_on(norm):
    # The meta device has shapes and no data: a wait for a value, or for the CPU, would raise.
    layer = NORMS[norm](16).to("meta")
    x = torch.randn(4, 16, 9, 7, device="meta").to(memory_format=CHANNELS_LAST).requires_grad_()
    for training in (True, False):
        y = layer.train(training)(x)
        gradients = torch.autograd.grad(y, [x, *layer.parameters()], torch.empty_like(y))
        assert [y.shape, *(g.shape for g in gradients)] == [
            x.shape, x.shape, *(p.shape for p in layer.parameters())
        ]  # fmt: skip
        assert y.is_contiguous(memory_format=CHANNELS_LAST)


def test_benchmark_rows():
    sizes = {(16, 8, 8): 5, (32, 4, 4): 4}
    rows = measure("gn", sizes, Options(batch=2, rounds=1, compiled=False))
    assert [(r.shape, r.part) for r in rows] == [
        (shape, part) for shape in ("16x8x8", "32x4x4") for part in PASSES
    ]
    net = [row.to_json() for row in net_rows(rows, sizes)]
    assert [row["pass"] for row in net] == list(PASSES)
    assert {(row["norm"], row["shape"], row["compiled"]) for row in net} == {("gn", "net", False)}
    for row, large, small in zip(net, rows[:3], rows[3:], strict=True):
        assert row["ms"] == pytest.approx(5 * large.ms + 4 * small.ms)
        assert row["ratio"] == pytest.approx(row["ms"] / row["torch_ms"])
