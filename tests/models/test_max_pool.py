"""Max-pooling: every derivative as torch's own, ties included; tasks under vmap; and before or after the activation."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import grad, gradcheck, gradgradcheck
from torch.nn import functional as F

from fewstep.models.batch_norm import normalise
from fewstep.models.max_pool import max_pool

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def second_order(pool, x):
    """Output, gradient and Hessian-vector product of a loss over the pooled maps."""
    y = pool(x)
    (dx,) = grad(y.pow(3).sum(), x, create_graph=True)
    return [y, dx, *grad(dx.square().sum(), x)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(2, 2), (5, 4), (7, 7)])
def test_derivatives_match_finite_differences_and_keep_the_layout(layout, size):
    x = torch.randn(2, 3, *size, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    assert gradcheck(max_pool, (x,))
    assert gradgradcheck(max_pool, (x,))
    assert all(t.is_contiguous(memory_format=layout) for t in second_order(max_pool, x))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_equal_to_torch_with_ties(layout):
    x = torch.randint(-2, 2, (4, 8, 9, 6)).double().contiguous(memory_format=layout).requires_grad_()
    for mine, theirs in zip(second_order(max_pool, x), second_order(lambda x: F.max_pool2d(x, 2), x), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("slope", [0.0, 0.01])
def test_pooling_before_the_activation_changes_nothing(slope):
    x = torch.randint(-2, 2, (4, 8, 6, 6)).double().requires_grad_()
    before = second_order(lambda x: F.leaky_relu(max_pool(x), slope), x)
    after = second_order(lambda x: F.max_pool2d(F.leaky_relu(x, slope), 2), x)
    for mine, theirs in zip(before, after, strict=True):
        assert torch.equal(mine, theirs)


def test_third_derivative_matches_finite_differences():
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert gradgradcheck(lambda x: grad(max_pool(x).pow(4).sum(), x, create_graph=True), (x,))


def test_tasks_under_vmap_equal_a_loop():
    images = torch.randn(3, 2, 4, 5, 6, dtype=torch.float64)

    def meta_gradient(images):
        def loss(x):
            return max_pool(x).pow(3).sum()

        return torch.func.grad(lambda x: loss(x - 0.1 * torch.func.grad(loss)(x)))(images)

    torch.testing.assert_close(torch.func.vmap(meta_gradient)(images), torch.stack([meta_gradient(t) for t in images]))


def test_compiled_second_derivative_equals_eager():
    # Fails if the compiler takes the functions apart: it loses their own derivatives.
    def loss(x):
        return max_pool(normalise(x.sin(), None, None, 1e-5)[0]).pow(3).sum()

    def second(x):
        return torch.func.grad(lambda x: torch.func.grad(loss)(x).square().sum())(x)

    x = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(torch.compile(second, backend="aot_eager", fullgraph=True)(x), second(x))


def test_a_pass_of_fake_tensors_leaves_nothing_for_later_ones():
    """Nor is what real ones left of use to it."""

    def gradient(x):
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(max_pool(leaf).square().sum(), leaf)[0]

    for size in (6, 10):
        x = torch.randn(2, 3, size, size + 2)
        if size == 10:
            gradient(x)
        with FakeTensorMode() as mode:
            assert gradient(mode.from_tensor(x)).shape == x.shape
        assert type(gradient(x)) is torch.Tensor
