"""Adaptation by batch-norm statistics, against its formulas, on small networks."""

from __future__ import annotations

import copy
import functools
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from core.labs import update_bn_params
from core.layers.norms import BatchNorm
from core.layers.running import bn_layers, changed_tensors, changes
from core.models.resnet import resnet
from core.shift import adaptation
from core.shift.adaptation import adapt, stream
from tests.support.calls import error_of

STATISTICS = {"running_mean", "running_var", "num_batches_tracked"}


@pytest.fixture
def model() -> nn.Module:
    """A ResNet-8 whose statistics are not those of a fresh one."""
    torch.manual_seed(0)
    made = resnet(1, 5, "torch_bn")
    with torch.no_grad():
        for _ in range(5):
            made(torch.randn(16, 3, 16, 16))
    return made.eval()


@pytest.fixture
def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [1 + 2 * torch.randn(8, 3, 16, 16, generator=generator) for _ in range(6)]


def kinds(names) -> set[str]:
    return {name.rpartition(".")[2] for name in names}


@pytest.mark.parametrize("method", adaptation.METHODS)
def test_the_source_is_never_changed(model, batches, method):
    before = copy.deepcopy(model)
    adapted = adapt(model, batches, method, num_bn_updates=3).model
    for batch in batches:
        adapted(batch)
    assert changed_tensors(before, model) == ()
    assert not any(m.training for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())


def test_running_changes_statistics_and_nothing_else(model, batches):
    adapted = adapt(model, batches, "running", num_bn_updates=4)
    assert adapted.updates == 4
    assert kinds(changed_tensors(model, adapted.model)) == STATISTICS
    assert not any(m.training for m in adapted.model.modules())
    for options in ({}, {"cumulative": True}):  # no update is the source exactly
        adapted = adapt(model, batches, "running", num_bn_updates=0, **options)
        assert adapted.updates == 0 and changed_tensors(model, adapted.model) == ()


def test_running_follows_the_moving_average(batches):
    norm = nn.BatchNorm2d(3, momentum=0.25)
    model = nn.Sequential(norm).eval()
    adapted = adapt(model, batches, "running", num_bn_updates=2).model
    mean, var = torch.zeros(3), torch.ones(3)
    for batch in batches[:2]:
        own_var, own_mean = torch.var_mean(batch, (0, 2, 3), correction=1)
        mean, var = 0.75 * mean + 0.25 * own_mean, 0.75 * var + 0.25 * own_var
    torch.testing.assert_close(adapted[0].running_mean, mean)
    torch.testing.assert_close(adapted[0].running_var, var)
    given = adapt(model, batches, "running", num_bn_updates=1, momentum=1.0).model
    torch.testing.assert_close(given[0].running_mean, batches[0].mean((0, 2, 3)))
    assert adapted[0].momentum == given[0].momentum == 0.25


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, BatchNorm])
@pytest.mark.parametrize("own", [None, 0.1])
def test_cumulative_forgets_the_source_however_long_it_was_trained(batches, norm, own):
    model = nn.Sequential(norm(3, momentum=own)).eval()
    model[0].num_batches_tracked.fill_(50_000)
    model[0].running_mean.fill_(7)
    adapted = adapt(model, batches, "running", num_bn_updates=6, cumulative=own is not None).model
    torch.testing.assert_close(adapted[0].running_mean, torch.cat(batches).mean((0, 2, 3)))
    assert adapted[0].momentum == own


def test_batch_equals_training_mode_and_leaves_no_trace(model, batches):
    adapted = adapt(model, [], "batch").model
    trained = copy.deepcopy(model).train()
    with torch.no_grad():
        torch.testing.assert_close(adapted(batches[0]), trained(batches[0]))
        again = adapted(batches[0])
        adapted(batches[1])
        assert torch.equal(adapted(batches[0]), again)
    assert changed_tensors(model, adapted) == ()


@pytest.mark.parametrize(("prior", "share"), [(0.0, 1.0), (24.0, 0.25), (1e12, 0.0)])
def test_prior_blends_source_and_batch(batches, prior, share):
    norm = nn.BatchNorm2d(3)
    norm.running_mean.fill_(2)
    norm.running_var.fill_(4)
    adapted = adapt(nn.Sequential(norm).eval(), [], "prior", prior=prior).model
    x = batches[0]  # eight images: of 24 + 8 a quarter
    own_var, own_mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
    mean, var = (1 - share) * 2 + share * own_mean, (1 - share) * 4 + share * own_var
    for _ in range(2):  # each batch is blended with the source, not with the last one's blend
        torch.testing.assert_close(adapted(x), (x - mean) / (var + norm.eps).sqrt())
        adapted(batches[1])


