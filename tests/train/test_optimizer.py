"""AdamW over float32 masters beside torch's own; schedules by hand."""

import math

import pytest
import torch
from tests.doubles.engine import TRIE, random_records, tiny_model, train_config

from tuneful.train.loop import Training
from tuneful.train.optimizer import AdamW, learning_rate

pytestmark = pytest.mark.usefixtures("arithmetic")


def small_model():
    """A model of one layer, with matrices and vectors."""
    return tiny_model("gpt2", n_embd=8, n_layer=1, n_head=2, n_positions=8)


def give_gradients(model, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        gradient = scale * torch.randn(parameter.shape, generator=generator)
        parameter.grad = gradient.to(parameter.dtype)


def weights_of(model):
    return torch.cat([parameter.detach().float().flatten() for parameter in model.parameters()])


def bits_of(model):
    return [parameter.detach().view(torch.int32).clone() for parameter in model.parameters()]


# --------------------------------------------------------------------------------------------------------------- AdamW


@pytest.fixture(params=[1 << 20, 37], ids=["all together", "in stretches"])
def batch_elements(request, monkeypatch):
    """How many elements are stepped at once: more than a small model has, or fewer than most of its tensors have."""
    monkeypatch.setattr("tuneful.train.update.BATCH_ELEMENTS", request.param)


@pytest.mark.usefixtures("batch_elements")
@pytest.mark.parametrize("max_grad_norm", [1.0, 0.0])
def test_ten_steps_equal_torchs_own_adamw_with_clipping_and_decay_on_matrices_only(max_grad_norm):
    ours, theirs = small_model(), small_model()
    config = train_config(weight_decay=0.1, max_grad_norm=max_grad_norm)
    optimizer = AdamW(ours, config, torch.float32)
    groups = [
        {"params": [p for p in theirs.parameters() if (p.ndim > 1) == decays], "weight_decay": decay}
        for decays, decay in ((True, 0.1), (False, 0.0))
    ]
    oracle = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, fused=False, foreach=False)
    for step in range(10):
        scale = 3.0 if step % 2 else 0.01  # above and below the norm that is clipped to
        for model in (ours, theirs):
            give_gradients(model, step, scale)
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), max_grad_norm or math.inf)
        assert (norm > 1) == (scale == 3.0)
        for group in oracle.param_groups:
            group["lr"] = 1e-2 / (step + 1)
        oracle.step()
        assert optimizer.step(1e-2 / (step + 1)) == pytest.approx(norm.item(), rel=1e-6)
        torch.testing.assert_close(weights_of(ours), weights_of(theirs), rtol=1e-6, atol=1e-6)
    assert all(parameter.grad is None for parameter in ours.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_however_many_elements_are_stepped_at_once_the_weights_are_the_same_bits(dtype, monkeypatch):
    """Of whole vectors: what is left over a CPU computes one by one, and rounds otherwise."""
    monkeypatch.setattr("tuneful.train.update.kernels", lambda device, dtype: None)
    found = []
    for elements in (1 << 26, 1 << 20, 4096, 64):
        monkeypatch.setattr("tuneful.train.update.BATCH_ELEMENTS", elements)
        model = tiny_model()
        optimizer = AdamW(model, train_config(weight_decay=0.1, max_grad_norm=0), dtype)
        for step in range(3):
            give_gradients(model, step)
            optimizer.step(1e-2, loss_scale=4.0)
        optimizer.masters_to_model()
        found.append(bits_of(model))
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


def test_gradients_of_a_multiple_of_the_loss_give_the_step_of_the_loss():
    once, scaled = small_model(), small_model()
    for model, scale in ((once, 1.0), (scaled, 1024.0)):
        optimizer = AdamW(model, train_config(), torch.float32)
        for step in range(3):
            give_gradients(model, step, scale)
            norm = optimizer.step(1e-2, scale)
    torch.testing.assert_close(weights_of(once), weights_of(scaled), rtol=1e-6, atol=1e-7)
    give_gradients(once, 2)
    assert norm == pytest.approx(torch.nn.utils.get_total_norm([p.grad for p in once.parameters()]).item(), rel=1e-5)


def test_norms_and_biases_do_not_decay():
    model = small_model()
    optimizer = AdamW(model, train_config(weight_decay=0.5), torch.float32)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(0.1)
    for parameter, old in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.detach(), old * (0.95 if old.ndim > 1 else 1.0))


