"""Beam and greedy search against exhaustive search and a plain Python beam, on networks small enough for both."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from lit_models.translation.search import Hypothesis, beam_search, greedy_search, length_divisor

PAD, A, BOS, EOS, B = 0, 1, 2, 3, 4
VOCAB = 5
STATES = 997


class HistoryState:
    """Remembers a number that depends on every token read so far: a wrong reorder or select changes the answer."""

    def __init__(self, keys, beam_size):
        self.keys, self.beam_size = keys, beam_size
        self.reorders, self.batch_sizes, self.steps = [], [keys.shape[0] // beam_size], 0

    def reorder(self, rows):
        assert torch.equal(rows // self.beam_size, torch.arange(len(rows)) // self.beam_size), "a row left its sentence"
        self.reorders.append(rows)
        self.keys = self.keys[rows]

    def select(self, sentences):
        self.keys = self.keys.view(-1, self.beam_size)[sentences].flatten()
        self.batch_sizes.append(len(sentences))


class HistoryNetwork:
    """The next token's logits are a row of a random table, chosen by the sentence and all its tokens so far."""

    def __init__(self, seed=0, vocab=VOCAB, spread=2.0):
        self.config = SimpleNamespace(pad_id=PAD, bos_id=BOS, eos_id=EOS)
        self.table = spread * torch.randn(STATES, vocab, generator=torch.Generator().manual_seed(seed))

    def start(self, memory, memory_lengths, beam_size=1, max_length=64):
        self.state = HistoryState(memory[:, 0, 0].long().repeat_interleave(beam_size), beam_size)
        return self.state

    def step(self, tokens, state):
        state.steps += 1
        state.keys = (state.keys * 31 + tokens * 7 + 3) % STATES
        return self.table[state.keys]

    def log_probs(self, sentence, tokens, banned=(PAD,)):
        """Log-probabilities of every next token after ``tokens``: the same numbers without a search."""
        key = sentence
        for token in [BOS, *tokens]:
            key = (key * 31 + token * 7 + 3) % STATES
        logits = self.table[key].clone()
        logits[list(banned)] = -math.inf
        return logits.log_softmax(-1).tolist()


class ListState(HistoryState):
    """The tokens read so far themselves, one tuple for each row."""

    def reorder(self, rows):
        self.keys = [self.keys[row] for row in rows.tolist()]

    def select(self, sentences):
        size = self.beam_size
        self.keys = [self.keys[sentence * size + beam] for sentence in sentences.tolist() for beam in range(size)]


class FixedNetwork(HistoryNetwork):
    """Probabilities written down by hand: ``rows`` maps a history to the probability of each next token."""

    def __init__(self, rows, default):
        super().__init__()
        self.rows, self.default = rows, default

    def start(self, memory, memory_lengths, beam_size=1, max_length=64):
        self.state = ListState(torch.arange(memory.shape[0] * beam_size), beam_size)
        self.state.keys = [()] * (memory.shape[0] * beam_size)
        return self.state

    def step(self, tokens, state):
        state.keys = [(*key, token) for key, token in zip(state.keys, tokens.tolist(), strict=True)]
        rows = [self.rows.get(key[1:], self.default) for key in state.keys]
        return torch.tensor([[row.get(token, 0.0) for token in range(VOCAB)] for row in rows]).log()


def run(search, network, sentences=range(8), **options):
    memory = torch.tensor(list(sentences), dtype=torch.float32).view(-1, 1, 1)
    return search(network, memory, torch.ones(len(memory), dtype=torch.int32), **options)


def divisor(length, alpha, kind):
    return {"gnmt": ((5 + length) / 6) ** alpha, "power": length**alpha, "none": 1.0}[kind]


def every_ending(network, sentence, max_length, banned=(PAD,)):
    """All token sequences that end within ``max_length``, with their log-probabilities."""
    letters = [token for token in range(VOCAB) if token != EOS and token not in banned]
    for length in range(max_length):
        for tokens in itertools.product(letters, repeat=length):
            total = 0.0
            for position, token in enumerate((*tokens, EOS)):
                total += network.log_probs(sentence, tokens[:position], banned)[token]
            yield list(tokens), total


