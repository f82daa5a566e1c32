"""The denoiser: what it knows before training, what each input may change; and the length."""

import pytest
import torch
from torch import Tensor, nn

from textdiff.denoiser import Denoiser, Guided, time_features
from textdiff.encoder import Encoder
from textdiff.length import Length
from textdiff.noise import Noise
from textdiff.process import Embedding
from textdiff.schedule import Cosine
from textdiff.transformer import Transformer, rotary_frequencies, rotary_table, rotate

V, D, B, L, S = 9, 8, 3, 6, 5
LENGTHS = torch.tensor([6, 4, 2])


def make_denoiser(encoder_depth: int = 1, *, perturbed: bool = True) -> Denoiser:
    torch.manual_seed(0)
    process = Embedding(nn.Embedding(V, D), Cosine())
    process.log_prior.copy_(torch.randn(V).log_softmax(0))
    sizes = {"width": 16, "depth": 2, "heads": 2, "max_length": 12, "max_source_length": 12}
    denoiser = Denoiser(process, encoder_depth=encoder_depth, barred=(0, 5), **sizes).eval()
    if perturbed:
        with torch.no_grad():
            for parameter in denoiser.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return denoiser


def make_inputs(denoiser: Denoiser) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """x_t, t and masks: three lengths, the second token given."""
    valid = torch.arange(L) < LENGTHS[:, None]
    mask = valid & (torch.arange(L) != 1)
    t = 0.6 * mask
    x_0 = denoiser.process.encode(torch.arange(B * L).view(B, L) % V)
    x_t = torch.where(mask[..., None], denoiser.process.corrupt(x_0, t, Noise(0, range(B), valid)), x_0)
    return x_t, t, {"mask": mask, "valid": valid}


def make_source() -> tuple[Tensor, Tensor]:
    return torch.arange(B * S).view(B, S) % V, torch.arange(S) < torch.tensor([5, 3, 1])[:, None]


def differ(one: Tensor, two: Tensor) -> bool:
    return (one - two).abs().max().item() > 1e-3


def test_a_silent_network_is_the_exact_posterior_of_independent_tokens():
    """Bayes by hand: prior times Gaussian density."""
    denoiser = make_denoiser(0, perturbed=False)
    denoiser.bar.zero_()
    nn.init.zeros_(denoiser.out.weight)
    nn.init.zeros_(denoiser.out.bias)
    process = denoiser.process
    x_t, t, inputs = make_inputs(denoiser)
    alpha, sigma = process.schedule(t[..., None, None])
    distance = (x_t[:, :, None] - alpha * process.codebook()).square().sum(-1)
    posterior = (process.log_prior.exp() * torch.exp(-0.5 * distance / sigma[..., 0] ** 2)).double()
    posterior = posterior / posterior.sum(-1, keepdim=True)
    probs = torch.softmax(denoiser(x_t, t, **inputs), -1)
    assert torch.allclose(probs.double(), posterior, atol=1e-4)


def test_features_are_the_posterior_mean_beside_the_state_at_unit_variance():
    denoiser = make_denoiser(0)
    process = denoiser.process
    ids = torch.arange(V)[:, None].expand(V, 4000)
    for time in (0.05, 0.5, 0.95):
        t = torch.tensor(time)
        x_t = process.corrupt(process.encode(ids), t, Noise(0, range(V)))
        log_posterior = process.log_likelihood(x_t, t) + process.log_prior
        features = process.features(x_t, t, process.log_posterior(x_t, t))
        assert features.shape == (V, 4000, process.feature_width)
        weights = torch.softmax(log_posterior, -1)
        assert torch.allclose(features[..., :D], weights @ process.table(), atol=1e-4)
        assert features[..., D:].square().mean().item() == pytest.approx(1, abs=0.03)


def test_a_prediction_is_reread_as_its_mean_embedding():
    process = make_denoiser(0).process
    probs = torch.softmax(torch.randn(2, 3, V), -1)
    table = process.embedding.weight / process.embedding.weight.norm(dim=-1, keepdim=True) * D**0.5
    assert torch.allclose(process.reread(probs), torch.einsum("blv,vd->bld", probs, table), atol=1e-5)


