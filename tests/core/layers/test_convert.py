"""Standardised convolutions and the conversion of pretrained networks, against torch's own."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from core.labs import bntoWSconverter
from core.layers.convert import conversion, convert, setbyname2, to_plain
from core.layers.pairing import pairs
from core.layers.std_conv import EPS, WSConv2d, kernel_scale, standardise
from core.models import conversion_check
from core.models.resnet import resnet

SEEDED = settings(
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def relative(new, old):
    """Largest difference over the largest value; of outputs that are 0 throughout, the former."""
    difference, largest = ((t.detach().abs().max()) for t in (new - old, old))
    return float(difference / largest if largest > 0 else difference)


def norms_of(model):
    return [m for m in model.modules() if getattr(m, "running_var", None) is not None]


@torch.no_grad()
def randomise(model, seed=0):
    """Give every norm statistics and parameters as a trained network has, or worse ones."""
    draw = torch.Generator().manual_seed(seed)
    for norm in norms_of(model):
        norm.running_mean.normal_(generator=draw)
        norm.running_var.uniform_(0.05, 2.05, generator=draw)
        if norm.weight is not None:
            norm.weight.uniform_(0.5, 1.5, generator=draw)
            norm.bias.normal_(generator=draw)
    return model


@torch.no_grad()
def realistic(model):
    """Give every norm the statistics of random images, as training leaves them."""
    model.train()
    draw = torch.Generator().manual_seed(3)
    for _ in range(2):
        model(torch.randn(4, 3, 32, 32, generator=draw).to(next(model.parameters()).dtype))
    return model.eval()


@torch.no_grad()
def perturbed(model):
    """Randomise every norm, its statistics around those of random images: logits stay of size 10.

    With statistics drawn at will a deep network's logits reach 1e5, and float32 rounding with them.
    """
    randomise(model)
    for norm in norms_of(model):
        norm.weight *= 0.5
        norm.bias *= 0.3
    realistic(model)
    draw = torch.Generator().manual_seed(5)
    for norm in norms_of(model):
        shape, spread = norm.running_var.shape, norm.running_var.sqrt()
        norm.running_mean += 0.3 * spread * torch.randn(shape, generator=draw)
        norm.running_var *= 0.5 + torch.rand(shape, generator=draw)
    return model


@torch.no_grad()
def near_dead(model):
    """Have every seventh channel hardly vary, as ImageNet networks have some that do."""
    for conv in model.modules():
        if isinstance(conv, nn.Conv2d):
            conv.weight[::7] *= 1e-4
    return realistic(model)


def images(dtype=torch.float64, size=16, seed=1, count=4):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, size, size, generator=draw).to(dtype)


def conv_norm(conv, dtype=torch.float64, **norm):
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels, **norm), nn.ReLU()).to(dtype)


# ---- the layer ----


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("unbiased", [False, True])
def test_gradients_are_those_of_the_formula(center, unbiased):
    torch.manual_seed(0)
    w = torch.randn(2, 2, 1, 3, dtype=torch.float64, requires_grad=True)

    def once(weight):
        return standardise(weight, 1e-3, unbiased, center)

    assert torch.autograd.gradcheck(once, [w])
    assert torch.autograd.gradgradcheck(once, [w])
    assert torch.autograd.gradcheck(lambda x: once(x) * once(2 * x), [w])  # used twice
    layer = WSConv2d(4, 2, 2, stride=2, padding=1, groups=2, eps=1e-4).double()
    x = torch.randn(1, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    parameters = list(layer.parameters())
    assert torch.autograd.gradcheck(lambda image, *_: layer(image), [x, *parameters])


@pytest.mark.parametrize("unbiased", [False, True])
def test_layer_divides_by_torchs_std(unbiased):
    torch.manual_seed(0)
    layer = WSConv2d(3, 5, 3, unbiased=unbiased)
    std = layer.weight.flatten(1).std(1, unbiased=unbiased)
    expected = layer.weight / std[:, None, None, None]
    torch.testing.assert_close(layer.standardised(), expected)
    full = WSConv2d(3, 5, 3, unbiased=unbiased, center=True)
    values = full.standardised().flatten(1)
    torch.testing.assert_close(values.mean(1), torch.zeros(5), atol=1e-6, rtol=0)
    torch.testing.assert_close(values.std(1, unbiased=unbiased), torch.ones(5))


def test_small_spread_on_a_large_mean_keeps_its_digits():
    w = 1000 + torch.randn(2, 4, 3, 3, dtype=torch.float64)
    exact = kernel_scale(w)
    torch.testing.assert_close(kernel_scale(w.float()), exact.float(), rtol=1e-3, atol=0)


def test_kernels_without_variance_give_finite_numbers():
    for kernel, size in ((torch.zeros, 0.0), (torch.ones, 1e6)):
        layer = WSConv2d(2, 3, 3)
        layer.weight = nn.Parameter(kernel(3, 2, 3, 3))
        out = layer(torch.ones(1, 2, 4, 4))
        out.sum().backward()
        assert out.isfinite().all() and layer.weight.grad.isfinite().all()
        assert float(layer.standardised().detach().abs().max()) == pytest.approx(size, rel=1e-5)
    single = WSConv2d(1, 2, 1, bias=False)  # one value: no unbiased variance
    assert kernel_scale(single.weight).tolist() == pytest.approx([1e-6, 1e-6])
    assert single(torch.ones(1, 1, 2, 2)).isfinite().all()


def test_float16_autocast_stays_finite_where_weights_are_large():
    layer = WSConv2d(2, 3, 3, bias=False)
    large, usual = torch.full((3, 2, 3, 3), 0.5), torch.randn(3, 2, 3, 3)
    for weight, dtype in ((large, torch.float32), (usual, torch.float16)):
        layer.weight = nn.Parameter(weight)
        with torch.autocast("cpu", dtype=torch.float16):
            found = layer(torch.ones(1, 2, 4, 4))
        assert found.isfinite().all() and found.dtype == dtype


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2, "padding": 1, "padding_mode": "reflect"},
        {"dilation": 2, "groups": 2, "bias": False},
        {"padding": "same", "padding_mode": "circular"},
    ],
)
def test_options_are_those_of_conv2d(options):
    conv = nn.Conv2d(4, 6, 3, **options).requires_grad_(False)
    layer, plain = WSConv2d.of(conv), copy.deepcopy(conv)
    plain.weight.copy_(layer.standardised())
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(layer(x), plain(x))
    assert layer.weight is conv.weight and layer.bias is conv.bias
    assert layer.extra_repr().startswith(conv.extra_repr())


# ---- exactness ----


NETWORKS = {  # with their convolutions
    "as resnet18": (lambda: ResNet(BasicBlock, [2, 1, 1, 1], num_classes=10), 14),
    "as resnet50": (lambda: ResNet(Bottleneck, [2, 1, 1, 1], num_classes=10), 20),
    "cifar, torch's norm": (lambda: resnet(1, 10, "torch_bn"), 7),
    "cifar, own norm": (lambda: resnet(1, 10, "bn"), 7),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_both_modes_keep_the_logits(name):
    torch.manual_seed(0)
    build, convolutions = NETWORKS[name]
    model = build()
    for prepare in (perturbed, realistic, near_dead):
        prepare(model).eval()
        double = copy.deepcopy(model).double()
        with torch.no_grad():
            x = images(torch.float32, 32, count=2)
            old, old_double = model(x), double(x.double())
            for mode in ("A", "B"):
                new = convert(double, mode, example=x)
                assert relative(new(x.double()), old_double) < 1e-9
                assert conversion(new).difference < 1e-9
                assert len(conversion(new).converted) == convolutions
                single = convert(model, mode, example=x)(x)
                assert float((single - old).abs().mean()) < 1e-4


@given(
    mode=st.sampled_from(["A", "B"]),
    groups=st.sampled_from([1, 2, 4]),
    per_group=st.integers(1, 3),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    bias=st.booleans(),
    unbiased=st.booleans(),
    norm_eps=st.sampled_from([1e-5, 1e-3, 0.1]),
    eps=st.sampled_from([1e-12, 1e-6]),
    kind=st.sampled_from(["random", "zero", "constant", "tiny", "large"]),
    seed=st.integers(0, 1000),
)
@settings(SEEDED, max_examples=60)
def test_any_convolution_is_converted_exactly(
    mode, groups, per_group, kernel, stride, dilation, bias, unbiased, norm_eps, eps, kind, seed
):
    torch.manual_seed(seed)
    conv = nn.Conv2d(groups * per_group, 4 * groups, kernel, stride, 1, dilation, groups, bias)
    with torch.no_grad():
        conv.weight[0] = {
            "zero": torch.zeros_like(conv.weight[0]),
            "constant": torch.full_like(conv.weight[0], 0.3),
            "tiny": conv.weight[0] * 1e-4,
            "large": conv.weight[0] * 1e4,
        }.get(kind, conv.weight[0])
    model = randomise(conv_norm(conv, eps=norm_eps), seed).eval()
    x = torch.randn(3, groups * per_group, 9, 9, dtype=torch.float64)
    changed = convert(model, mode, eps=eps, unbiased=unbiased, example=x)
    with torch.no_grad():
        assert relative(changed(x), model(x)) < 1e-9
        for weights in ("standardised", "original"):
            plain = to_plain(changed, weights)
            assert type(plain[0]) is nn.Conv2d
            assert relative(plain(x), model(x)) < 1e-9


def test_negative_variance_of_a_dead_channel_is_kept():
    model = conv_norm(nn.Conv2d(3, 4, 3, bias=False)).eval()
    nn.init.normal_(model[0].weight, 0, 3)
    model[1].running_var.fill_(1e-9)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    changed = convert(model, "A", example=x)
    assert (changed[1].running_var < 0).all()
    assert (changed[1].running_var + changed[1].eps > 0).all()
    assert relative(changed(x), model(x)) < 1e-9


def test_mode_a_may_lack_weights_and_mode_b_may_not():
    model = conv_norm(nn.Conv2d(3, 4, 3), affine=False).eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert relative(convert(model, "A", example=x)(x), model(x)) < 1e-9
    with pytest.raises(ValueError, match=r"^1: mode B changes weight and bias"):
        convert(model, "B", example=x)


# ---- what is left, refused, repeated ----


def test_convolutions_that_cannot_take_part_are_left_and_listed():
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.ReLU()]
    layers += [nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)]
    model = nn.Sequential(*layers, nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4)).eval()
    changed = convert(model, "B")
    assert [pair.conv for pair in conversion(changed).converted] == ["0"]
    left = conversion(changed).left
    assert set(left) == {"2", "4", "6"} and "running statistics" in left["4"]
    assert [type(changed[i]) for i in (2, 4, 6)] == [nn.Conv2d] * 3


class Twice(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.way = way
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.other = nn.BatchNorm2d(3)
        if way == "tied":
            self.second, self.other = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
            self.second.weight = self.conv.weight

    def forward(self, x):
        if self.way == "shared":
            return self.norm(self.conv(self.norm(self.conv(x))))
        if self.way == "shared convolution":
            return self.other(self.conv(self.norm(self.conv(x))))
        h = self.conv(x)
        return {
            "sum": lambda: self.norm(h) + h,
            "functional relu": lambda: self.norm(h.relu()),
            "in-place relu": lambda: self.norm(h.relu_()),
            "two norms": lambda: self.norm(h) + self.other(h),
            "returned": lambda: (self.norm(h), h),
            "tied": lambda: self.other(self.second(self.norm(h))),
        }[self.way]()


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("shared", "norm: this norm is used 2 times"),
        ("shared convolution", "conv: this convolution is used 2 times"),
        ("sum", "conv: its output is used not only by norm but also in Twice"),
        ("functional relu", "norm: disconnected BatchNorm2d"),
        ("in-place relu", "conv: its output is used not only by norm"),
        ("two norms", "conv: its output is used not only by norm but also in"),
        ("returned", "conv: its output is used not only by norm but also as an output"),
        ("tied", "conv: it shares a parameter with second"),
    ],
)
@pytest.mark.parametrize("inplace", [False, True])
def test_what_cannot_be_converted_is_refused_and_left_alone(way, words, inplace):
    model = randomise(Twice(way))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=words):
        convert(model, "A", inplace=inplace)
    assert type(model.conv) is nn.Conv2d and model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_pairs_follow_the_run_and_not_the_names():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm2, self.conv2 = nn.BatchNorm2d(4), nn.Conv2d(5, 4, 1)
            self.norm1, self.conv1 = nn.BatchNorm2d(5), nn.Conv2d(3, 5, 1)

        def forward(self, x):
            return self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))

    model = randomise(Backwards()).double().eval()
    found = [(p.conv, p.norm) for p in pairs(model, images()).pairs]
    assert found == [("conv1", "norm1"), ("conv2", "norm2")]
    assert relative(convert(model, example=images())(images()), model(images())) < 1e-9


@pytest.mark.parametrize(("name", "convolutions"), [("resnet18", 20), ("resnet50", 53)])
def test_every_convolution_of_the_public_networks_has_its_norm(name, convolutions):
    found = pairs(torchvision.models.get_model(name).eval(), torch.randn(1, 3, 32, 32))
    assert len(found.pairs) == convolutions and not found.single


def test_failed_self_check_changes_nothing():
    model = conv_norm(nn.Conv2d(3, 4, 3), torch.float32).eval()
    model[1].running_var.fill_(-1.0)  # not a variance: nan before and after
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"the outputs differ by nan.*nothing was changed"):
        convert(model, "A", inplace=True)
    assert type(model[0]) is nn.Conv2d and conversion(model) is None
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("mode", ["A", "B"])
def test_converting_twice_changes_nothing_and_the_way_back_is_exact(mode):
    model = randomise(resnet(1, 10, "bn")).double().eval()
    before = copy.deepcopy(model.state_dict())
    once = convert(model, mode)
    for again in (convert(once, "A"), convert(once, "B")):
        assert all(torch.equal(v, once.state_dict()[k]) for k, v in again.state_dict().items())
        assert conversion(again) == conversion(once)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())  # a copy changed
    back = to_plain(once, "original")
    assert conversion(back) is None
    for key, value in back.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=1e-12, atol=1e-12)
    baked = to_plain(once)
    assert relative(baked(images()), model(images())) < 1e-12
    assert not any(isinstance(m, WSConv2d) for m in [*baked.modules(), *back.modules()])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: convert(resnet(1, 10), "C"), "mode must be A or B"),
        (lambda: convert(resnet(1, 10), example=torch.zeros(2, 5, 8, 8)),
         "ResNet does not run on the example"),
        (lambda: to_plain(nn.Sequential(WSConv2d(3, 4, 3)), "original"), "was not made by convert"),
        (lambda: convert(torchvision.models.DenseNet(8, (2, 2), 16, num_classes=2)),
         r"norm1: disconnected BatchNorm2d.*conv"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_the_labs_names(capsys):
    model = randomise(resnet(1, 10, "torch_bn")).double().eval()
    old = model(images())
    assert bntoWSconverter(model) is model
    assert relative(model(images()), old) < 1e-9
    assert "got one: norm after conv" in capsys.readouterr().out
    assert EPS == 1e-12
    replacement = nn.Identity()
    setbyname2(model, "stage1.0.conv1", replacement)
    assert model.stage1[0].conv1 is replacement
    with pytest.raises(AttributeError):
        setbyname2(model, "stage1.7.conv1", replacement)


# ---- training ----


def losses_of(model, steps=6):
    """Return the loss of each step of SGD on the same batches."""
    optimizer = torch.optim.SGD(model.train().parameters(), 0.05, 0.9, weight_decay=1e-4)
    found = []
    for step in range(steps):
        x = images(seed=step)
        loss = nn.functional.cross_entropy(model(x), torch.arange(4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return torch.tensor(found, dtype=torch.float64)


def test_mode_a_trains_as_the_original_and_mode_b_does_not():
    torch.manual_seed(0)
    model = realistic(resnet(1, 4, "torch_bn").double())
    exact = copy.deepcopy(model)
    for norm in norms_of(exact):
        norm.eps = 1e-20  # nothing but eps tells the two apart in training
    old = losses_of(copy.deepcopy(exact))
    torch.testing.assert_close(losses_of(convert(exact, "A")), old, rtol=1e-7, atol=0)
    usual = losses_of(copy.deepcopy(model))
    assert (losses_of(convert(model, "A")) - usual).abs().max() < 1e-2
    old = model.train()(images())
    assert relative(convert(model, "A").train()(images()), old) < 1e-2
    assert relative(convert(model, "B").train()(images()), old) > 0.2


@pytest.mark.slow
def test_public_resnet20_keeps_its_predictions(shared_data):
    weights = str(shared_data / "weights" / "cifar10-resnet20.th")
    model, size, name = conversion_check.network(weights)
    photos = conversion_check.load_photos(str(shared_data / "cifar10"), size, "squash", 200)
    assert "ResNet-20" in name and len(photos.images) == 200
    rows = conversion_check.check(model, photos, ("A", "B"), ("float32",))
    output = [row for row in rows if row.layer == conversion_check.OUTPUT]
    assert len(rows) == 2 * (19 + 1) and len(output) == 2
    for row in output:
        assert row.mae < 1e-4 and row.changed == 0
        assert row.accuracy == row.accuracy_converted and row.accuracy > 0.75
