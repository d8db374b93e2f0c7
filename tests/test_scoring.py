"""How hard a sample is, and what fcurr.testing says of a score that is broken."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import entropy
from sklearn.metrics import log_loss
from torch import Tensor
from worlds import blobs, numbers, public, seeds, whole

from fcurr import models, tree
from fcurr.losses import cross_entropy
from fcurr.scoring import ensembles, pointwise
from fcurr.testing import assert_score_laws
from fcurr.types import Batch, Easier, Harder, Model, Params

SCORES = public(pointwise)
LINEAR = models.mlp(features=(5,), classes=3, hidden=())


@pytest.mark.parametrize("score", SCORES, ids=lambda score: score.__name__)
def test_a_pointwise_score_keeps_the_laws_of_scores(score):
    assert_score_laws(score)


@pytest.mark.parametrize("score", SCORES, ids=lambda score: score.__name__)
def test_a_pointwise_score_keeps_the_laws_for_a_model_with_buffers(score):
    build = lambda: torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.BatchNorm1d(3))  # noqa: E731
    assert_score_laws(score, model=models.from_module(build=build))


def world(seed: int) -> tuple[Params, Batch, np.ndarray, np.ndarray]:
    """Parameters, a batch, and its probabilities [batch, class] and labels by numpy."""
    params = {"0.weight": numbers(3, 5, seed=seed, scale=2.0), "0.bias": numbers(3, seed=seed + 1)}
    batch = Batch(x=numbers(8, 5, seed=seed + 2), y=torch.arange(8) % 3, id=torch.arange(8))
    outputs = batch.x.numpy() @ params["0.weight"].numpy().T + params["0.bias"].numpy()
    return params, batch, softmax(outputs, axis=1), batch.y.numpy()


@given(seed=seeds)
def test_margin_is_the_true_probability_less_the_largest_other(seed):
    params, batch, p, y = world(seed)
    right = [p[n, y[n]] - max(p[n, c] for c in range(3) if c != y[n]) for n in range(8)]
    np.testing.assert_allclose(pointwise.margin(params, batch, model=LINEAR), right, rtol=1e-9, atol=1e-12)


@given(seed=seeds)
def test_confidence_is_the_largest_probability(seed):
    params, batch, p, _ = world(seed)
    np.testing.assert_allclose(pointwise.confidence(params, batch, model=LINEAR), p.max(1), rtol=1e-9)


@given(seed=seeds)
def test_entropy_is_that_of_scipy(seed):
    params, batch, p, _ = world(seed)
    np.testing.assert_allclose(
        pointwise.entropy(params, batch, model=LINEAR), entropy(p, axis=1), rtol=1e-9, atol=1e-12
    )


def test_entropy_of_certainty_is_zero_and_not_nan():
    params, batch, _, _ = world(0)
    certain = tree.map(lambda leaf: 1e4 * leaf, params)
    torch.testing.assert_close(pointwise.entropy(certain, batch, model=LINEAR), torch.zeros(8).double())


@given(seed=seeds)
def test_the_mean_loss_is_the_log_loss_of_scikit_learn(seed):
    params, batch, p, y = world(seed)
    losses = pointwise.loss(params, batch, model=LINEAR, loss=cross_entropy)
    assert float(losses.mean()) == pytest.approx(log_loss(y, p, labels=[0, 1, 2]), rel=1e-9)
    one_by_one = [log_loss(y[n : n + 1], p[n : n + 1], labels=[0, 1, 2]) for n in range(8)]
    np.testing.assert_allclose(losses, one_by_one, rtol=1e-9, atol=1e-12)


def test_every_score_points_the_way_it_says():
    easy, hard = (Batch(x=torch.tensor([[x]]).double(), y=torch.tensor([0]), id=torch.tensor([0])) for x in (5.0, 0.1))
    params = {"0.weight": torch.tensor([[1.0], [-1.0]]).double(), "0.bias": torch.zeros(2).double()}
    model = models.mlp(features=(1,), classes=2, hidden=())
    for score in SCORES:
        names = {"model": model} | ({"loss": cross_entropy} if score is pointwise.loss else {})
        harder = score(params, hard, **names) > score(params, easy, **names)
        assert harder.item() == (score.__annotations__["return"] is Harder)


masks = st.tuples(st.integers(6, 40), st.integers(2, 6), st.integers(1, 3), seeds)


@given(masks)
def test_folds_hold_every_sample_out_once_a_repeat_and_differ_by_one_at_the_most(drawn):
    samples, folds, repeats, seed = drawn
    masks = ensembles.fold_masks(samples, folds=folds, repeats=repeats, seed=seed)
    assert masks.shape == (repeats * folds, samples) and masks.dtype == torch.bool
    for repeat in masks.split(folds):
        assert (repeat.sum(0) == 1).all()
        assert repeat.sum(1).max() - repeat.sum(1).min() <= 1


def test_more_folds_than_samples_are_refused():
    with pytest.raises(ValueError, match="4 folds are more than the 3 samples there are"):
        ensembles.fold_masks(3, folds=4, repeats=1, seed=0)


def test_repeats_cut_folds_anew_and_a_seed_cuts_them_again():
    one, same, other = (ensembles.fold_masks(30, folds=3, repeats=2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other) and not torch.equal(one[:3], one[3:])


def nearest_means(data, seen: Tensor) -> Params:
    """A `fit` in closed form: linear models from the class means of the samples seen, a member a row."""
    weights = torch.stack([torch.stack([data.x[row & (data.y == c)].mean(0) for c in range(3)]) for row in seen])
    return {"0.weight": weights, "0.bias": -0.5 * weights.square().sum(-1)}


@given(seed=seeds, folds=st.integers(2, 4), repeats=st.integers(1, 3))
def test_cross_validated_loss_is_the_loop_over_folds(seed, folds, repeats):
    data = blobs(samples=36, features=(5,), seed=seed)
    asked = {"folds": folds, "repeats": repeats, "seed": seed}
    scores = ensembles.cross_validated_loss(data, fit=nearest_means, model=LINEAR, loss=cross_entropy, **asked)
    right = torch.zeros(36, dtype=torch.float64)
    for held_out in ensembles.fold_masks(36, **asked):
        params = tree.member(nearest_means(data, ~held_out[None]), 0)
        for n in held_out.nonzero().flatten().tolist():
            right[n] += cross_entropy(LINEAR.apply(params, data.x[n : n + 1]), data.y[n : n + 1])[0] / repeats
    torch.testing.assert_close(scores, right, rtol=1e-9, atol=1e-12)


def test_cross_validation_never_shows_a_model_the_sample_it_scores():
    data = blobs(samples=30)

    def fit(data, seen):
        ids = torch.arange(30)
        return {"seen": torch.where(seen, ids, -1), "0.weight": torch.zeros(len(seen), 3, 6).double()}

    def apply(params, x):
        same = (data.x[None] == x[:, None]).all(-1).double().argmax(1)  # which samples these are
        looked = (params["seen"][None] == same[:, None]).any(1).double()
        return looked[:, None] * torch.ones(3).double()

    model = Model(init=lambda seed: ({}, {}), apply=apply, train=lambda *_: None)
    looked = lambda outputs, y: outputs[:, 0]  # noqa: E731
    scores = ensembles.cross_validated_loss(data, fit=fit, model=model, loss=looked, seed=0, folds=3, repeats=2)
    assert scores.tolist() == [0.0] * 30
    everything = fit(data, torch.ones(1, 30, dtype=torch.bool))
    assert ensembles.member_losses(everything, data, model=model, loss=looked).tolist() == [[1.0] * 30]


def test_member_losses_do_not_depend_on_the_chunk():
    data = blobs(samples=20, features=(5,))
    params = nearest_means(data, torch.rand(3, 20, generator=torch.Generator().manual_seed(0)) > 0.2)
    whole_set = ensembles.member_losses(params, data, model=LINEAR, loss=cross_entropy)
    parts = ensembles.member_losses(params, data, model=LINEAR, loss=cross_entropy, chunk=7)
    assert whole_set.shape == (3, 20)
    torch.testing.assert_close(parts, whole_set, rtol=1e-12, atol=1e-12)
    for row, member in zip(whole_set, range(3), strict=True):
        alone = pointwise.loss(tree.member(params, member), whole(data), model=LINEAR, loss=cross_entropy)
        torch.testing.assert_close(row, alone, rtol=1e-12, atol=1e-12)


def pooled(params: Params, batch: Batch, *, model: Model) -> Harder:
    outputs = model.apply(params, batch.x)
    return (outputs - outputs.mean(0)).sum(-1)


def summed(params: Params, batch: Batch, *, model: Model) -> Harder:
    return model.apply(params, batch.x).sum()


def endless(params: Params, batch: Batch, *, model: Model) -> Easier:
    return model.apply(params, batch.x)[:, 0].abs().log() / torch.zeros(())


def writing(params: Params, batch: Batch, *, model: Model) -> Harder:
    return model.apply(params, batch.x.mul_(2))[:, 0]


def by_place(params: Params, batch: Batch, *, model: Model) -> Harder:
    return batch.id.flip(0).flip(0).double() + torch.arange(len(batch.id)) % 1 + _rank(batch)


def _rank(batch: Batch) -> Tensor:
    return torch.linspace(0, 1, 2)[(torch.arange(len(batch.id)) == 0).long()]


def deciding(params: Params, batch: Batch, *, model: Model) -> Harder:
    outputs = model.apply(params, batch.x)[:, 0]
    return outputs if params["1.bias"][0] > 0 else outputs + 0


def senseless(params: Params, batch: Batch, *, model: Model) -> Tensor:
    return model.apply(params, batch.x)[:, 0]


@pytest.mark.parametrize(
    "score, message",
    [
        (
            pooled,
            r"^pooled: a score ignores its neighbours: of sample 0 it is \S+, then \S+ \(with cut at=1, random batch=0",
        ),
        (
            summed,
            r"^summed: there is one number a sample: right is a tensor \[4\], it is torch.Size\(\[\]\) \(with cut at=1",
        ),
        (endless, r"^endless: a score is a finite number: of sample \d it is -?inf \(with cut at=1, random batch=0\)$"),
        (writing, r"^writing: a score leaves its arguments as they are: params or batch have changed \(with cut at=1"),
        (by_place, r"^by_place: a score ignores its neighbours: of sample 1 it is 1, then 2 \(with cut at=1"),
        (
            deciding,
            r"^deciding: mapped over members, a score is the same: it is RuntimeError: vmap: It looks like you're",
        ),
        (senseless, r"^senseless: its return type does not say which way it points: Harder or Easier$"),
    ],
)
def test_a_broken_score_is_reported_with_its_law(score, message):
    with pytest.raises(AssertionError, match=message):
        assert_score_laws(score)


def test_a_score_may_bring_its_own_loss_and_hyperparameters():
    def tempered(params: Params, batch: Batch, *, model: Model, loss, temperature: float, twice: bool) -> Harder:
        return loss(model.apply(params, batch.x) / (1 + abs(temperature)), batch.y) * (1 + twice)

    assert_score_laws(tempered)
    with pytest.raises(AssertionError, match=r"^tempered: a score ignores its neighbours"):
        assert_score_laws(partial(tempered, loss=lambda outputs, y: (outputs - outputs.mean()).square().mean(1)))
