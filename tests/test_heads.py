"""Heads: what they compute, what may depend on what, and that ONNX says the same."""

from __future__ import annotations

import math
import warnings

import numpy as np
import onnxruntime
import pytest
import torch
from torch.nn import functional

from polytag.config import HeadConfig
from polytag.errors import RecipeError
from polytag.heads import HEADS, Attention, Linear, Mlp, PerAttribute, Separate, make_head

D, T, K, TOKENS = 12, 9, 5, 20  # features, positions, attributes, width of tokens


def head_of(kind: str, seed: int = 0, **options):
    torch.manual_seed(seed)
    config = HeadConfig(kind=kind, **{"hidden": 16, **options})
    return make_head(config, D, K, tokens_width=TOKENS).eval()


def inputs_of(head, batch: int = 3, seed: int = 1) -> torch.Tensor:
    shape = (batch, T, TOKENS) if head.takes_tokens else (batch, D)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def probe():
    """A logistic regression on features of very different sizes and far from 0."""
    rng = np.random.default_rng(0)
    scale = np.geomspace(1e-3, 100, D).astype(np.float32)
    mean = (rng.normal(size=D) * 3 * scale).astype(np.float32)
    weight = (rng.normal(size=(D, K)) / scale[:, None]).astype(np.float32)
    features = (mean + rng.normal(size=(50, D)) * scale).astype(np.float32)
    return weight, rng.normal(size=K).astype(np.float32), mean, scale, features


# ------------------------------------------------------------------------------------ all heads


def test_every_head_of_the_recipe_is_there_and_no_other():
    assert sorted(HEADS) == sorted(HeadConfig.model_fields["kind"].annotation.__args__)
    assert {kind for kind, head in HEADS.items() if head.takes_tokens} == {"attention"}


@pytest.mark.parametrize("kind", HEADS)
def test_shape_seed_and_rows_on_their_own(kind):
    head = head_of(kind)
    inputs = inputs_of(head)
    logits = head(inputs)
    assert logits.shape == (3, K) and logits.dtype == torch.float32
    assert torch.equal(logits, head_of(kind)(inputs))
    assert not torch.equal(logits, head_of(kind, seed=1)(inputs))
    torch.testing.assert_close(head(inputs[1:2]), logits[1:2])


@pytest.mark.parametrize("kind", HEADS)
def test_dropout_draws_in_training_only_and_every_parameter_learns(kind):
    head = head_of(kind, dropout=0.5)
    inputs = inputs_of(head)
    assert torch.equal(head(inputs), head(inputs))
    head.train()
    assert not torch.equal(head(inputs), head(inputs))
    sum(head(inputs).square().sum() for _ in range(20)).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


LAST = {"linear": "linear", "mlp": "layers.3", "separate": "last", "attention": "last"}


@pytest.mark.parametrize("kind", HEADS)
def test_dropout_stands_before_the_last_layer(kind):
    head = head_of(kind, dropout=0.5, hidden=64).train()
    seen = []
    head.get_submodule(LAST[kind]).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    head(inputs_of(head, 40))
    assert (seen[0] == 0).float().mean().item() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("kind", "init"), [*((kind, "random") for kind in HEADS), ("linear", "probe")]
)
def test_onnx_says_the_same_for_any_batch(kind, init, tmp_path):
    head = head_of(kind, init=init)
    if init == "probe":
        head.standardise.mean.uniform_(-1, 1)
        head.standardise.scale.uniform_(0.5, 2)
    path = tmp_path / "head.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own deprecations
        batch = torch.export.Dim("batch")
        program = torch.onnx.export(
            head, (inputs_of(head, 2),), dynamo=True, verbose=False, dynamic_shapes=({0: batch},)
        )
    program.save(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    for rows in (1, 2, 5):
        inputs = inputs_of(head, rows)
        (logits,) = session.run(None, {name: inputs.numpy()})
        np.testing.assert_allclose(logits, head(inputs).detach().numpy(), atol=1e-5)


# --------------------------------------------------------------------------------------- linear


@pytest.mark.parametrize("init", ["probe", "random"])
def test_a_probe_that_is_set_gives_its_logits(probe, init):
    weight, bias, mean, scale, features = probe
    head = head_of("linear", init=init)
    head.set_probe(weight, bias, mean, scale)
    expected = features.astype(np.float64) @ weight.astype(np.float64) + bias
    logits = head(torch.from_numpy(features)).detach().numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_a_head_that_starts_as_a_probe_learns_all_features_at_one_rate(probe):
    *fit, features = probe

    def gradients(init):
        head = head_of("linear", init=init)
        head.set_probe(*fit)
        logits = head(torch.from_numpy(features))
        functional.binary_cross_entropy_with_logits(logits, torch.zeros(50, K)).backward()
        return head.linear.weight.grad.norm(dim=0)

    standardised, raw = gradients("probe"), gradients("random")
    assert standardised.max() / standardised.min() < 20
    assert raw.max() / raw.min() > 1e4


def test_names_of_the_linear_head_and_what_is_not_trained():
    names = {"standardise.mean", "standardise.scale", "linear.weight", "linear.bias"}
    assert set(head_of("linear", init="probe").state_dict()) == names
    assert set(head_of("linear").state_dict()) == {"linear.weight", "linear.bias"}
    trained = {name for name, _ in head_of("linear", init="probe").named_parameters()}
    assert trained == {"linear.weight", "linear.bias"}
    assert isinstance(head_of("linear").linear, torch.nn.Linear)


# ------------------------------------------------------------------------------------ mlp, separate


def numbers(head) -> dict[str, np.ndarray]:
    return {name: value.double().numpy() for name, value in head.state_dict().items()}


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def test_mlp_by_hand():
    head = head_of("mlp")
    p, x = numbers(head), inputs_of(head).double().numpy()
    hidden = gelu(x @ p["layers.0.weight"].T + p["layers.0.bias"])
    expected = hidden @ p["layers.3.weight"].T + p["layers.3.bias"]
    assert isinstance(head, Mlp)
    np.testing.assert_allclose(head(inputs_of(head)).detach().numpy(), expected, atol=1e-6)


def test_separate_is_an_mlp_for_each_attribute():
    head = head_of("separate", hidden=7)
    p, x = numbers(head), inputs_of(head).double().numpy()
    assert isinstance(head, Separate)
    expected = []
    for k in range(K):
        mine = slice(7 * k, 7 * k + 7)
        hidden = gelu(x @ p["first.weight"][mine].T + p["first.bias"][mine])
        expected.append(hidden @ p["last.weight"][k] + p["last.bias"][k])
    logits = head(inputs_of(head)).detach().numpy()
    np.testing.assert_allclose(logits, np.stack(expected, axis=1), atol=1e-6)


OWNED = {
    "separate": ("first.weight", "first.bias", "last.weight", "last.bias"),
    "attention": ("queries", "last.weight", "last.bias"),
}


@pytest.mark.parametrize("kind", OWNED)
@pytest.mark.parametrize("k", [0, 3])
def test_an_attribute_depends_on_no_parameter_of_another(kind, k):
    head = head_of(kind)
    head(inputs_of(head))[:, k].sum().backward()
    parameters = dict(head.named_parameters())
    assert kind != "separate" or set(parameters) == set(OWNED[kind])  # shares nothing
    for name in OWNED[kind]:
        sizes = parameters[name].grad.abs().reshape(K, -1).sum(dim=1)
        assert (sizes > 0).tolist() == [j == k for j in range(K)], name


def test_a_last_layer_of_vectors_starts_as_a_linear_layer_does():
    torch.manual_seed(0)
    ours, theirs = PerAttribute(300, 40), torch.nn.Linear(40, 300)
    for name, mine in ours.state_dict().items():
        reference = theirs.state_dict()[name]
        assert mine.abs().max() <= 40**-0.5
        assert mine.abs().max().item() == pytest.approx(reference.abs().max().item(), rel=0.02)
        assert mine.std().item() == pytest.approx(reference.std().item(), rel=0.1)


# ------------------------------------------------------------------------------------ attention


def layer_norm(x: np.ndarray) -> np.ndarray:  # its weight is 1 and its bias 0 at the start
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)