def test_self_conditioning_starts_silent_and_then_speaks():
    fresh, grown = make_denoiser(0, perturbed=False), make_denoiser(0)
    previous = torch.randn(B, L, D)
    for denoiser, speaks in ((fresh, False), (grown, True)):
        x_t, t, inputs = make_inputs(denoiser)
        without = denoiser(x_t, t, **inputs)
        assert torch.equal(denoiser(x_t, t, previous=torch.zeros(B, L, D), **inputs), without)
        assert differ(denoiser(x_t, t, previous=previous, **inputs), without) is speaks


@pytest.mark.parametrize("part", ["state", "previous"])
def test_padding_is_not_read(part):
    denoiser = make_denoiser()
    x_t, t, inputs = make_inputs(denoiser)
    padding, previous = ~inputs["valid"][..., None], torch.randn(B, L, D)
    context = denoiser.encode_source(*make_source())
    before = denoiser(x_t, t, context=context, previous=previous, **inputs)
    if part == "state":
        x_t = torch.where(padding, 7.0, x_t)
    else:
        previous = torch.where(padding, 0.5, previous)
    after = denoiser(x_t, t, context=context, previous=previous, **inputs)
    assert torch.allclose(before[inputs["valid"]], after[inputs["valid"]], atol=1e-5)


def test_source_padding_is_not_read():
    denoiser = make_denoiser()
    x_t, t, inputs = make_inputs(denoiser)
    source, source_mask = make_source()
    wide = torch.cat([torch.where(source_mask, source, 3), torch.full((B, 4), 6)], 1)
    wide_mask = torch.cat([source_mask, torch.zeros(B, 4, dtype=torch.bool)], 1)
    one, two = denoiser.encode_source(source, source_mask), denoiser.encode_source(wide, wide_mask)
    assert torch.allclose(one.pooled, two.pooled, atol=1e-5)
    logits = denoiser(x_t, t, context=one, **inputs)
    assert torch.allclose(logits, denoiser(x_t, t, context=two, **inputs), atol=1e-4)


def test_every_input_matters():
    denoiser = make_denoiser()
    x_t, t, inputs = make_inputs(denoiser)
    context = denoiser.encode_source(*make_source())
    base = denoiser(x_t, t, context=context, **inputs)
    everything = inputs | {"mask": inputs["valid"]}
    shorter = inputs | {"valid": inputs["valid"] & (torch.arange(L) < 5)}
    source, source_mask = make_source()
    other = denoiser.encode_source((source + 1) % V, source_mask)
    changed = [
        denoiser(x_t + 0.1, t, context=context, **inputs),
        denoiser(x_t, 0.9 * t, context=context, **inputs),
        denoiser(x_t, t, context=context, **everything),
        denoiser(x_t, t, context=context, **shorter),
        denoiser(x_t, t, context=other, **inputs),
    ]
    assert all(differ(base[0, :4], logits[0, :4]) for logits in changed)


