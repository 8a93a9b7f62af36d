"""Small detection networks, batches for them, and the official structure in torch's own modules."""

import torch
from torch import nn
from torch.nn import functional

from lit_models.detection.backbone import Backbone

SIZES = {
    "dim": 16,
    "num_heads": 2,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "feed_forward_dim": 24,
    "num_queries": 5,
}


class Patches(Backbone):
    """Patches of 8 pixels without overlap: nothing leaks between an image and its padding."""

    channels = 6
    settings = {"type": "Patches"}

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 6, 8, stride=8)

    def forward(self, images):
        return self.convolution(images)


def randomized(network, scale=0.2):
    """Move every parameter, so that no gain is one and no bias zero."""
    for parameter in network.parameters():
        parameter.data += scale * torch.randn_like(parameter)
    return network


def padded_batch(canvas=(24, 40), sizes=((24, 40), (9, 40), (24, 17))):
    images = torch.zeros(len(sizes), 3, *canvas)
    for image, (height, width) in zip(images, sizes, strict=True):
        image[:, :height, :width] = torch.randn(3, height, width)
    return images, sizes


def attend(module, query, key, value, padding=None):
    """Attend with torch's module (need_weights=True: the explicit path of the official code)."""
    peer = nn.MultiheadAttention(query.shape[-1], module.num_heads, batch_first=True, dtype=query.dtype)
    peer.load_state_dict(
        {
            "in_proj_weight": module.query_key_value.weight,
            "in_proj_bias": module.query_key_value.bias,
            "out_proj.weight": module.output.weight,
            "out_proj.bias": module.output.bias,
        }
    )
    return peer(query, key, value, key_padding_mask=padding)[0]


def norm(module, input):
    return functional.layer_norm(input, input.shape[-1:], module.weight, module.bias)


def feed_forward(module, input):
    return functional.linear(
        functional.relu(functional.linear(input, module.expand.weight, module.expand.bias)),
        module.contract.weight,
        module.contract.bias,
    )


def stack(branches, norms, opening, residual, post):
    """Run sublayers as functions of their input: ``norm(x + f(x))``, or ``x + f(norm(x))``."""
    before = [opening, *norms]
    for number, branch in enumerate(branches):
        if post:
            residual = norm(norms[number], residual + branch(residual))
        else:
            residual = residual + branch(norm(before[number], residual))
    return residual


def official(network, images, sizes):
    """Return the logits and boxes of every layer of a DETR as the official code computes them."""
    post = network.settings["norm_order"] == "post"
    features = network.input_projection(network.backbone(images))
    mask = torch.ones(len(sizes), *images.shape[2:])
    for one, (height, width) in zip(mask, sizes, strict=True):
        one[:height, :width] = 0
    mask = functional.interpolate(mask[None], size=features.shape[-2:]).bool()[0]
    half, halves = features.shape[1] // 2, []
    for axis in (1, 2):
        place = (~mask).cumsum(axis, dtype=torch.float32)
        place = place / (place.select(axis, -1).unsqueeze(axis) + 1e-6) * 6.283185307179586
        frequencies = 10_000 ** (2 * (torch.arange(half) // 2) / half)
        angles = place[..., None] / frequencies
        halves.append(torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], -1).flatten(-2))
    where = torch.cat(halves, -1).flatten(1, 2).to(features.dtype)
    padding, tokens = mask.flatten(1), features.flatten(2).transpose(1, 2)

    for layer_number, layer in enumerate(network.encoder_layers):
        opening = (
            network.encoder_input_norm
            if layer_number == 0
            else network.encoder_layers[layer_number - 1].feed_forward_norm
        )
        branches = [
            lambda x, layer=layer: attend(layer.self_attention, x + where, x + where, x, padding),
            lambda x, layer=layer: feed_forward(layer.feed_forward, x),
        ]
        norms = [layer.self_attention_norm, layer.feed_forward_norm]
        tokens = stack(branches, norms, opening, tokens, post)
    memory = tokens if post else norm(network.encoder_layers[-1].feed_forward_norm, tokens)

    places = network.query_embedding.weight[None].expand(len(sizes), -1, -1)
    state, states = torch.zeros_like(places), []
    for layer_number, layer in enumerate(network.decoder_layers):
        opening = (
            network.decoder_input_norm
            if layer_number == 0
            else network.decoder_layers[layer_number - 1].feed_forward_norm
        )
        branches = [
            lambda x, layer=layer: attend(layer.self_attention, x + places, x + places, x),
            lambda x, layer=layer: attend(layer.cross_attention, x + places, memory + where, memory, padding),
            lambda x, layer=layer: feed_forward(layer.feed_forward, x),
        ]
        norms = [layer.self_attention_norm, layer.cross_attention_norm, layer.feed_forward_norm]
        state = stack(branches, norms, opening, state, post)
        states.append(norm(network.decoder_norm, state))
    states = torch.stack(states)
    return network.class_head(states), network.box_head(states).sigmoid()
