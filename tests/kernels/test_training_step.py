"""A whole Transformer on the Triton kernels: one training step, and cached decoding, equal to PyTorch's."""

import pytest
import torch
from kernel_testing import DEVICE, assert_as_close_as

from datamodules.batches import TranslationBatch
from kernels import use_backend
from lit_models.translation.loss import translation_loss
from lit_models.translation.transformer import Transformer, TransformerConfig


def tiny(norm_order, **changes):
    torch.manual_seed(1)
    config = TransformerConfig(
        dim=32,
        feed_forward_dim=48,
        num_heads=2,
        encoder_layers=2,
        decoder_layers=2,
        norm_order=norm_order,
        dropout=0.0,
        **changes,
    )
    return Transformer(config, source_vocab_size=51).to(DEVICE)


def ragged_batch():
    source = torch.randint(4, 51, (3, 9), device=DEVICE)
    target = torch.randint(4, 51, (3, 8), device=DEVICE)
    source_lengths = torch.tensor([9, 1, 5], device=DEVICE, dtype=torch.int32)
    target_lengths = torch.tensor([7, 3, 1], device=DEVICE, dtype=torch.int32)
    source[torch.arange(9, device=DEVICE) >= source_lengths[:, None]] = 0
    target[torch.arange(8, device=DEVICE) > target_lengths[:, None]] = 0
    indices = torch.arange(3, device=DEVICE)
    return TranslationBatch(source, source_lengths, target[:, :-1], target[:, 1:], target_lengths, indices, [], [])


@pytest.mark.parametrize("norm_order", ["post", "pre"])
def test_a_training_step(norm_order):
    batch = ragged_batch()

    def step(backend, dtype):
        network = tiny(norm_order).to(dtype)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        with use_backend(backend):
            loss, count = translation_loss(network, batch, label_smoothing=0.1)
            (loss / count).backward()
        gradients = {name: parameter.grad.clone() for name, parameter in network.named_parameters()}
        optimizer.step()
        return loss.detach(), gradients, dict(network.named_parameters())

    loss, gradients, after = step("triton", torch.float32)
    plain_loss, plain_gradients, plain_after = step("torch", torch.float32)
    exact_loss, exact_gradients, exact_after = step("torch", torch.float64)
    # The sum of some twenty token losses, each rounded to float32.
    torch.testing.assert_close(loss.double(), exact_loss, rtol=20 * torch.finfo(torch.float32).eps, atol=0)
    torch.testing.assert_close(loss, plain_loss)
    largest = max(gradient.abs().max().item() for gradient in exact_gradients.values())
    for name in gradients:
        # A gradient passes through all layers, whose rounding errors the largest ones dominate.
        assert_as_close_as(gradients[name], plain_gradients[name], exact_gradients[name], terms=largest)
        assert_as_close_as(after[name].detach(), plain_after[name].detach(), exact_after[name].detach(), terms=largest)


def test_dropout_trains_reproducibly():
    batch = ragged_batch()
    network = tiny("post", attention_dropout=0.3)
    losses = []
    with use_backend("triton"):
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            losses.append(translation_loss(network, batch, label_smoothing=0.1)[0].item())
    assert losses[0] == losses[1] != losses[2]


def test_cached_decoding():
    network, batch = tiny("pre").eval(), ragged_batch()
    results = []
    for backend in ("torch", "triton"):
        with torch.no_grad(), use_backend(backend):
            memory = network.encode(batch.source, batch.source_lengths)
            state = network.start(memory, batch.source_lengths)
            steps = [network.step(batch.target_input[:, position], state) for position in range(5)]
            results.append((torch.stack(steps, 1), network(batch.source, batch.source_lengths, batch.target_input)))
    for plain, mine in zip(*results, strict=True):
        torch.testing.assert_close(mine, plain)
