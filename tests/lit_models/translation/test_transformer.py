"""The Transformer: what each known mistake of re-implementations would break."""

import math
from dataclasses import replace

import pytest
import torch

from lit_models.layers import MultiHeadAttention
from lit_models.translation.transformer import Transformer, TransformerConfig

SMALL = TransformerConfig(dim=16, feed_forward_dim=24, num_heads=4, encoder_layers=2, decoder_layers=2, dropout=0.0)
VOCABULARY = 24


def build(**changes):
    network = Transformer(replace(SMALL, **changes), VOCABULARY).eval()
    for parameter in network.parameters():  # nothing at its neutral value: a swap of two of them must show
        if parameter.dim() == 1:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return network


def draw(source_length=7, target_length=6):
    lengths = torch.tensor([source_length, 3, 5], dtype=torch.int32)
    source = torch.randint(4, VOCABULARY, (3, source_length))
    source[torch.arange(source_length) >= lengths[:, None]] = 0
    target = torch.randint(4, VOCABULARY, (3, target_length))
    target[:, 0] = 2
    return source, lengths, target


@pytest.mark.parametrize("norm_order", ["pre", "post"])
def test_layers_follow_the_paper(norm_order):
    """The whole network once more, written down sublayer by sublayer."""
    network = build(norm_order=norm_order, activation="relu")
    source, lengths, target = draw()

    def residual(x, sublayer, norm_before, norm_after):
        return x + sublayer(norm_before(x)) if norm_order == "pre" else norm_after(x + sublayer(x))

    def embed(tokens):
        scaled = network.target_embedding.weight[tokens] * math.sqrt(16)
        return scaled + network.source_positions(0, tokens.shape[1], scaled)

    def stack(x, input_norm, layers, sublayers_of):
        norm_before = input_norm  # in a pre-norm network each norm opens the sublayer that comes next
        for layer in layers:
            for sublayer, norm in sublayers_of(layer):
                x = residual(
                    x, sublayer, norm_before, lambda y, norm=norm: torch.nn.LayerNorm.forward(norm_of(norm), y)
                )
                norm_before = lambda y, norm=norm: torch.nn.LayerNorm.forward(norm_of(norm), y)  # noqa: E731
        return norm_before(x) if norm_order == "pre" else x

    def norm_of(module):
        reference = torch.nn.LayerNorm(16)
        reference.weight, reference.bias = module.weight, module.bias
        return reference

    def feed_forward(layer):
        return lambda x: layer.feed_forward.contract(torch.relu(layer.feed_forward.expand(x)))

    memory = stack(
        embed(source),
        network.encoder_input_norm,
        network.encoder_layers,
        lambda layer: [
            (lambda x: layer.self_attention(x, key_lengths=lengths), layer.self_attention_norm),
            (feed_forward(layer), layer.feed_forward_norm),
        ],
    )
    hidden = stack(
        embed(target),
        network.decoder_input_norm,
        network.decoder_layers,
        lambda layer: [
            (lambda x: layer.self_attention(x, causal=True), layer.self_attention_norm),
            (lambda x: layer.cross_attention(x, memory, key_lengths=lengths), layer.cross_attention_norm),
            (feed_forward(layer), layer.feed_forward_norm),
        ],
    )
    expected = hidden @ network.target_embedding.weight.T
    torch.testing.assert_close(network(source, lengths, target), expected, atol=1e-5, rtol=1e-5)


def test_attention_layer_equals_torch():
    ours = MultiHeadAttention(16, 4).eval()
    theirs = torch.nn.MultiheadAttention(16, 4, batch_first=True).eval()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.query_key_value.weight)
        theirs.in_proj_bias.copy_(ours.query_key_value.bias.normal_())
        theirs.out_proj.weight.copy_(ours.output.weight)
        theirs.out_proj.bias.copy_(ours.output.bias.normal_())
    x, memory = torch.randn(2, 5, 16), torch.randn(2, 7, 16)
    lengths = torch.tensor([7, 4])
    padding = torch.arange(7) >= lengths[:, None]
    expected, weights = theirs(x, memory, memory, key_padding_mask=padding, average_attn_weights=False)
    torch.testing.assert_close(ours(x, memory, key_lengths=lengths), expected)
    torch.testing.assert_close(ours.weights(x, memory, key_lengths=lengths), weights)


def test_padding_changes_nothing():
    network = build()
    source, lengths, target = draw()
    logits = network(source, lengths, target)
    for row, length in enumerate(lengths.tolist()):
        alone = network(source[row : row + 1, :length], lengths[row : row + 1], target[row : row + 1])
        torch.testing.assert_close(logits[row : row + 1], alone, atol=1e-5, rtol=1e-5)


def test_no_position_sees_a_later_one():
    network = build()
    source, lengths, target = draw()
    changed = target.clone()
    changed[:, 4:] = 5
    before, after = network(source, lengths, target), network(source, lengths, changed)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