def test_rotary_positions_turn_every_pair_by_its_angle():
    """As saved models have it: (x_k, x_k+K/2) turns by the place times 10000^(-2k/K), left to right."""
    width, place = 8, torch.arange(6)
    x = torch.randn(2, 3, 6, width, dtype=torch.float64)
    expected = x.clone()
    for k in range(width // 2):
        angle = place.double() * 10000 ** (-2 * k / width)
        left, right = x[..., k], x[..., k + width // 2]
        expected[..., k] = left * angle.cos() - right * angle.sin()
        expected[..., k + width // 2] = right * angle.cos() + left * angle.sin()
    found = rotate(x, rotary_table(place, rotary_frequencies(width)).double())
    assert torch.allclose(found, expected, atol=1e-6)


def test_angles_are_exact_whatever_the_weights_are():
    """bfloat16 knows 8 bits of a frequency: at place 300 an angle would be off by a radian."""
    transformer = Transformer(16, 1, 2)
    assert not any("frequency" in name for name in transformer.state_dict())
    table = rotary_table(torch.arange(300), transformer.frequency)
    assert torch.equal(rotary_table(torch.arange(300), transformer.bfloat16().frequency), table)


def test_time_features_tell_every_time_apart():
    denoiser = make_denoiser(0)
    features = time_features(denoiser.process.schedule, torch.linspace(0, 1, 300))
    assert torch.cdist(features, features).add(100 * torch.eye(300)).min() > 0.01


def test_positions_are_told_from_both_ends():
    """The same noise everywhere: only positions can make a difference."""
    denoiser = make_denoiser(0)
    valid = torch.ones(1, L, dtype=torch.bool)
    x_t, t = torch.full((1, L, D), 0.2), torch.full((1, L), 0.9)
    for silent in (denoiser.position, denoiser.remaining):
        kept = silent.weight.data.clone()
        silent.weight.data.zero_()
        logits = denoiser(x_t, t, mask=valid, valid=valid)[0]
        assert differ(logits[0], logits[2]) and differ(logits[1], logits[4])
        silent.weight.data.copy_(kept)


def test_the_last_token_is_told_that_nothing_is_left():
    denoiser, told = make_denoiser(0), []
    denoiser.remaining.register_forward_pre_hook(lambda module, inputs: told.append(inputs[0]))
    x_t, t, inputs = make_inputs(denoiser)
    denoiser(x_t, t, **inputs)
    left = told[0].expand(B, L)
    for row, length in enumerate(LENGTHS.tolist()):
        assert left[row, :length].tolist() == list(range(length))[::-1]


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0])
def test_guidance_moves_from_null_through_conditional(scale):
    denoiser = make_denoiser()
    x_t, t, inputs = make_inputs(denoiser)
    context = denoiser.encode_source(*make_source())
    conditional = denoiser(x_t, t, context=context, **inputs)
    null = denoiser(x_t, t, context=context.null(), **inputs)
    assert differ(conditional, null)
    guided = Guided(denoiser, scale)(x_t, t, context=context, **inputs)
    words = [token for token in range(V) if token not in (0, 5)]
    expected = {0.0: null, 1.0: conditional, 2.0: 2 * conditional - null}[scale]
    assert torch.allclose(guided[..., words], expected[..., words], atol=1e-3)


def test_guidance_needs_a_source():
    with pytest.raises(ValueError, match="source encoder"):
        Guided(make_denoiser(0), 2.0)


def test_a_dropped_source_leaves_only_the_null_token():
    denoiser = make_denoiser()
    x_t, t, inputs = make_inputs(denoiser)
    source, source_mask = make_source()
    seen = torch.tensor([True, False, True])
    context = denoiser.encode_source(source, source_mask & seen[:, None])
    other = denoiser.encode_source((source + 2) % V, source_mask & seen[:, None])
    logits = denoiser(x_t, t, context=context, **inputs)
    assert torch.allclose(logits[1], denoiser(x_t, t, context=other, **inputs)[1], atol=1e-5)
    assert torch.allclose(context.pooled[1], other.pooled[1], atol=1e-5)
    assert torch.allclose(logits[1], denoiser(x_t, t, context=context.null(), **inputs)[1], atol=1e-5)
    assert differ(logits[0], denoiser(x_t, t, context=other, **inputs)[0])


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_barred_tokens_are_never_generated(scale):
    denoiser = make_denoiser()
    x_t, t, inputs = make_inputs(denoiser)
    x_t = denoiser.process.encode(torch.zeros(B, L, dtype=torch.long))  # the state cries for token 0
    context = denoiser.encode_source(*make_source())
    for time in (0 * t, t, torch.ones_like(t)):
        logits = Guided(denoiser, scale)(x_t, time, context=context, **inputs)
        assert (torch.softmax(logits, -1)[..., [0, 5]] == 0).all()


def test_selected_rows_read_their_own_source():
    denoiser = make_denoiser()
    x_t, t, inputs = make_inputs(denoiser)
    context = denoiser.encode_source(*make_source())
    rows = torch.tensor([2, 0])
    some = {key: value[rows] for key, value in inputs.items()}
    part = denoiser(x_t[rows], t[rows], context=context.select(rows), **some)
    assert torch.allclose(part, denoiser(x_t, t, context=context, **inputs)[rows], atol=1e-5)


def windowed(most: int = 12, window: int | None = 4) -> Encoder:
    torch.manual_seed(0)
    return Encoder(6, 16, 2, 2, most, 0.0, window)


def test_a_source_within_one_window_is_read_as_without_one():
    whole, parts = windowed(window=None), windowed()
    state = {k: v for k, v in whole.state_dict().items() if k != "position.weight"}
    parts.load_state_dict(state, strict=False)
    parts.position.weight.data.copy_(whole.position.weight[:4])
    parts.part.weight.data.zero_()
    embedded, mask = torch.randn(3, 4, 6), torch.arange(4) < torch.tensor([[4], [2], [1]])
    for one, two in zip(whole(embedded, mask), parts(embedded, mask), strict=True):
        assert torch.allclose(one, two, atol=1e-6)


@pytest.mark.parametrize("length", [5, 8, 11, 19])
def test_every_part_of_a_source_is_read_by_itself(length):
    """And knows its place; those beyond the longest source of training are all like its last."""
    encoder = windowed()
    embedded = torch.randn(2, length, 6)
    mask = torch.arange(length) < torch.tensor([[length], [length - 3]])
    memory, seen = encoder(embedded, mask)
    assert memory.shape == (2, 1 + length, 16) and torch.equal(seen[:, 1:], mask)
    for start in range(0, length, 4):
        own = slice(start, start + 4)
        h = encoder.read(embedded[:, own]) + encoder.position.weight[: embedded[:, own].shape[1]]
        h = h + encoder.part.weight[min(start // 4, 2)]
        expected, _ = encoder.transformer(h, mask[:, own])
        found = memory[:, 1:][:, own]
        assert torch.allclose(found[mask[:, own]], expected[mask[:, own]], atol=1e-5)
    assert differ(encoder.part.weight[0], encoder.part.weight[1])


def test_a_window_of_no_tokens():
    with pytest.raises(ValueError, match="source_window must be at least 1 token, not 0"):
        windowed(window=0)


def make_length(counts: list[float]) -> Length:
    length = Length(len(counts) - 1, D)
    nn.init.zeros_(length.head[2].bias)
    length.fit(torch.tensor(counts))
    return length


def test_length_starts_as_the_histogram():
    probs = make_length([0, 1e4, 3e4, 0, 6e4])(torch.randn(2, D)).exp()
    assert torch.allclose(probs, torch.tensor([0, 0.1, 0.3, 0, 0.6]).expand(2, -1), atol=1e-4)
    assert (make_length([1e9, 1, 1])(torch.randn(1, D)).exp()[0, 0] == 0).all()


@pytest.mark.parametrize("least", [0, 1, 3, 6])
def test_length_quantiles_by_brute_force(least):
    """The first n at which p(length <= n | length >= least) exceeds u."""
    counts = [0, 2e4, 0, 3e4, 1e4, 0, 4e4]
    length, u = make_length(counts), torch.arange(100) / 100 + 0.004
    found = length.quantile(torch.zeros(100, D), u, torch.full((100,), least))
    lengths = [n for n, count in enumerate(counts) for _ in range(int(count) // 10_000) if n >= least]
    expected = [lengths[int(share * len(lengths))] for share in u.tolist()]
    assert found.tolist() == expected


def test_length_told_from_nothing_is_the_histogram():
    length = make_length([0, 1e4, 3e4, 0, 6e4])
    nn.init.normal_(length.head[2].weight)
    probs = length(torch.stack([torch.zeros(D), torch.ones(D)])).exp()
    assert torch.allclose(probs[0], torch.tensor([0, 0.1, 0.3, 0, 0.6]), atol=1e-4)
    assert differ(probs[0], probs[1])


def test_length_reads_the_source():
    length = Length(10, D)
    optimizer = torch.optim.Adam(length.parameters(), 0.05)
    pooled, truth = torch.randn(6, D), torch.arange(6) + 2
    for _ in range(60):
        optimizer.zero_grad()
        (-length(pooled)[torch.arange(6), truth].mean()).backward()
        optimizer.step()
    half, least = torch.full((6,), 0.5), torch.ones(6, dtype=torch.long)
    assert (length.quantile(pooled, half, least) == truth).all()