def exhaustive(network, sentence, max_length, alpha, kind, count, allowed=lambda tokens: True, banned=(PAD,)):
    found = [
        (log_prob / divisor(len(tokens) + 1, alpha, kind), tokens)
        for tokens, log_prob in every_ending(network, sentence, max_length, banned)
        if allowed(tokens)
    ]
    return sorted(found, reverse=True)[:count]


def repeats_a_bigram(tokens):
    bigrams = list(itertools.pairwise(tokens))
    return len(set(bigrams)) < len(bigrams)


def plain_beam(network, sentence, beam_size, max_length, alpha, kind, stop, count):
    """The rules of the beam once more, hypothesis by hypothesis, without tensors."""
    live, done = [(0.0, [])], []
    for length in range(1, max_length + 1):
        extensions = sorted(
            (
                (total + gained, [*tokens, token])
                for total, tokens in live
                for token, gained in enumerate(network.log_probs(sentence, tokens))
            ),
            reverse=True,
        )[: 2 * beam_size]
        over = stop != "exact" and len(done) >= beam_size
        done += [
            (total / divisor(length, alpha, kind), tokens[:-1])
            for total, tokens in extensions[:beam_size]
            if tokens[-1] == EOS and not (over and stop == "first")
        ]
        live = [(total, tokens) for total, tokens in extensions if tokens[-1] != EOS][:beam_size]
        done = sorted(done, reverse=True)[:beam_size]
        full = len(done) >= beam_size
        if stop == "first" and full:
            break
        if stop == "estimate" and full and live[0][0] / divisor(length, alpha, kind) <= done[-1][0]:
            break
    rest = [(total / divisor(max_length, alpha, kind), tokens) for total, tokens in live]
    return (done + rest)[:count] if len(done) < count else done[:count]


def assert_same(found: list[Hypothesis], expected, **context):
    assert [hypothesis.tokens for hypothesis in found] == [tokens for _, tokens in expected], context
    assert [hypothesis.score for hypothesis in found] == pytest.approx([score for score, _ in expected], abs=1e-5)


PENALTIES = [("none", 0.0), ("gnmt", 0.6), ("gnmt", 2.0), ("power", 1.0), ("power", 3.0), ("power", -0.5)]


@pytest.mark.parametrize(("kind", "alpha"), PENALTIES)
def test_wide_beam_is_exhaustive_search(kind, alpha):
    network = HistoryNetwork(seed=1)
    found = run(beam_search, network, beam_size=450, num_hypotheses=7, max_length=5, length_penalty=alpha,
                length_penalty_kind=kind)  # fmt: skip
    for sentence, hypotheses in enumerate(found):
        assert_same(hypotheses, exhaustive(network, sentence, 5, alpha, kind, 7), sentence=sentence)
        assert all(hypothesis.finished for hypothesis in hypotheses)


def test_beam_of_vocabulary_size_is_exhaustive_over_two_tokens():
    network = HistoryNetwork(seed=2)
    found = run(beam_search, network, range(50), beam_size=VOCAB, max_length=2, length_penalty=1.0)
    for sentence, hypotheses in enumerate(found):
        assert_same(hypotheses, exhaustive(network, sentence, 2, 1.0, "gnmt", 1), sentence=sentence)


@pytest.mark.parametrize("stop", ["exact", "estimate", "first"])
@pytest.mark.parametrize("beam_size", [2, 3, 5])
@pytest.mark.parametrize(("kind", "alpha"), PENALTIES)
def test_equals_plain_beam(kind, alpha, beam_size, stop):
    network = HistoryNetwork(seed=3)
    options = {"length_penalty": alpha, "length_penalty_kind": kind, "stop": stop}
    found = run(beam_search, network, beam_size=beam_size, num_hypotheses=2, max_length=12, **options)
    for sentence, hypotheses in enumerate(found):
        expected = plain_beam(network, sentence, beam_size, 12, alpha, kind, stop, 2)
        assert_same(hypotheses, expected, sentence=sentence)
        scores = [hypothesis.score for hypothesis in hypotheses]
        assert scores == sorted(scores, reverse=True)
        assert len({tuple(hypothesis.tokens) for hypothesis in hypotheses}) == 2


