"""Chunk sizes and launch parameters, chosen from sizes alone.

Peak memory in bf16 beside the arguments, in bytes, for T tokens, a vocabulary of V and a width of W (T·V dominates):

- the plain path, ``cross_entropy(linear(hidden, weight), target)``, holds in its backward the log-probabilities, their
  gradient and the gradient of the logits: 6·T·V. Label smoothing adds to that, and so does autocast, which makes them
  float32.
- this one holds a chunk of logits, at most ``CHUNK_BYTES``, and the gradients: 4·V·W of the weight in float32 and 2·T·W
  of the hidden states; in the backward the chunk is gone and 2·V·W + 2·T·W of scaled gradients are there instead.

T = 8,192, V = 32,768, W = 1,024 gives 1,611 MB against 134 + 134 + 17 = 285 MB in the forward and 134 + 17 + 67 + 17 =
235 MB in the backward; more tokens only widen the distance. These are counts, not measurements.
"""

from dataclasses import dataclass

# Logits of one chunk, in bytes. On a CPU they stay in the last-level cache between the passes over them. On a GPU every
# chunk reads and writes the float32 gradient of the weight, 8 bytes for 2·rows multiplications: 128 MiB are 2,048 rows
# of a bf16 vocabulary of 32,768, 512 multiply-adds a byte.
CHUNK_BYTES = {"cpu": 8 * 2**20, "cuda": 128 * 2**20}

# A row of logits takes whole cache lines, so that every row begins aligned whatever the vocabulary: vector loads in the
# kernel and the fast matrix products need it.
ROW_BYTES = 128


@dataclass(frozen=True)
class Launch:
    """How the kernel walks along a row of logits.

    Attributes:
        block: Entries of the vocabulary at a time, a power of 2.
        num_warps: Warps of the one program that a row has.
    """

    block: int
    num_warps: int


# itemsize of the logits to (vocabularies up to SMALL_VOCABULARY, larger ones). A thread loads 16 bytes a block. Many
# warps to a row keep few rows in flight, so that the second pass finds its row in the cache; two loads a block take up
# to 125 registers a thread with 16 warps, and then one row fits a multiprocessor.
SMALL_VOCABULARY = 4096
LAUNCHES = {
    2: (Launch(block=1024, num_warps=4), Launch(block=4096, num_warps=16)),
    4: (Launch(block=512, num_warps=4), Launch(block=2048, num_warps=16)),
}


def launch(vocabulary: int, itemsize: int) -> Launch:
    """Return the launch parameters for a vocabulary size and the bytes of one logit."""
    small, large = LAUNCHES[itemsize]
    return small if vocabulary <= SMALL_VOCABULARY else large


def row_stride(vocabulary: int, itemsize: int) -> int:
    """Return the entries between two rows of a chunk of logits."""
    entries = ROW_BYTES // itemsize
    return -(-vocabulary // entries) * entries


def chunk_rows(tokens: int, row_bytes: int, device_type: str) -> int:
    """Return the rows of a chunk: equal chunks, as few as the budget of the device allows.

    Args:
        tokens: Rows in all.
        row_bytes: Bytes of one row of logits.
        device_type: As in ``torch.device.type``; what has no budget of its own takes that of "cuda".
    """
    most = max(1, CHUNK_BYTES.get(device_type, CHUNK_BYTES["cuda"]) // row_bytes)
    chunks = max(1, -(-tokens // most))
    return max(1, -(-tokens // chunks))
