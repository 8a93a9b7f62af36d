"""The searches on a Transformer: cached steps, padded batches and the log-probabilities of teacher forcing."""

import pytest
import torch

from lit_models.translation.search import beam_search, greedy_search, sample_search, score_target
from lit_models.translation.transformer import Transformer, TransformerConfig

LENGTHS = [9, 3, 6, 2, 12]


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(3)
    sizes = {"dim": 32, "feed_forward_dim": 64, "num_heads": 4, "encoder_layers": 2, "decoder_layers": 2}
    network = Transformer(TransformerConfig(**sizes, tie_output=False, output_bias=True), 40).eval()
    with torch.no_grad():
        network.output_projection.weight *= 2.0
        network.output_bias[network.config.eos_id] = 3.0  # an untrained network seldom ends a sentence by itself
    return network


@pytest.fixture(scope="module")
def source():
    generator = torch.Generator().manual_seed(0)
    source = torch.randint(4, 40, (len(LENGTHS), max(LENGTHS)), generator=generator)
    for row, length in enumerate(LENGTHS):
        source[row, length - 1] = 3
        source[row, length:] = 0
    return source


def search(network, source, lengths, function, **options):
    lengths = torch.tensor(lengths, dtype=torch.int32)
    with torch.inference_mode():
        return function(network, network.encode(source, lengths), lengths, **options)


SEARCHES = [(greedy_search, {}), (beam_search, {"beam_size": 4, "num_hypotheses": 3})]


@pytest.mark.parametrize(("function", "options"), SEARCHES)
def test_log_prob_is_that_of_teacher_forcing(network, source, function, options):
    for row, found in enumerate(search(network, source, LENGTHS, function, **options)):
        for hypothesis in found:
            assert hypothesis.finished
            target = torch.tensor([[2, *hypothesis.tokens, 3]])
            lengths = torch.tensor(LENGTHS[row : row + 1])
            log_prob = score_target(network, source[row : row + 1], lengths, target[:, :-1], target[:, 1:])
            assert hypothesis.log_prob == pytest.approx(log_prob.item(), abs=1e-4)


def test_score_target_ignores_padding(network, source):
    lengths = torch.tensor(LENGTHS)
    target = torch.tensor([[2, 7, 8, 3, 0, 0]] * 5)
    padded = score_target(network, source, lengths, target[:, :-1], target[:, 1:])
    torch.testing.assert_close(padded, score_target(network, source, lengths, target[:, :3], target[:, 1:4]))
    assert (padded < 0).all() and padded.shape == (5,)


@pytest.mark.parametrize(("function", "options"), SEARCHES)
def test_result_does_not_depend_on_the_batch(network, source, function, options):
    together = search(network, source, LENGTHS, function, **options)
    for row, length in enumerate(LENGTHS):
        [alone] = search(network, source[row : row + 1, :length], [length], function, **options)
        assert [hypothesis.tokens for hypothesis in together[row]] == [hypothesis.tokens for hypothesis in alone]
        assert [h.score for h in together[row]] == pytest.approx([h.score for h in alone], abs=1e-4)


def test_beam_of_one_is_greedy(network, source):
    greedy = search(network, source, LENGTHS, greedy_search)
    assert search(network, source, LENGTHS, beam_search, beam_size=1) == greedy
    # The machinery of wider beams, with a single hypothesis in it.
    beam = search(network, source, LENGTHS, beam_search, beam_size=1, stop="first")
    assert [best.tokens for [best] in beam] == [best.tokens for [best] in greedy]
    assert [best.score for [best] in beam] == pytest.approx([best.score for [best] in greedy], abs=1e-5)


def test_wider_beams_do_not_score_worse_here(network, source):
    narrow = search(network, source, LENGTHS, beam_search, beam_size=2)
    wide = search(network, source, LENGTHS, beam_search, beam_size=12)
    assert sum(best.score for [best] in wide) >= sum(best.score for [best] in narrow)


def test_sampling_runs_with_several_rows_per_sentence(network, source):
    generator = torch.Generator().manual_seed(5)
    found = search(network, source, LENGTHS, sample_search, num_hypotheses=3, generator=generator)
    assert [len(hypotheses) for hypotheses in found] == [3] * 5
    for row, hypotheses in enumerate(found):
        best = hypotheses[0]
        if best.finished:
            target = torch.tensor([[2, *best.tokens, 3]])
            lengths = torch.tensor(LENGTHS[row : row + 1])
            log_prob = score_target(network, source[row : row + 1], lengths, target[:, :-1], target[:, 1:])
            assert best.log_prob == pytest.approx(log_prob.item(), abs=1e-4)