def test_exact_rule_stops_early():
    network = HistoryNetwork(seed=3)
    for alpha, most in ((0.0, 40), (0.6, 100)):
        run(beam_search, network, [0], beam_size=3, max_length=4000, length_penalty=alpha)
        assert network.state.steps < most, "plain log-probabilities only fall: the bound is soon below what is finished"


def test_first_to_end_does_not_win():
    """A short hypothesis tops the first step, a longer one overtakes it: stopping at the first end is a known bug."""
    network = FixedNetwork({(): {EOS: 0.55, A: 0.45}}, default={A: 0.999, EOS: 0.001})
    network.rows |= {(A,) * 9: {EOS: 1.0}}
    options = {"beam_size": 2, "max_length": 20, "length_penalty": 1.0, "length_penalty_kind": "power"}
    [[best]] = run(beam_search, network, [0], **options)
    assert best.tokens == [A] * 9 and best.finished
    assert best.log_prob == pytest.approx(math.log(0.45) + 8 * math.log(0.999), abs=1e-4)
    [[best]] = run(beam_search, network, [0], **options | {"length_penalty": 0.0})
    assert best.tokens == []


def test_stop_rules_differ_where_they_should():
    """Two short ends fill the beam; the live hypothesis is worse now, and better at the length where it ends."""
    network = FixedNetwork({(): {EOS: 0.5, A: 0.3, B: 0.2}, (B,): {EOS: 1.0}}, default={A: 1.0})
    network.rows |= {(A,): {A: 0.6, EOS: 0.4}, (A,) * 12: {EOS: 1.0}}
    options = {"beam_size": 2, "max_length": 20, "length_penalty": 1.0, "length_penalty_kind": "power"}
    [[exact]] = run(beam_search, network, [0], stop="exact", **options)
    [[first]] = run(beam_search, network, [0], stop="first", **options)
    assert exact.tokens == [A] * 12
    assert first.tokens in ([], [A], [B])
    assert exact.score > first.score


@pytest.mark.parametrize("search", [greedy_search, beam_search])
def test_beam_of_one_is_greedy(search):
    network = HistoryNetwork(seed=4)
    options = {"beam_size": 1} if search is beam_search else {}
    for sentence, [best] in enumerate(run(search, network, range(20), max_length=15, length_penalty=2.0, **options)):
        tokens, total = [], 0.0
        while len(tokens) < 15 and tokens[-1:] != [EOS]:
            log_probs = network.log_probs(sentence, tokens)
            tokens.append(max(range(VOCAB), key=log_probs.__getitem__))
            total += log_probs[tokens[-1]]
        assert best.finished == (tokens[-1] == EOS)
        assert best.log_prob == pytest.approx(total, abs=1e-5)
        assert best.score == pytest.approx(total / ((5 + len(tokens)) / 6) ** 2.0, abs=1e-5)
        assert best.tokens == (tokens[:-1] if best.finished else tokens)


@pytest.mark.parametrize("options", [{"beam_size": 4}, {"beam_size": 4, "num_hypotheses": 3, "stop": "first"}, {}])
def test_result_does_not_depend_on_the_batch(options):
    network = HistoryNetwork(seed=5)
    search = beam_search if options else greedy_search
    limits = torch.tensor([3, 30, 1, 30, 7, 30, 30, 5, 30, 12])
    together = run(search, network, range(10), max_length=limits, **options)
    sizes = network.state.batch_sizes
    assert sizes[0] == 10 and len(sizes) > 2, "finished sentences leave before the last one is done"
    for sentence in range(10):
        alone = run(search, network, [sentence], max_length=int(limits[sentence]), **options)
        assert together[sentence] == alone[0]
        assert all(len(hypothesis.tokens) <= limits[sentence] for hypothesis in alone[0])


