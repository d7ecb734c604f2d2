"""The next token: greedy, cut to top_k and top_p by hand, drawn from each row's own generator."""

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from tuneful.config import GenerateConfig
from tuneful.infer.sample import next_tokens

PROBABILITIES = [0.5, 0.3, 0.15, 0.05]
NUM_DRAWS = 8000


def generators(count, seed=0):
    return [torch.Generator().manual_seed(seed + row) for row in range(count)]


def shares(**settings):
    """How often each of four tokens is drawn."""
    logits = torch.tensor(PROBABILITIES).log().expand(NUM_DRAWS, -1)
    one = torch.Generator().manual_seed(0)
    tokens = next_tokens(logits, GenerateConfig(**settings), [one] * NUM_DRAWS)
    return (torch.bincount(tokens, minlength=4) / NUM_DRAWS).tolist()


def normal(weights):
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"temperature": 1}, PROBABILITIES),
        ({"temperature": 2}, normal([p**0.5 for p in PROBABILITIES])),
        ({"temperature": 0.5}, normal([p**2 for p in PROBABILITIES])),
        ({"temperature": 1, "top_k": 2}, normal([0.5, 0.3, 0, 0])),
        ({"temperature": 1, "top_k": 9}, PROBABILITIES),
        ({"temperature": 1, "top_p": 0.4}, [1, 0, 0, 0]),
        ({"temperature": 1, "top_p": 0.6}, normal([0.5, 0.3, 0, 0])),  # the token that crosses top_p stays
        ({"temperature": 1, "top_p": 0.9}, normal([0.5, 0.3, 0.15, 0])),
        (
            {"temperature": 1, "top_k": 3, "top_p": 0.83},
            normal([0.5, 0.3, 0, 0]),
        ),  # top_p of what top_k left: 0.79 of 0.95
        ({"temperature": 1, "min_p": 0.29}, normal([0.5, 0.3, 0.15, 0])),  # 0.29 of 0.5 is 0.145
        ({"temperature": 1, "min_p": 0.31}, normal([0.5, 0.3, 0, 0])),
        ({"temperature": 2, "min_p": 0.5}, normal([0.5**0.5, 0.3**0.5, 0.15**0.5, 0])),  # of the tempered probabilities
        ({"temperature": 1, "top_k": 2, "min_p": 0.7}, [1, 0, 0, 0]),
        ({"temperature": 2, "top_p": 0.4}, normal([0.5**0.5, 0.3**0.5, 0, 0])),  # top_p of the tempered: 0.39 is short
    ],
    ids=str,
)
def test_tokens_are_drawn_with_the_probabilities_worked_out_by_hand(settings, expected):
    found = shares(**settings)
    for share, probability in zip(found, expected, strict=True):
        assert share == pytest.approx(probability, abs=4.5 * (probability * (1 - probability) / NUM_DRAWS) ** 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_candidate_is_the_greedy_choice(dtype):
    torch.manual_seed(0)
    logits = torch.stack([torch.randperm(50) for _ in range(20)]).to(dtype)
    greedy = next_tokens(logits, GenerateConfig(temperature=0), generators(20))
    assert torch.equal(greedy, logits.argmax(-1))
    for settings in ({"top_k": 1}, {"top_p": 1e-6}):
        assert torch.equal(next_tokens(logits, GenerateConfig(temperature=1, **settings), generators(20)), greedy)


@pytest.mark.parametrize("penalty", [1.3, 0.7])
def test_the_repetition_penalty_is_that_of_transformers(penalty):
    torch.manual_seed(0)
    logits = torch.randn(5, 30)
    contexts = [torch.randint(30, (7,)).tolist() for _ in range(5)]
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor(contexts), logits.clone())
    config = GenerateConfig(repetition_penalty=penalty)
    assert next_tokens(logits, config, generators(5), contexts).tolist() == theirs.argmax(-1).tolist()
    sampled = GenerateConfig(repetition_penalty=penalty, temperature=1)
    plain = GenerateConfig(temperature=1)
    assert torch.equal(next_tokens(logits, sampled, generators(5), contexts), next_tokens(theirs, plain, generators(5)))


def test_a_top_p_that_is_0_in_float32_leaves_the_likeliest_token():
    logits = torch.tensor([[0.0, 3.0, 1.0]])
    config = GenerateConfig(temperature=1.0, top_p=1e-300)
    assert next_tokens(logits, config, [torch.Generator().manual_seed(0)]).tolist() == [1]


def test_greedy_takes_nothing_from_the_generators():
    own = generators(2)
    before = [generator.get_state() for generator in own]
    next_tokens(torch.rand(2, 5), GenerateConfig(temperature=0), own)
    assert all(torch.equal(generator.get_state(), state) for generator, state in zip(own, before, strict=True))


def test_a_row_draws_the_same_whoever_stands_beside_it():
    torch.manual_seed(0)
    logits = torch.randn(6, 40)
    config = GenerateConfig(temperature=1)
    together = next_tokens(logits, config, generators(6))
    alone = [next_tokens(logits[row : row + 1], config, [generators(6)[row]]).item() for row in range(6)]
    assert together.tolist() == alone


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [7, 64, 1000, 4099])
def test_of_equal_logits_the_first_is_the_greedy_token_whatever_the_precision(dtype, size):
    generator = torch.Generator().manual_seed(size)
    logits = torch.randint(0, 4, (5, size), generator=generator).to(dtype)  # the largest stands in many places
    logits[0], logits[1, :-1] = 0, -1
    found = next_tokens(logits, GenerateConfig(temperature=0), generators(5))
    assert found.tolist() == [row.index(max(row)) for row in logits.tolist()]