def test_tent_lowers_entropy_by_scale_and_shift_alone(model, batches):
    tent = adapt(model, [], "tent", lr=0.01).model
    with torch.inference_mode():  # as in scoring
        logits = [tent(batches[0]) for _ in range(20)]
    entropy = [-(z.softmax(1) * z.log_softmax(1)).sum(1).mean().item() for z in logits]
    assert entropy[-1] < entropy[0]
    changed = changed_tensors(model, tent.model)
    norms = {f"{name}.{kind}" for name in bn_layers(model) for kind in ("weight", "bias")}
    assert changed and set(changed) <= norms
    # predictions are those before the step
    torch.testing.assert_close(logits[0], adapt(model, [], "batch").model(batches[0]))


def test_tent_leaves_frozen_scales_alone_and_needs_some(model, batches):
    layers = bn_layers(model)
    frozen = next(iter(layers))
    layers[frozen].requires_grad_(False)
    tent = adapt(model, [], "tent", lr=0.01).model
    tent(batches[0])
    assert not [n for n in changed_tensors(model, tent.model) if n.startswith(f"{frozen}.")]
    assert "scale and shift" in error_of(adapt, model.requires_grad_(False), [], "tent")


@pytest.mark.parametrize("norm", ["bn", "bin"])
@pytest.mark.parametrize("method", ["running", "batch", "prior", "tent"])
def test_own_layers_adapt_too(norm, method, batches):
    torch.manual_seed(0)
    model = resnet(1, 5, norm).eval()
    adapted = adapt(model, batches, method, num_bn_updates=2).model
    with torch.no_grad():
        plain, moved = model(batches[0]), adapted(batches[0])
    assert moved.isfinite().all() and not torch.allclose(plain, moved)


class Ends(nn.Module):
    """Dropout, batch norm on vectors, and a branch of its own for training."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm2d = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.dropout, self.norm1d = nn.Dropout(0.9), nn.BatchNorm1d(4)

    def forward(self, x):
        assert not self.training
        return self.norm1d(self.dropout(self.norm2d(self.conv(x)).mean((2, 3))))


@pytest.mark.parametrize("method", ["running", "batch", "prior", "tent"])
def test_batches_of_one_image_keep_vectors_statistics(method):
    torch.manual_seed(0)
    model = Ends().eval()
    ones = [torch.randn(1, 3, 8, 8) for _ in range(3)]
    adapted = adapt(model, ones, method, num_bn_updates=3).model
    out = adapted(ones[0])
    assert out.isfinite().all()
    names = changed_tensors(model, adapted.model if method == "tent" else adapted)
    assert not [n for n in names if n.startswith("norm1d.running")]
    if method == "running":
        assert {n.split(".")[0] for n in names} == {"norm2d"}


def test_dropout_stays_off(batches):
    model = Ends().eval()
    runs = [adapt(model, batches, "running", num_bn_updates=3).model for _ in range(2)]
    assert changed_tensors(*runs) == ()


@pytest.mark.parametrize("norm", ["gn", "ln", "in", "none", "torchvision's frozen"])
def test_models_without_batch_norm_are_refused(norm, batches):
    frozen = norm.endswith("frozen")
    model = nn.Sequential(FrozenBatchNorm2d(3)) if frozen else resnet(1, 5, norm)
    assert "no batch-norm layer" in error_of(adapt, model, batches, "running")


@pytest.mark.parametrize("wrapped", ["compiled", "in place", "within", "replicas"])
def test_compiled_and_replicated_models_adapt_as_the_plain_one(batches, wrapped):
    first, last = (nn.Sequential(nn.Conv2d(c, 4, 3), nn.BatchNorm2d(4)) for c in (3, 4))
    model = nn.Sequential(first, nn.ReLU(), last, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    x, plain = batches[-1], copy.deepcopy(model)
    compiled = torch.compile(model, backend="eager")
    source: nn.Module = compiled
    if wrapped == "in place":
        source = model
        model.compile(backend="eager")
    elif wrapped == "within":
        source = nn.Sequential(compiled).eval()
        plain = nn.Sequential(plain).eval()
    elif wrapped == "replicas":
        source = nn.DataParallel(model).eval()
    with torch.no_grad():
        unadapted = source(x)  # what is compiled is compiled for the source
        for method in adaptation.METHODS[1:]:
            expected = adapt(plain, batches, method, num_bn_updates=3).model(x)
            adapted = adapt(source, batches, method, num_bn_updates=3)
            assert torch.equal(adapted.model(x), expected), method
            assert not torch.equal(expected, unadapted), method
            assert torch.equal(source(x), unadapted), method
            if method == "running":
                assert [c.layer for c in changes(source, adapted.model)] == list(bn_layers(plain))
                assert kinds(changed_tensors(source, adapted.model)) == STATISTICS


@pytest.mark.parametrize("compiled", [torch.jit.script, lambda m: torch.jit.trace(m, X)])
def test_scripted_and_traced_models_are_refused_as_such(batches, compiled):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code = compiled(model)
    for source in (code, nn.Sequential(nn.BatchNorm2d(3), code)):
        assert "scripted or traced" in error_of(adapt, source, batches, "batch")


X = torch.ones(2, 3, 16, 16)


class StaysInEvaluation(nn.BatchNorm2d):
    """Frozen by refusing to train."""

    def train(self, mode: bool = True) -> nn.Module:
        return super().train(False)


class NeverLooks(nn.BatchNorm2d):
    """Frozen by its forward pass."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return nn.functional.batch_norm(input, self.running_mean, self.running_var)