def test_rows_are_reordered_only_when_needed():
    network = HistoryNetwork(seed=6)
    run(beam_search, network, range(4), beam_size=3, max_length=10)
    assert network.state.reorders
    assert all(not torch.equal(rows, torch.arange(len(rows))) for rows in network.state.reorders)


def test_cut_at_the_maximum_length():
    network = FixedNetwork({}, default={A: 0.7, B: 0.3})
    for options in ({}, {"beam_size": 3, "num_hypotheses": 2}):
        [found] = run(beam_search if options else greedy_search, network, [0], max_length=6, **options)
        assert not any(hypothesis.finished for hypothesis in found)
        assert found[0].tokens == [A] * 6
        assert found[0].log_prob == pytest.approx(6 * math.log(0.7), abs=1e-5)
        assert found[0].score == pytest.approx(found[0].log_prob / (11 / 6) ** 0.6, abs=1e-5)
    network = FixedNetwork({(): {A: 0.9, EOS: 0.1}}, default={A: 1.0})
    [found] = run(beam_search, network, [0], max_length=6, beam_size=2, num_hypotheses=2)
    assert [hypothesis.finished for hypothesis in found] == [True, False], "a finished one goes before one that was cut"


def test_fewer_than_n_where_no_more_exist():
    network = FixedNetwork({}, default={EOS: 1.0})
    [found] = run(beam_search, network, [0], max_length=6, beam_size=4, num_hypotheses=4)
    assert found == [Hypothesis(tokens=[], score=0.0, log_prob=0.0, finished=True)]


def test_length_penalties_are_the_published_formulas():
    assert length_divisor(torch.tensor([1.0, 7.0, 25.0]), 0.6, "gnmt").tolist() == pytest.approx(
        [1.0, 2.0**0.6, 5.0**0.6]
    )
    assert length_divisor(torch.tensor([4, 9]), 0.5, "power").tolist() == pytest.approx([2.0, 3.0])
    assert length_divisor(9.0, 0.5, "none") == 1.0
    with pytest.raises(ValueError, match="'wu'; it must be one of gnmt, power, none"):
        length_divisor(3.0, 0.6, "wu")
    network = FixedNetwork({(): {A: 1.0}, (A,): {A: 1.0}, (A, A): {EOS: 1.0}}, default={EOS: 1.0})
    network.rows[(A,)] = {A: 0.5, EOS: 0.5}
    for kind, expected in (("gnmt", (8 / 6) ** 0.8), ("power", 3**0.8), ("none", 1.0)):
        options = {"length_penalty": 0.8, "length_penalty_kind": kind, "beam_size": 2, "num_hypotheses": 2}
        [found] = run(beam_search, network, [0], max_length=9, **options)
        [long] = [hypothesis for hypothesis in found if hypothesis.tokens == [A, A]]
        assert long.score == pytest.approx(math.log(0.5) / expected), "two tokens and EOS are a length of 3"


def test_default_maximum_length_is_source_plus_fifty():
    network = FixedNetwork({}, default={A: 1.0})
    memory = torch.zeros(2, 9, 1)
    found = greedy_search(network, memory, torch.tensor([4, 9], dtype=torch.int32))
    assert [len(best.tokens) for [best] in found] == [54, 59]


def test_padding_is_banned_before_the_softmax():
    network = HistoryNetwork(seed=7)
    clean = run(beam_search, network, beam_size=3, max_length=8)
    network.table[:, PAD] = 20.0
    assert run(beam_search, network, beam_size=3, max_length=8) == clean


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({"min_length": 4}, lambda tokens: len(tokens) + 1 >= 4),
        ({"no_repeat_ngram_size": 1}, lambda tokens: len(set(tokens)) == len(tokens)),
        ({"no_repeat_ngram_size": 2}, lambda tokens: not repeats_a_bigram(tokens)),
        ({"prefix": torch.tensor([[A, B]] * 8)}, lambda tokens: tokens[:2] == [A, B]),
    ],
    ids=["min_length", "no 1-gram twice", "no 2-gram twice", "prefix"],
)
def test_constraints_equal_exhaustive_search_of_what_is_allowed(options, allowed):
    network = HistoryNetwork(seed=8)
    if "no_repeat_ngram_size" in options:
        network.table[:, EOS] -= 2.0
    found = run(beam_search, network, beam_size=450, num_hypotheses=3, max_length=5, **options)
    for sentence, hypotheses in enumerate(found):
        assert_same(hypotheses, exhaustive(network, sentence, 5, 0.6, "gnmt", 3, allowed), sentence=sentence)