def test_frozen_parameters_stay_as_they_are():
    model = small_model()
    embedding = model.get_input_embeddings().weight.requires_grad_(False)
    frozen = embedding.detach().clone()
    optimizer = AdamW(model, train_config(), torch.bfloat16)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer.step(0.1)
    optimizer.masters_to_model()
    assert torch.equal(embedding, frozen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_that_is_not_finite_changes_neither_weights_nor_moments(dtype):
    once, undisturbed = small_model(), small_model()
    optimizers = [AdamW(model, train_config(), dtype) for model in (once, undisturbed)]
    for model, optimizer in zip((once, undisturbed), optimizers, strict=True):
        give_gradients(model, 1)
        optimizer.step(1e-2)
        if model is once:
            give_gradients(model, 2)
            next(model.parameters()).grad[0, 0] = torch.nan
            assert math.isnan(optimizer.step(1e-2))
            assert all(parameter.grad is None for parameter in model.parameters())
        give_gradients(model, 3)
        optimizer.step(1e-2)  # would differ if the moments or the count of steps had changed
        optimizer.masters_to_model()
    assert all(torch.equal(one, other) for one, other in zip(bits_of(once), bits_of(undisturbed), strict=True))


def test_a_weight_whose_rows_are_not_neighbours_in_memory_is_trained_all_the_same():
    apart, together = small_model(), small_model()
    weight = apart.get_input_embeddings().weight
    weight.data = weight.data.T.contiguous().T
    for model in (apart, together):
        optimizer = AdamW(model, train_config(), torch.float32)
        give_gradients(model, 1)
        optimizer.step(1e-2)
    torch.testing.assert_close(weights_of(apart), weights_of(together))


# -------------------------------------------------------------------------------------------------- low-precision copies


@pytest.mark.usefixtures("batch_elements")
def test_the_low_precision_copy_is_the_master_rounded_and_the_model_ends_with_the_master():
    model = small_model()
    optimizer = AdamW(model, train_config(), torch.bfloat16)
    for step in range(5):
        assert all(parameter.dtype is torch.bfloat16 for parameter in model.parameters())
        give_gradients(model, step)
        optimizer.step(1e-3)
    copies = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer.masters_to_model()
    for parameter, copy in zip(model.parameters(), copies, strict=True):
        assert parameter.dtype is torch.float32
        assert torch.equal(parameter.detach().bfloat16(), copy)
    assert any(
        not torch.equal(parameter.detach(), copy.float())
        for parameter, copy in zip(model.parameters(), copies, strict=True)
    ), "the model got its low-precision copy back"


def test_masters_start_from_the_float32_weights_and_not_from_their_low_precision_copies():
    model, before = small_model(), weights_of(small_model())
    AdamW(model, train_config(), torch.bfloat16).masters_to_model()
    assert torch.equal(weights_of(model), before)


def test_small_updates_reach_the_weights_under_bfloat16_products():
    examples = random_records(16)
    config = train_config(learning_rate=1e-5, max_steps=100, batch_size=4, eval_steps=100)
    moved = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny_model()
        before = weights_of(model)
        optimizer = AdamW(model, config, dtype)
        for _ in Training(model, optimizer, examples, [], config, TRIE).run():
            pass
        optimizer.masters_to_model()
        moved[dtype] = weights_of(model) != before
    both = (moved[torch.float32] & moved[torch.bfloat16]).sum() / moved[torch.float32].sum()
    assert moved[torch.float32].float().mean() > 0.9
    assert both >= 0.99


def test_many_bfloat16_micro_batches_add_up_in_float32():
    model = small_model()
    optimizer = AdamW(model, train_config(), torch.bfloat16)
    size = sum(parameter.numel() for parameter in model.parameters())
    truth = torch.zeros(size, dtype=torch.float64)
    in_bfloat16 = torch.zeros(size, dtype=torch.bfloat16)
    for micro_batch in range(300):
        if micro_batch:
            optimizer.collect()
        give_gradients(model, micro_batch)
        for parameter in model.parameters():
            parameter.grad.abs_()  # of one sign, so that small ones drown in their sum
        gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        truth += gradient.double()
        in_bfloat16 += gradient
    norm, wanted = optimizer.step(1e-3), truth.norm().item()
    assert abs(in_bfloat16.double().norm().item() / wanted - 1) > 1e-2
    assert abs(norm / wanted - 1) < 1e-6


# ------------------------------------------------------------------------------------------------------- learning rate


def rates(num_steps, **changes):
    config = train_config(**{"learning_rate": 8.0, **changes})
    return [learning_rate(config, step, num_steps) for step in range(1, num_steps + 1)]


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0, [8, 8, 8, 8]),
        ("constant", 3, [2, 4, 6, 8]),
        ("linear", 0, [8, 6, 4, 2]),
        ("linear", 1, [4, 8, 16 / 3, 8 / 3]),
        ("linear", 0.25, [4, 8, 16 / 3, 8 / 3]),  # a share of four steps
        ("linear", 0.01, [4, 8, 16 / 3, 8 / 3]),  # a share is rounded up
        ("cosine", 0, [8, 4 + 2 * math.sqrt(2), 4, 4 - 2 * math.sqrt(2)]),
        ("cosine", 1, [4, 8, 6, 2]),
        ("cosine", 9, [0.8, 1.6, 2.4, 3.2]),  # a warmup longer than the run
    ],
)
def test_schedules_by_hand(schedule, warmup, expected):
    assert rates(4, lr_scheduler_type=schedule, warmup_steps=warmup) == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_a_rate_depends_on_nothing_but_the_step_and_is_never_zero(schedule):
    config = train_config(lr_scheduler_type=schedule, warmup_steps=0.1)
    forward = [learning_rate(config, step, 50) for step in range(1, 51)]
    backward = [learning_rate(config, step, 50) for step in range(50, 0, -1)]
    assert forward == backward[::-1]
    assert min(forward) > 0
    assert max(forward) == config.learning_rate
