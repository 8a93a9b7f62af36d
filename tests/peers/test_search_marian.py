"""Equal settings, equal translations: beam and greedy search against ``generate`` of Hugging Face's MarianMTModel."""

import pytest
import torch

from lit_models.pretrained.marian import from_marian
from lit_models.translation.search import beam_search, greedy_search

transformers = pytest.importorskip("transformers")

VOCAB, EOS, PAD = 60, 0, 59
LENGTHS = [5, 12, 3, 9, 1, 7, 12, 4]
MAX_LENGTH = 40
STOP_RULES = {"first": True, "estimate": False, "exact": "never"}


def sources(lengths, seed):
    source = torch.randint(1, PAD, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed))
    for row, length in enumerate(lengths):
        source[row, length - 1] = EOS
        source[row, length:] = PAD
    return source


@pytest.fixture(scope="module")
def marian():
    """A network that has learnt to copy every other token, roughly: unsure enough for a beam, and it ends sentences."""
    torch.manual_seed(11)
    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    config = transformers.MarianConfig(
        vocab_size=VOCAB, pad_token_id=PAD, eos_token_id=EOS, decoder_start_token_id=PAD, forced_eos_token_id=None,
        encoder_attention_heads=4, decoder_attention_heads=4, activation_function="swish", scale_embedding=True,
        max_position_embeddings=128, init_std=0.1, dropout=0.0, **sizes,
    )  # fmt: skip
    model = transformers.MarianMTModel(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(60):
        source = sources([2 + (step + row) % 12 for row in range(32)], step)
        target = torch.cat((source[:, ::2], source.new_full((32, 1), PAD)), 1)
        target.scatter_(1, ((target != PAD) & (target != EOS)).sum(1, keepdim=True), EOS)
        labels = target.masked_fill(target == PAD, -100)
        model(input_ids=source, attention_mask=(source != PAD).long(), labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.final_logits_bias[:, EOS] = 2.0  # no translation shall be cut: there the two differ on purpose
    model.final_logits_bias[:, PAD] = -torch.inf  # Hugging Face bans padding after the softmax, the project before it
    return model.eval()


@pytest.fixture(scope="module")
def source():
    return sources(LENGTHS, seed=1000)


def generate(marian, source, **options):
    """Lists of (tokens, score) for each sentence; tokens with EOS, if there is one."""
    count = options.get("num_return_sequences", 1)
    found = marian.generate(
        input_ids=source, attention_mask=(source != PAD).long(), max_new_tokens=MAX_LENGTH, do_sample=False,
        return_dict_in_generate=True, output_scores=True, **options,
    )  # fmt: skip
    rows = [[token for token in row if token != PAD] for row in found.sequences[:, 1:].tolist()]
    scores = found.sequences_scores.tolist() if options["num_beams"] > 1 else [None] * len(rows)
    pairs = list(zip(rows, scores, strict=True))
    return [pairs[first : first + count] for first in range(0, len(pairs), count)]


def search(marian, source, function, **options):
    network = from_marian(marian.state_dict(), marian.config.to_dict()).eval()
    lengths = torch.tensor(LENGTHS, dtype=torch.int32)
    with torch.inference_mode():
        memory = network.encode(source, lengths)
        found = function(network, memory, lengths, max_length=MAX_LENGTH, **options)
    return [[(h.tokens + [EOS] * h.finished, h.score) for h in hypotheses] for hypotheses in found]


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0, -1.0])
@pytest.mark.parametrize("stop", STOP_RULES)
@pytest.mark.parametrize("beam_size", [2, 4, 5])
def test_beam_search_equals_generate(marian, source, beam_size, stop, alpha):
    expected = generate(
        marian, source, num_beams=beam_size, num_return_sequences=2, length_penalty=alpha,
        early_stopping=STOP_RULES[stop],
    )  # fmt: skip
    found = search(
        marian, source, beam_search, beam_size=beam_size, num_hypotheses=2, length_penalty=alpha,
        length_penalty_kind="power", stop=stop,
    )  # fmt: skip
    assert all(tokens[-1] == EOS for pairs in expected for tokens, _ in pairs), "none was cut"
    assert len({len(tokens) for pairs in expected for tokens, _ in pairs}) > 2, "and they differ in length"
    for ours, theirs in zip(found, expected, strict=True):
        assert [tokens for tokens, _ in ours] == [tokens for tokens, _ in theirs]
        assert [score for _, score in ours] == pytest.approx([score for _, score in theirs], abs=2e-5)


def test_greedy_search_equals_generate(marian, source):
    expected = generate(marian, source, num_beams=1)
    for function, options in ((greedy_search, {}), (beam_search, {"beam_size": 1})):
        found = search(marian, source, function, **options)
        assert [tokens for [(tokens, _)] in found] == [tokens for [(tokens, _)] in expected]