@pytest.mark.parametrize("still", [
    functools.partial(nn.BatchNorm2d, track_running_stats=False), StaysInEvaluation, NeverLooks
])  # fmt: skip
def test_layers_whose_statistics_stand_still_are_left_alone_and_do_not_suffice(batches, still):
    model = nn.Sequential(nn.BatchNorm2d(3), still(3)).eval()
    assert list(bn_layers(model)) == ["0"]
    for method in adaptation.METHODS:
        assert adapt(model, batches, method).model(batches[0]).isfinite().all()
        if method != "none":
            told = error_of(adapt, nn.Sequential(still(3)).eval(), batches, method)
            assert "keeps running statistics that move" in told


def test_the_labs_function_stops_with_its_loader(model, batches):
    labelled = [(batch, torch.zeros(8)) for batch in batches]
    for asked, made in ((2, 2), (50, 6)):
        adapted = update_bn_params(model, labelled, SimpleNamespace(num_bn_updates=asked))
        counts = {layer.num_batches_tracked.item() for layer in bn_layers(adapted).values()}
        before = {layer.num_batches_tracked.item() for layer in bn_layers(model).values()}
        assert counts == {value + made for value in before}


@pytest.mark.parametrize(
    "options",
    [{"method": "best"}, {"num_bn_updates": -1}, {"momentum": 0.0}, {"momentum": 1.5},
     {"prior": -1.0}, {"lr": 0.0}],
    ids=lambda options: next(iter(options)),
)  # fmt: skip
def test_impossible_options_are_refused(model, options):
    assert next(iter(options)) in error_of(adapt, model, [], **{"method": "running"} | options)


def test_changes_tell_how_far_each_layer_moved():
    before, after = nn.Sequential(nn.BatchNorm2d(2)), nn.Sequential(nn.BatchNorm2d(2))
    before[0].running_var.fill_(4)
    after[0].running_mean.copy_(torch.tensor([2.0, -2.0]))
    after[0].running_var.fill_(1)
    (change,) = changes(before, after)
    assert change.layer == "0"
    assert change.shift == pytest.approx(1, rel=1e-4)
    assert change.ratio == pytest.approx(0.5, rel=1e-4)


# ---- streams ----

LABELS = np.repeat(np.arange(4), 25)


@pytest.mark.parametrize("order", adaptation.ORDERS)
def test_a_pass_holds_every_image_once_and_a_wrapped_stream_goes_on_with_another(order):
    batches = stream(LABELS, order, 3, batch_size=16)
    assert [len(b) for b in batches] == [16] * 6 + [4]
    assert sorted(np.concatenate(batches)) == list(range(100))
    batches = stream(LABELS, order, 3, batch_size=16, count=13, wrap=True)
    assert [len(b) for b in batches] == [16] * 13
    flat = np.concatenate(batches)
    assert sorted(flat[:100]) == sorted(flat[100:200]) == list(range(100))
    first, again, other = (np.concatenate(stream(LABELS, order, seed, 16)) for seed in (3, 3, 4))
    assert list(first) == list(again) == list(flat[:100])
    if order != "sorted":
        assert list(flat[:100]) != list(flat[100:200])
        assert list(first) != list(other)  # the order is the seed's


def test_orders_differ_in_how_many_classes_a_batch_holds():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 40))
    seen = {}
    for order in adaptation.ORDERS:
        batches = stream(labels, order, 0, 40)
        seen[order] = np.mean([len(np.unique(labels[b])) for b in batches])
    assert seen["sorted"] == 1 < seen["dirichlet"] < seen["shuffled"] - 2


def test_more_updates_than_images_need_wrap_and_batches_must_be_possible():
    told = error_of(stream, LABELS, "shuffled", 0, 16, count=7)
    for words in ("num_bn_updates=7", "112 images", "100", "at most 6", "--wrap"):
        assert words in told
    assert len(stream(LABELS, "shuffled", 0, 16, count=6)) == 6
    assert stream(LABELS, "shuffled", 0, 16, count=0) == []
    for size in (0, 101):
        told = error_of(stream, LABELS, "shuffled", 0, size)
        assert "batch_size" in told and "1 to 100" in told
    assert "shuffled, sorted, dirichlet" in error_of(stream, LABELS, "reversed", 0, 4)
