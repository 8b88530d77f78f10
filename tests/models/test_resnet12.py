"""ResNet12: its size and output by hand, exact second-order meta-gradients, and what it refuses."""

import pytest
import torch
from problems import directional, images, lively, relative
from torch.func import functional_call, vmap
from torch.nn import functional as F

import fewstep
from fewstep.errors import BadInput
from fewstep.models import ResNet12

TINY = {"channels": 1, "image_size": 16, "widths": (2, 3, 4, 5)}


@pytest.mark.parametrize("widths", [(64, 128, 256, 512), (64, 160, 320, 640), (3,)])
def test_size_by_hand(widths):
    model, expected, channels = ResNet12(ways=7, widths=widths), 0, 3
    for width in widths:
        convolutions = 9 * (channels * width + 2 * width * width) + channels * width
        expected += convolutions + 4 * 2 * width  # four norms with a weight and a bias
        channels = width
    assert sum(p.numel() for p in model.parameters()) == expected + 7 * (channels + 1)
    assert not list(model.buffers())


def test_the_papers_sizes():
    assert sum(p.numel() for p in ResNet12().parameters()) == 7_996_800 + 5 * 513
    convolutions = [m for m in ResNet12().modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convolutions) == 12


@pytest.mark.parametrize(("size", "channels"), [(16, 1), ((16, 37), 3)])
def test_output_is_the_plain_network(size, channels):
    model = ResNet12(4, channels, size, (2, 3, 4, 5), negative_slope=0.2).double()
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    x = torch.randn(3, channels, *((size, size) if isinstance(size, int) else size)).double()

    def normed(x, norm):
        return F.batch_norm(x, None, None, norm.weight, norm.bias, training=True)

    h = x
    for block in model.blocks:
        whole = normed(F.conv2d(h, block.shortcut.weight), block.shortcut_norm)
        for conv, norm, last in zip(block.convs, block.norms, (False, False, True), strict=True):
            h = normed(F.conv2d(h, conv.weight, padding=1), norm)
            h = h if last else F.leaky_relu(h, 0.2)
        h = F.max_pool2d(F.leaky_relu(h + whole, 0.2), 2)
    torch.testing.assert_close(model(x), model.head(h.mean((2, 3))))


def learner(strategy="auto"):
    torch.manual_seed(1)
    model = ResNet12(ways=3, **TINY).double()
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    # One norm after another magnifies a step, so that a smaller one is lively enough.
    method = lively("maml").replace(steps=2, rule__rate=0.05)
    return fewstep.Learner(model, method, strategy=strategy)


@pytest.mark.parametrize("part", ["convs.0.weight", "norms.1.weight", "shortcut.weight", "shortcut_norm.bias", "head"])
def test_the_second_order_meta_gradient_is_the_slope_of_the_meta_loss(part):
    model, batch = learner(), images()
    names = [name for name in model.meta_parameters() if part in name]
    found = model.meta_gradient(batch).gradients
    slope, direction = directional(model, batch, 0.0, names, h=1e-7)
    assert sum(float((found[n] * direction[n]).sum()) for n in names) == pytest.approx(slope, rel=1e-4, abs=1e-7)
    model.method = model.method.replace(order=fewstep.methods.FirstOrder())
    first = model.meta_gradient(batch).gradients
    assert relative({n: first[n] for n in names}, {n: found[n] for n in names}) > 1e-3  # the test would see it


def test_every_strategy_gives_the_same():
    batch = images()
    expected = learner("loop").meta_gradient(batch)
    for strategy in ("vectorized", "recompute"):
        found = learner(strategy).meta_gradient(batch)
        assert relative(found.gradients, expected.gradients) < 1e-9
        torch.testing.assert_close(found.query_logits, expected.query_logits)


@pytest.mark.parametrize("channels", [1, 3])
def test_every_map_keeps_channels_last_through_inner_steps(channels):
    model, seen = ResNet12(5, channels, 32, (4, 8, 8, 8)), []
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.BatchNorm2d):
            module.register_forward_hook(lambda *args: seen.append(args[-1]))
    x, y = torch.randn(5, channels, 32, 32), torch.arange(5)
    weights = dict(model.named_parameters())
    for _ in range(2):
        loss = F.cross_entropy(functional_call(model, weights, (x,)), y)
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        weights = {name: w - 0.1 * g for (name, w), g in zip(weights.items(), gradients, strict=True)}
    assert len(seen) == 2 * 4 * 8
    assert all(map_.is_contiguous(memory_format=torch.channels_last) for map_ in seen)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 15}, "images of 15×15 pixels are too small for 4 residual blocks: the smallest is 16×16"),
        ({"image_size": (28, 15)}, "images of 28×15 pixels"),
        ({"image_size": 3, "widths": (4, 4)}, "too small for 2 residual blocks: the smallest is 4×4"),
        ({"widths": ()}, r"blocks of widths \(\)"),
        ({"widths": (4, 0)}, r"blocks of widths \(4, 0\)"),
        ({"ways": 0}, "0 ways"),
        ({"negative_slope": -0.1}, "negative_slope is -0.1"),
    ],
)
def test_what_cannot_be_built_is_refused(options, message):
    with pytest.raises(BadInput, match=message):
        ResNet12(**options)


def test_other_images_are_refused():
    model = ResNet12(**TINY)
    with pytest.raises(BadInput, match="this ResNet12 was built for images of 1×16×16; it was given 3×16×16"):
        model(torch.zeros(2, 3, 16, 16))
    with pytest.raises(BadInput, match="it was given 1×17×16"):
        vmap(model)(torch.zeros(4, 2, 1, 17, 16))
