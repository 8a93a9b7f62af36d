"""What the comparisons with other libraries' image networks share."""

import copy

import torch
from torch.nn import functional


def shake(model, scale=0.05):
    """Move every weight: biases, norms and LayerScale start at 0, 1 and 1e-6, which would hide a swap of two."""
    for name, parameter in model.named_parameters():
        parameter.data += scale * torch.randn_like(parameter)
        if "gamma" in name or ".ls" in name:
            parameter.data += 0.3
    return model


def images_of(size, batch=2):
    return torch.randn(batch, 3, *((size, size) if isinstance(size, int) else size))


def logits_of(model, images):
    """Return a model's logits, which Hugging Face's have inside an object."""
    output = model(images)
    return getattr(output, "logits", output)


def assert_same_logits(theirs, ours, images):
    """Compare the logits of two networks in evaluation mode."""
    with torch.no_grad():
        expected, actual = (logits_of(model.eval(), images) for model in (theirs, ours))
    assert expected.std() > 0.1  # a comparison of zeros would be none
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def assert_same_gradients(theirs, ours, convert, images):
    """Compare the gradients of one step, under the names that ``convert`` gives to a network's weights."""
    labels = torch.arange(len(images))
    for model in (theirs, ours):
        model.eval()  # no dropout in either, and timm's distilled model averages its heads
        functional.cross_entropy(logits_of(model, images), labels, label_smoothing=0.1).backward()
    gradients = copy.deepcopy(ours)
    for target, source in zip(gradients.parameters(), ours.parameters(), strict=True):
        target.data = source.grad
    converted = convert(gradients)
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(converted.pop(name), parameter.grad, atol=1e-5, rtol=1e-4, msg=name)
    assert not converted


def assert_same_weights(actual, expected):
    """Compare two state dicts bit by bit."""
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name
