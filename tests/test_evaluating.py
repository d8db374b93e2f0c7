"""What models answer, without learning from it."""

import math
from functools import partial

import pytest
import sklearn.metrics
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import vmap
from worlds import assert_close, blobs, numbers, seeds

from fcurr import evaluating, inputs, losses, mapping, metrics, models, optim, rng, training, tree, views
from fcurr.types import Batch, Dataset, Metric

MEMBERS = 3
DATA = blobs(features=(4, 2))  # 24 samples of 4 times 2 numbers, 3 classes
X = torch.as_tensor(DATA.x).float()
DATA = DATA._replace(x=X)
PLACE = (torch.tensor(0), torch.tensor(0))


class Recurrent(nn.Module):
    """What torch cannot map."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2, 5, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def normed() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(8, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


MODELS = {
    "mlp": models.mlp(features=(4, 2), classes=3, hidden=(5,)),
    "batch_norm": models.from_module(build=normed),
    "lstm": models.from_module(build=Recurrent),
}
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


def variables(model, count: int = MEMBERS):
    several = [model.init(seed) for seed in range(count)]
    return tree.stack([{**params, **buffers} for params, buffers in several])


class Read:
    """Samples that are read, not held: indexed as a tensor would be."""

    shape, dtype, identity = tuple(X.shape), X.dtype, "read"

    def __getitem__(self, ids: Tensor) -> Tensor:
        return X[ids].clone()


@every_model
@pytest.mark.parametrize("count", [1, MEMBERS])
@pytest.mark.parametrize("chunk", [1, 5, 24, 4096])
def test_answers_are_what_each_member_gives_to_each_sample_whatever_the_chunk(model, count, chunk):
    own = variables(model, count)
    found = evaluating.answers(own, DATA, model=model, loss=losses.cross_entropy, chunk=chunk)
    assert found.outputs.shape == (count, 24, 3) and found.losses.shape == (count, 24)
    assert not found.outputs.requires_grad
    for member in range(count):
        for sample in range(24):
            outputs = model.apply(tree.member(own, member), X[sample : sample + 1])
            torch.testing.assert_close(found.outputs[member, sample], outputs[0], rtol=1e-5, atol=1e-6)
            right = losses.cross_entropy(outputs, DATA.y[sample : sample + 1])[0]
            torch.testing.assert_close(found.losses[member, sample], right, rtol=1e-5, atol=1e-5)


def test_answers_to_samples_that_are_read_are_those_to_samples_in_memory_whoever_fetches_them():
    find = partial(
        evaluating.answers, variables(MODELS["mlp"]), model=MODELS["mlp"], loss=losses.cross_entropy, chunk=7
    )
    asked, lengths = [], []

    def fetch(take, places):
        for ids in places:
            asked.extend(ids.tolist())
            lengths.append(len(ids))
            yield take(ids)

    read = Dataset(x=Read(), y=DATA.y, classes=DATA.classes)
    assert tree.equal(find(read, fetch=fetch), find(DATA))
    assert asked == list(range(24)) and lengths == [7, 7, 7, 3]


def test_answers_write_to_none_of_the_variables():
    own = variables(MODELS["batch_norm"])
    before = tree.map(torch.clone, own)
    evaluating.answers(own, DATA, model=MODELS["batch_norm"], loss=losses.cross_entropy)
    assert tree.equal(own, before)


def test_what_is_measured_is_the_mean_loss_and_every_metric_of_every_member():
    model = MODELS["mlp"]
    found = evaluating.answers(variables(model), DATA, model=model, loss=losses.cross_entropy)
    asked: dict[str, Metric] = {"f1": partial(metrics.f1, classes=3), "accuracy": partial(metrics.accuracy, classes=3)}
    measured = evaluating.measured(found, DATA.y, asked)
    assert list(measured) == ["loss", "f1", "accuracy"]
    assert all(values.dtype == torch.float64 and values.shape == (MEMBERS,) for values in measured.values())
    for member in range(MEMBERS):
        outputs = found.outputs[member]
        right = math.fsum(found.losses[member].tolist()) / 24
        assert measured["loss"][member].item() == pytest.approx(right, rel=1e-12)
        assert measured["f1"][member].item() == pytest.approx(metrics.f1(outputs, DATA.y, classes=3).item())
    assert len(set(measured["loss"].tolist())) == MEMBERS


@given(seed=seeds, size=st.integers(1, 40), classes=st.integers(2, 6))
def test_a_confusion_matrix_is_that_of_scikit_learn(seed, size, classes):
    outputs = numbers(size, classes, seed=seed)
    y = torch.randint(classes, (size,), generator=torch.Generator().manual_seed(seed))
    found = evaluating.confusion(outputs, y, classes=classes)
    right = sklearn.metrics.confusion_matrix(y, outputs.argmax(1), labels=range(classes))
    assert found.dtype == torch.int64 and found.tolist() == right.tolist()


@given(seed=seeds)
def test_what_is_predicted_is_the_likeliest_class_or_every_likely_class_or_the_outputs(seed):
    outputs = numbers(5, 3, seed=seed)
    logits = outputs.tolist()
    assert evaluating.predicted(outputs, "classification").tolist() == [
        max(range(3), key=o.__getitem__) for o in logits
    ]
    likely = [[1 / (1 + math.exp(-z)) > 0.5 for z in row] for row in logits]
    assert evaluating.predicted(outputs, "multi-label").tolist() == likely
    assert evaluating.predicted(outputs, "regression") is outputs


def test_predicted_sets_of_classes_are_those_that_metrics_judge():
    outputs = numbers(40, 3)
    assert metrics.exact_match(outputs, evaluating.predicted(outputs, "multi-label"), classes=3) == 1


@pytest.mark.parametrize("count", [1, MEMBERS])
def test_a_function_over_members_is_mapped_where_torch_can_and_taken_in_turn_where_it_cannot(count):
    own = {"w": numbers(count, 4)}
    turns = []

    def can(member, factor):
        turns.append("can")
        return member["w"] * factor, member["w"].sum()

    def cannot(member, factor):
        turns.append("cannot")
        return (member["w"] * factor, torch.tensor(member["w"].sum().item(), dtype=torch.float64))

    for function, called in ((can, 1), (cannot, count + (count > 1))):
        turns.clear()
        products, sums = mapping.over_members(function, own, torch.tensor(2.0))
        assert_close((products, sums), (2 * own["w"], own["w"].sum(1)))
        assert len(turns) == called


def test_what_goes_wrong_over_members_is_not_hidden():
    def wrong(member):
        raise RuntimeError("the matrix is singular")

    with pytest.raises(RuntimeError, match="the matrix is singular"):
        mapping.over_members(wrong, {"w": numbers(3, 4)})
    with pytest.raises(KeyError, match="bias"):
        mapping.over_members(lambda member: member["bias"], {"w": numbers(3, 4)})


SHIFT, FACTOR = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, 3.0]])  # broadcast over samples [4, 2]


@every_model
def test_a_scaled_model_is_the_model_of_scaled_samples_in_evaluation_and_in_training(model):
    scaled, by_hand = inputs.scaled(model, SHIFT, FACTOR), (X - SHIFT) * FACTOR
    (params, buffers), (plain, rest) = scaled.init(1), model.init(1)
    assert tree.equal(params, plain) and {name: buffers[name] for name in rest}.keys() == rest.keys()
    assert torch.equal(scaled.apply({**params, **buffers}, X), model.apply({**plain, **rest}, by_hand))
    outputs, after = scaled.train(params, buffers, X, PLACE)
    right, moved = model.train(plain, rest, by_hand, PLACE)
    assert torch.equal(outputs, right)
    assert after.keys() == buffers.keys() and tree.equal({name: after[name] for name in moved}, moved)
    assert torch.equal(after[inputs.SHIFT], SHIFT) and torch.equal(after[inputs.FACTOR], FACTOR)


@every_model
def test_training_a_scaled_model_is_training_the_model_on_scaled_samples(model):
    optimizer = optim.sgd(learning_rate=0.1, momentum=0.9)
    by_hand = (X - SHIFT) * FACTOR
    scaled = inputs.scaled(model, SHIFT, FACTOR)
    ours, theirs = (training.train_start(0, model=own, optimizer=optimizer) for own in (scaled, model))
    for turn in range(4):
        ids = rng.shuffle(torch.arange(8), 24, turn)
        step = partial(training.train_step, loss=losses.cross_entropy, optimizer=optimizer)
        ours = step(ours, Batch(X[ids], DATA.y[ids], ids), model=scaled)
        theirs = step(theirs, Batch(by_hand[ids], DATA.y[ids], ids), model=model)
    assert tree.equal(ours.params, theirs.params)
    kept = {name: leaf for name, leaf in ours.buffers.items() if name not in (inputs.SHIFT, inputs.FACTOR)}
    assert tree.equal(kept, theirs.buffers)
    assert torch.equal(ours.buffers[inputs.SHIFT], SHIFT)


def test_scaled_members_mapped_equal_the_loop_and_share_no_memory_with_their_units():
    scaled = inputs.scaled(MODELS["mlp"], SHIFT, FACTOR)
    own = variables(scaled)
    mapped = vmap(scaled.apply, in_dims=(0, None))(own, X)
    looped = tree.stack([scaled.apply(member, X) for member in tree.apart(own)])
    torch.testing.assert_close(mapped, looped, rtol=1e-5, atol=1e-5)
    assert scaled.init(0)[1][inputs.SHIFT].data_ptr() != SHIFT.data_ptr()


def state():
    return training.train_start(3, model=MODELS["mlp"], optimizer=optim.adam(learning_rate=0.1))


def test_views_of_parameters_are_their_norm_and_their_largest_magnitude():
    every = [number for leaf in state().params.values() for number in leaf.flatten().tolist()]
    assert views.parameter_norm(state()).item() == pytest.approx(math.hypot(*every), rel=1e-5)
    assert views.largest_parameter(state()).item() == max(map(abs, every))


def test_a_view_of_the_loss_is_that_of_the_last_batch():
    assert views.last_loss(state()).isnan()
    step = partial(training.train_step, model=MODELS["mlp"], loss=losses.cross_entropy)
    after = step(state(), DATA.take(torch.arange(8)), optimizer=optim.adam(learning_rate=0.1))
    right = losses.cross_entropy(MODELS["mlp"].apply(state().params, X[:8]), DATA.y[:8]).mean()
    torch.testing.assert_close(views.last_loss(after), right)


def test_views_are_numbers_that_map_over_members():
    states = tree.stack([state(), state()])
    for view in (views.parameter_norm, views.largest_parameter, views.last_loss):
        assert view(state()).shape == ()
        torch.testing.assert_close(vmap(view)(states), view(state()).expand(2), equal_nan=True)
