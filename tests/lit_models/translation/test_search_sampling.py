"""Sampling: the frequencies of what is drawn against the distribution it is drawn from."""

from types import SimpleNamespace

import pytest
import torch

from lit_models.translation.sampling import filter_log_probs, sample_search

PAD, BOS, EOS = 0, 2, 3
PROBABILITIES = torch.tensor([0.0, 0.4, 0.05, 0.25, 0.2, 0.1])
DRAWS = 20_000


class MemorylessNetwork:
    """The same distribution at every position; padding has a large logit that must not matter."""

    def __init__(self, probabilities=PROBABILITIES):
        self.config = SimpleNamespace(pad_id=PAD, bos_id=BOS, eos_id=EOS)
        self.logits = probabilities.log()
        self.logits[PAD] = 9.0

    def start(self, memory, memory_lengths, beam_size=1, max_length=64):
        return SimpleNamespace(select=lambda sentences: None)

    def step(self, tokens, state):
        return self.logits.repeat(len(tokens), 1)


def sample(network=None, sentences=1, seed=0, **options):
    memory = torch.zeros(sentences, 2, 1)
    lengths = torch.full((sentences,), 2)
    generator = torch.Generator().manual_seed(seed)
    return sample_search(network or MemorylessNetwork(), memory, lengths, generator=generator, **options)


def first_token_counts(**options):
    [found] = sample(num_hypotheses=DRAWS, max_length=1, **options)
    counts = torch.zeros(len(PROBABILITIES))
    for hypothesis in found:
        counts[hypothesis.tokens[0] if hypothesis.tokens else EOS] += 1
    return counts


def assert_distributed(counts, probabilities):
    possible = probabilities > 0
    assert counts[~possible].sum() == 0
    expected = probabilities[possible] * counts.sum()
    chi_square = ((counts[possible] - expected) ** 2 / expected).sum()
    assert chi_square < 20.5, "the 0.1 % quantile for five degrees of freedom"


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_the_network_s(temperature):
    expected = PROBABILITIES ** (1 / temperature)
    assert_distributed(first_token_counts(temperature=temperature), expected / expected.sum())


def test_top_k_draws_from_the_most_probable():
    assert_distributed(first_token_counts(top_k=3), torch.tensor([0.0, 0.4, 0.0, 0.25, 0.2, 0.0]) / 0.85)
    assert first_token_counts(top_k=1)[1] == DRAWS


def test_top_p_draws_from_the_nucleus():
    assert_distributed(first_token_counts(top_p=0.6), torch.tensor([0.0, 0.4, 0.0, 0.25, 0.0, 0.0]) / 0.65)
    assert first_token_counts(top_p=0.01)[1] == DRAWS


def test_temperature_comes_before_the_filters():
    flat = PROBABILITIES**0.1
    expected = torch.where(PROBABILITIES >= 0.2, flat, 0.0)
    assert_distributed(first_token_counts(temperature=10.0, top_k=3), expected / expected.sum())
    # The most probable token alone holds 0.40 at temperature 1, and 0.22 at temperature 10.
    assert (first_token_counts(top_p=0.3) > 0).sum() == 1
    assert (first_token_counts(temperature=10.0, top_p=0.3) > 0).sum() == 2


def test_filters_keep_exactly_what_they_say():
    log_probs = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.25, 0.25, 0.25, 0.25]]).log()
    assert filter_log_probs(log_probs, 2).isfinite().sum(1).tolist() == [2, 2]
    assert filter_log_probs(log_probs, 9, 1.0).equal(log_probs)
    assert filter_log_probs(log_probs, 0, 0.65)[0].isfinite().tolist() == [False, True, False, True]
    assert filter_log_probs(log_probs, 0, 0.4999)[1].isfinite().sum() == 2
    assert filter_log_probs(log_probs + 5.0, 0, 0.65)[0].isfinite().tolist() == [False, True, False, True]
    assert filter_log_probs(log_probs, 3, 0.75)[0].isfinite().tolist() == [False, True, False, True]


def test_same_seed_same_translations():
    assert sample(sentences=4, num_hypotheses=3, seed=1) == sample(sentences=4, num_hypotheses=3, seed=1)
    assert sample(sentences=4, num_hypotheses=3, seed=1) != sample(sentences=4, num_hypotheses=3, seed=2)


def test_scores_are_the_network_s_own():
    for found in sample(sentences=5, num_hypotheses=4, max_length=6, temperature=3.0, top_k=4, length_penalty=1.0):
        assert [hypothesis.score for hypothesis in found] == sorted((h.score for h in found), reverse=True)
        for hypothesis in found:
            assert EOS not in hypothesis.tokens and PAD not in hypothesis.tokens
            tokens = hypothesis.tokens + [EOS] * hypothesis.finished
            log_prob = PROBABILITIES[tokens].log().sum().item()
            assert hypothesis.log_prob == pytest.approx(log_prob, abs=1e-5)
            assert hypothesis.score == pytest.approx(log_prob / ((5 + len(tokens)) / 6), abs=1e-5)
            assert hypothesis.finished or len(tokens) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0; it must be above 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"temperature": 1e-40}, "temperature is 1e-40; .* at least 1e-06"),
        ({"length_penalty": float("nan")}, "length_penalty is nan; it must be a finite number"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"num_hypotheses": 0}, "num_hypotheses is 0"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        sample(**options)


def test_broken_weights_are_reported():
    with pytest.raises(ValueError, match="NaN"):
        sample(MemorylessNetwork(torch.full((6,), float("nan"))), max_length=3)