@pytest.mark.parametrize(("hidden", "heads"), [(16, 8), (12, 4), (6, 2), (7, 1)])
def test_attention_by_hand(hidden, heads):
    head = head_of("attention", hidden=hidden)
    p, tokens = numbers(head), inputs_of(head).double().numpy()
    seen = np.maximum(tokens @ p["project.0.weight"].T + p["project.0.bias"], 0)
    weights = np.split(p["attention.in_proj_weight"], 3)
    biases = np.split(p["attention.in_proj_bias"], 3)
    expected = np.zeros((3, K))
    for b in range(3):
        for k in range(K):
            query = p["queries"][k]
            q, keys, values = (
                x @ w.T + c
                for x, w, c in zip((query, seen[b], seen[b]), weights, biases, strict=True)
            )
            found = []
            for part in np.split(np.arange(hidden), heads):
                scores = keys[:, part] @ q[part] / math.sqrt(hidden / heads)
                share = np.exp(scores - scores.max())
                found.append(share / share.sum() @ values[:, part])
            attended = np.concatenate(found) @ p["attention.out_proj.weight"].T
            x = layer_norm(query + attended + p["attention.out_proj.bias"])
            wide = gelu(x @ p["feed_forward.0.weight"].T + p["feed_forward.0.bias"])
            assert wide.shape == (2 * hidden,)
            x = layer_norm(x + wide @ p["feed_forward.3.weight"].T + p["feed_forward.3.bias"])
            expected[b, k] = x @ p["last.weight"][k] + p["last.bias"][k]
    logits = head(inputs_of(head)).detach().numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_the_order_of_positions_does_not_matter_but_each_of_them_does():
    head = head_of("attention")
    tokens = inputs_of(head).requires_grad_()
    logits = head(tokens)
    torch.testing.assert_close(head(tokens.flip(1)), logits)
    logits.sum().backward()
    assert (tokens.grad.abs().sum(dim=2) > 0).all()


def test_attention_learns_what_stands_at_any_one_position():
    torch.manual_seed(0)
    head = Attention(HeadConfig(kind="attention", hidden=32), TOKENS, 3)
    marks = torch.randn(3, TOKENS)
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3)

    def draw(rows):
        targets = (torch.rand(rows, 3) < 0.5).float()
        tokens = torch.randn(rows, 16, TOKENS) * 0.5
        for k in range(3):
            where = torch.randint(16, (rows,))
            tokens[torch.arange(rows), where] += targets[:, k : k + 1] * marks[k]
        return tokens, targets

    for _ in range(300):
        tokens, targets = draw(64)
        loss = functional.binary_cross_entropy_with_logits(head(tokens), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tokens, targets = draw(500)
    right = ((head(tokens) > 0) == targets.bool()).float().mean()
    assert right > 0.9


def test_tokens_are_needed():
    config = HeadConfig(kind="attention")
    with pytest.raises(RecipeError, match=r"head\.kind.*positions"):
        make_head(config, D, K)
    assert isinstance(make_head(HeadConfig(), D, K), Linear)