@pytest.mark.parametrize("norm_order", ["pre", "post"])
@pytest.mark.parametrize("positions", ["sinusoidal", "learned"])
def test_decoding_step_by_step_equals_teacher_forcing(norm_order, positions):
    network = build(norm_order=norm_order, positions=positions, output_bias=True)
    source, lengths, target = draw(target_length=40)  # longer than the first room of the caches
    memory = network.encode(source, lengths)
    state = network.start(memory, lengths, max_length=8)
    steps = torch.stack([network.step(target[:, t], state) for t in range(40)], dim=1)
    torch.testing.assert_close(steps, network(source, lengths, target), atol=1e-5, rtol=1e-5)


def test_beams_are_reordered_and_finished_sentences_dropped():
    network = build()
    source, lengths, _ = draw()
    memory = network.encode(source, lengths)
    state = network.start(memory, lengths, beam_size=2)
    first = torch.tensor([2] * 6)
    second = torch.tensor([4, 5, 6, 7, 8, 9])
    network.step(first, state)
    network.step(second, state)
    state.reorder(torch.tensor([1, 1, 2, 3, 5, 4]))
    state.select(torch.tensor([0, 2]))
    third = torch.tensor([10, 11, 12, 13])
    actual = network.step(third, state)
    history = torch.tensor([[2, 5, 10], [2, 5, 11], [2, 9, 12], [2, 8, 13]])
    rows = torch.tensor([0, 0, 2, 2])
    expected = network(source[rows], lengths[rows], history)[:, -1]
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    assert state.memory[0].key.shape[0] == 2  # once per sentence, not per beam


def test_attention_maps():
    network = build()
    source, lengths, target = draw()
    network.train()
    maps = network.attention_maps(source, lengths, target)
    assert network.training
    assert [len(part) for part in maps] == [2, 2, 2]
    assert maps.encoder[0].shape == (3, 4, 7, 7)
    assert maps.decoder[1].shape == (3, 4, 6, 6)
    assert maps.cross[1].shape == (3, 4, 6, 7)
    for weights in (*maps.encoder, *maps.decoder, *maps.cross):
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    assert float(maps.cross[0][1, :, :, 3:].abs().max()) == 0.0  # padding of the second sentence
    assert float(maps.decoder[0].triu(1).abs().max()) == 0.0


def test_three_way_tying_and_initial_scale():
    config = replace(SMALL, dim=512, num_heads=8)
    network = Transformer(config, 2000)
    assert network.source_embedding.weight is network.output_weight
    # N(0, 1/dim): times sqrt(dim) the embedding has unit variance, and the logits of a normed vector are O(1).
    assert network.output_weight.std().item() == pytest.approx(512**-0.5, rel=0.01)
    logits = network.project(torch.nn.functional.layer_norm(torch.randn(200, 512), (512,)))
    assert logits.std().item() == pytest.approx(1.0, rel=0.05)
    # fairseq's gain of 1/sqrt(2) for q, k and v: uniform within sqrt(6 / (4 dim)).
    stacked = network.encoder_layers[0].self_attention.query_key_value.weight
    assert stacked.abs().max().item() == pytest.approx(math.sqrt(6 / (4 * 512)), rel=0.01)


def test_separate_vocabularies():
    network = Transformer(SMALL, 24, 32)
    assert network.source_embedding.weight.shape == (24, 16)
    assert network.output_weight is network.target_embedding.weight
    untied = Transformer(replace(SMALL, tie_output=False), 24, 32)
    assert untied.output_weight is not untied.target_embedding.weight


@pytest.mark.parametrize(
    ("layers", "dim", "feed_forward_dim", "vocabulary", "millions"),
    [
        (4, 128, 256, 9_712, 2.57),  # Tiny of Wu et al. 2021, with their joint vocabulary
        (6, 512, 1024, 9_712, 36.52),  # Small
        (6, 512, 2048, 9_712, 49.11),  # Base
        (6, 512, 2048, 37_000, 63.08),  # Base on WMT14
        (6, 1024, 4096, 37_000, 214.24),  # Big on WMT14
    ],
)
def test_parameter_counts_are_the_published_ones(layers, dim, feed_forward_dim, vocabulary, millions):
    config = TransformerConfig(
        dim=dim, feed_forward_dim=feed_forward_dim, encoder_layers=layers, decoder_layers=layers, num_heads=4
    )
    with torch.device("meta"):
        network = Transformer(config, vocabulary)
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)


def test_dropout_is_everywhere_in_training_and_nowhere_else():
    source, lengths, target = draw()
    for kind in ("dropout", "attention_dropout", "activation_dropout"):
        network = Transformer(replace(SMALL, **{kind: 0.5}), VOCABULARY)
        assert not torch.equal(network(source, lengths, target), network(source, lengths, target))
        network.eval()
        assert torch.equal(network(source, lengths, target), network(source, lengths, target))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 5}, "num_heads 5 must divide dim 16"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"encoder_layers": 0}, "encoder_layers must be at least 1, got 0"),
        ({"dim": 15, "num_heads": 5}, "dim must be even"),
        ({"max_positions": 16}, "max_positions has no effect with sinusoidal positions"),
        ({"positions": "learned", "sinusoid_first_row": 2}, "sinusoid_first_row has no effect with learned positions"),
    ],
)
def test_impossible_configs_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)


def test_unknown_config_key_is_named():
    with pytest.raises(ValueError, match="unknown keys of a Transformer config: width"):
        TransformerConfig.from_dict({"dim": 16, "width": 3})