def test_banned_tokens_leave_a_distribution():
    network = HistoryNetwork(seed=9)
    found = run(beam_search, network, beam_size=450, num_hypotheses=3, max_length=5, banned_tokens=[B])
    for sentence, hypotheses in enumerate(found):
        expected = exhaustive(network, sentence, 5, 0.6, "gnmt", 3, banned=(PAD, B))
        assert_same(hypotheses, expected, sentence=sentence)


@pytest.mark.parametrize("beam_size", [1, 4])
def test_prefixes_of_different_lengths(beam_size):
    network = HistoryNetwork(seed=10)
    prefix = torch.tensor([[A, B, A], [PAD, PAD, PAD], [B, PAD, PAD], [A, A, PAD]])
    found = run(beam_search, network, range(4), beam_size=beam_size, max_length=10, prefix=prefix)
    free = run(beam_search, network, [1], beam_size=beam_size, max_length=10)
    assert found[1] == free[0]
    for sentence, [best] in enumerate(found):
        forced = [token for token in prefix[sentence].tolist() if token != PAD]
        assert best.tokens[: len(forced)] == forced
        total = sum(
            network.log_probs(sentence, best.tokens[:position])[token]
            for position, token in enumerate([*best.tokens, EOS] if best.finished else best.tokens)
        )
        assert best.log_prob == pytest.approx(total, abs=1e-5), "the prefix counts with the network's own probability"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_size": 0}, "beam_size is 0"),
        ({"length_penalty": float("nan")}, "length_penalty is nan; it must be a finite number"),
        ({"length_penalty": float("inf"), "beam_size": 1}, "length_penalty is inf"),
        ({"beam_size": 2, "num_hypotheses": 3}, "num_hypotheses is 3; it must be from 1 to beam_size"),
        ({"stop": "soon"}, "stop is 'soon'; it must be one of exact, estimate, first"),
        ({"length_penalty_kind": "avg"}, "length_penalty_kind is 'avg'"),
        ({"max_length": 0}, "max_length is 0"),
        ({"max_length": torch.tensor([3, 4, 5])}, "the batch has 2 sentences"),
        ({"min_length": -1}, "min_length is -1"),
        ({"min_length": 9, "max_length": 8}, "min_length 9 is larger"),
        ({"no_repeat_ngram_size": -2}, "no_repeat_ngram_size is -2"),
        ({"banned_tokens": [EOS]}, "no translation could end"),
        ({"prefix": torch.tensor([[A, EOS], [A, B]])}, "token 3, which is banned or ends"),
        ({"prefix": torch.tensor([[PAD, A], [A, B]])}, "padded on the right"),
        ({"prefix": torch.tensor([[A, B]])}, r"prefix has shape \(1, 2\)"),
        ({"prefix": torch.tensor([[A, B], [A, PAD]]), "max_length": 2}, "as long as the maximum length"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        run(beam_search, HistoryNetwork(), [0, 1], **options)


@pytest.mark.parametrize("beam_size", [1, 3])
def test_broken_weights_are_reported(beam_size):
    network = HistoryNetwork()
    network.table[:] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        run(beam_search, network, beam_size=beam_size, max_length=5)


@pytest.mark.parametrize("beam_size", [1, 3])
def test_empty_batch(beam_size):
    assert run(beam_search, HistoryNetwork(), [], beam_size=beam_size) == []
