"""The Transformer against Hugging Face Marian on random weights: logits and one-step gradients."""

import pytest
import torch
from torch.nn import functional

from lit_models.pretrained.marian import from_marian, to_marian
from lit_models.translation import Transformer, TransformerConfig

transformers = pytest.importorskip("transformers")


def random_marian(activation: str = "swish"):
    torch.manual_seed(0)
    config = transformers.MarianConfig(
        vocab_size=61,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        activation_function=activation,
        scale_embedding=True,
        max_position_embeddings=64,
        pad_token_id=60,
        decoder_start_token_id=60,
        eos_token_id=0,
        forced_eos_token_id=None,
        init_std=0.3,
    )
    model = transformers.MarianMTModel(config)
    # Biases and norms start at 0 and 1, which would hide a swap of two of them.
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.final_logits_bias.normal_()
    return model


def ragged_batch():
    source_lengths = torch.tensor([7, 3, 5], dtype=torch.int32)
    source = torch.randint(1, 60, (3, 7))
    source[torch.arange(7) >= source_lengths[:, None]] = 60
    target_input = torch.randint(1, 60, (3, 6))
    target_input[:, 0] = 60
    return source, source_lengths, target_input


@pytest.mark.parametrize("activation", ["swish", "relu", "gelu"])
def test_logits_equal(activation):
    theirs = random_marian(activation).eval()
    ours = from_marian(theirs.state_dict(), theirs.config.to_dict()).eval()
    source, source_lengths, target_input = ragged_batch()
    mask = (source != 60).long()
    with torch.no_grad():
        expected = theirs(input_ids=source, attention_mask=mask, decoder_input_ids=target_input).logits
        actual = ours(source, source_lengths, target_input)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_one_step_gradients_equal():
    theirs = random_marian().train()
    ours = from_marian(theirs.state_dict(), theirs.config.to_dict()).train()
    source, source_lengths, target_input = ragged_batch()
    labels = torch.randint(1, 60, target_input.shape)
    logits = theirs(input_ids=source, attention_mask=(source != 60).long(), decoder_input_ids=target_input).logits
    functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=0.1).backward()
    functional.cross_entropy(
        ours(source, source_lengths, target_input).flatten(0, 1), labels.flatten(), label_smoothing=0.1
    ).backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    expected = from_marian(
        {**theirs.state_dict(), **{name: grad for name, grad in gradients.items() if grad is not None}},
        theirs.config.to_dict(),
    )
    for (name, parameter), reference in zip(ours.named_parameters(), expected.parameters(), strict=True):
        if name == "output_bias":  # a buffer there, without a gradient
            continue
        # Their embedding passes no gradient to the padding token, with which the decoder starts.
        rows = slice(60) if name == "source_embedding.weight" else slice(None)
        torch.testing.assert_close(parameter.grad[rows], reference.data[rows], atol=1e-5, rtol=1e-4)


def test_missing_and_foreign_weights_are_named():
    model = random_marian()
    state = model.state_dict()
    config = model.config.to_dict()
    with pytest.raises(ValueError, match=r"encoder\.layers\.1\.fc1\.weight"):
        from_marian({name: value for name, value in state.items() if "encoder.layers.1.fc1" not in name}, config)
    with pytest.raises(ValueError, match="without a place: model.extra"):
        from_marian({**state, "model.extra": torch.zeros(1)}, config)


@pytest.mark.parametrize("layout", ["interleaved", "concatenated"])
def test_back_to_marian(layout):
    config = TransformerConfig(
        dim=32, feed_forward_dim=48, num_heads=4, encoder_layers=2, decoder_layers=2, sinusoid_layout=layout
    )
    network = Transformer(config, 61).eval()
    state, values = to_marian(network)
    model = transformers.MarianMTModel(transformers.MarianConfig(**values)).eval()
    model.load_state_dict(state)
    torch.manual_seed(1)
    source, lengths, target = torch.randint(4, 61, (2, 7)), torch.tensor([7, 4]), torch.randint(4, 61, (2, 5))
    with torch.no_grad():
        expected = model(
            input_ids=source, attention_mask=(torch.arange(7) < lengths[:, None]).long(), decoder_input_ids=target
        ).logits
        torch.testing.assert_close(network(source, lengths, target), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="Marian is post-norm"):
        to_marian(Transformer(TransformerConfig(dim=8, num_heads=2, norm_order="pre"), 16))
