"""Training that begins where another ended, and parameters that stay as they are."""

import copy
import json
from functools import partial

import pytest
import safetensors.torch
import tomli_w
import torch
from hypothesis import given
from hypothesis import strategies as st
from nets import normed
from small import CONFIG, fcurr, written
from torch import nn
from torch.func import vmap
from worlds import assert_close, blobs, members, seeds, whole

from fcurr import losses, models, training, transfer, tree
from fcurr.errors import BadInput
from fcurr.inputs import scaled
from fcurr.io import configs, runner, store, using
from fcurr.optim import adam, adamw, clipped, plateau, sgd
from fcurr.tracing import traced

DATA = blobs()
MLP = models.mlp(features=(6,), classes=3, hidden=(5, 4))
OPTIMIZERS = {
    "momentum": sgd(learning_rate=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": adam(learning_rate=0.05, weight_decay=0.1),
    "adamw": adamw(learning_rate=0.05, weight_decay=0.5),
    "clipped": clipped(optimizer=sgd(learning_rate=0.5, momentum=0.9, weight_decay=0.1), max_norm=0.1),
    "plateau": plateau(optimizer=clipped(optimizer=adamw(learning_rate=0.05), max_norm=1.0)),
}


def offer(model, seed=7):
    params, buffers = model.init(seed)
    return {**params, **buffers}


def trained(model, optimizer, steps=4, seed=0, data=DATA):
    state = training.train_start(seed, model=model, optimizer=optimizer)
    batch = whole(data)._replace(x=torch.as_tensor(data.x).float())
    for _ in range(steps):
        state = training.train_step(state, batch, model=model, loss=losses.cross_entropy, optimizer=optimizer)
    return state


@given(seed=seeds, names=st.sets(st.sampled_from(sorted(MLP.init(0)[0])), min_size=1))
def test_a_started_model_has_the_tensors_it_was_given_and_its_own_by_the_seed_elsewhere(seed, names):
    tensors = {name: leaf for name, leaf in offer(MLP).items() if name in names}
    params, buffers = transfer.started(MLP, tensors).init(seed)
    own, _ = MLP.init(seed)
    assert list(params) == list(own) and buffers == {}
    for name, leaf in params.items():
        assert torch.equal(leaf, tensors[name] if name in names else own[name])
        assert name not in tensors or leaf.data_ptr() != tensors[name].data_ptr()


def test_a_head_of_another_shape_is_left_to_the_seed_and_told():
    other = models.mlp(features=(6,), classes=7, hidden=(5, 4))
    tensors = {**offer(other), "extra": torch.ones(3)}
    found = transfer.agreement(MLP, tensors)
    assert found.taken == ("0.weight", "0.bias", "1.weight", "1.bias")
    assert (found.other, found.unknown, found.missing) == (("2.weight", "2.bias"), ("extra",), ())
    assert transfer.differing(MLP, tensors, found.other) == (
        "2.weight ([7, 4] there, [3, 4] here), 2.bias ([7] there, [3] here)"
    )
    params, _ = transfer.started(MLP, tensors).init(3)
    assert torch.equal(params["2.weight"], MLP.init(3)[0]["2.weight"])
    assert torch.equal(params["1.weight"], tensors["1.weight"])


def test_buffers_are_taken_as_parameters_are_and_whole_numbers_only_as_such():
    model = normed(features=(1, 4, 4), classes=3)
    tensors = offer(model) | {"1.running_mean": torch.arange(4.0), "1.num_batches_tracked": torch.tensor(9.0)}
    _, buffers = transfer.started(model, tensors).init(0)
    assert torch.equal(buffers["1.running_mean"], torch.arange(4.0)) and int(buffers["1.num_batches_tracked"]) == 0
    assert transfer.agreement(model, tensors).other == ("1.num_batches_tracked",)
    half = {name: leaf.half() for name, leaf in offer(MLP).items()}
    params, _ = transfer.started(MLP, half).init(0)
    assert all(leaf.dtype == torch.float32 and torch.equal(leaf, half[name].float()) for name, leaf in params.items())


def test_units_are_those_that_the_weights_were_trained_in():
    shift, factor = torch.full((6,), 2.0), torch.full((6,), 3.0)
    tensors = offer(scaled(MLP, shift, factor))
    model = transfer.started(scaled(MLP, torch.zeros(6), torch.ones(6)), tensors)
    x = torch.as_tensor(DATA.x).float()
    params, buffers = model.init(0)
    right = scaled(MLP, shift, factor).apply(tensors, x)
    assert torch.equal(model.apply({**params, **buffers}, x), right)


def test_patterns_choose_the_tensors_that_are_offered():
    tensors = offer(MLP)
    assert list(transfer.offered(tensors)) == list(tensors)
    assert list(transfer.offered(tensors, only=["*.weight"])) == ["0.weight", "1.weight", "2.weight"]
    assert list(transfer.offered(tensors, only=["0.*", "1.*"], without=["*.bias"])) == ["0.weight", "1.weight"]
    for key in ("only", "without"):
        with pytest.raises(BadInput) as wrong:
            transfer.offered(tensors, **{key: ["haed.*"]})
        assert (wrong.value.where, str(wrong.value)) == (
            key,
            "`haed.*` matches none of 0.weight, 0.bias, 1.weight, 1.bias and 2 more",
        )


def test_nothing_taken_is_refused_with_the_names_of_both_sides():
    with pytest.raises(BadInput) as wrong:
        transfer.started(MLP, {"trunk.weight": torch.ones(5, 6), "0.weight": torch.ones(2)})
    assert str(wrong.value) == (
        "nothing fits the model by name and shape: there are trunk.weight [5, 6], 0.weight [2]; "
        "the model has 0.weight [5, 6], 0.bias [5], 1.weight [4, 5], 1.bias [4] and 2 more"
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_frozen_parameter_is_bitwise_what_it_was_under_any_optimizer(name):
    start = transfer.started(MLP, offer(MLP))
    model = transfer.frozen(start, transfer.held(start, ["0.*", "1.bias"]))
    state = trained(model, OPTIMIZERS[name])
    end, begin = training.variables(state), offer(MLP)
    for leaf in ("0.weight", "0.bias", "1.bias"):
        assert torch.equal(end[leaf], begin[leaf]), leaf
    for leaf in ("1.weight", "2.weight", "2.bias"):
        assert not torch.equal(end[leaf], begin[leaf]), leaf
    assert set(state.params) == {"1.weight", "2.weight", "2.bias"}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_not_frozen_moves_as_torch_moves_it_when_the_rest_needs_no_gradient(name):
    """Plain autograd over the parameters that are left, the optimizer on these alone."""
    optimizer = OPTIMIZERS[name]
    model = transfer.frozen(MLP, ["0.weight", "0.bias"])
    state = trained(model, optimizer, seed=3)
    own, _ = MLP.init(3)
    held = {key: own.pop(key) for key in ("0.weight", "0.bias")}
    memory, batch = optimizer.init(own), whole(DATA)
    for _ in range(4):
        leaves = {key: leaf.clone().requires_grad_() for key, leaf in own.items()}
        outputs = MLP.apply({**leaves, **held}, batch.x.float())
        grads = torch.autograd.grad(nn.functional.cross_entropy(outputs, batch.y), list(leaves.values()))
        own, memory = optimizer.update(dict(zip(leaves, grads, strict=True)), memory, own)
    assert_close(state.params, own, rtol=1e-5, atol=1e-6)


def test_frozen_members_mapped_and_traced_equal_the_loop():
    model = transfer.frozen(transfer.started(MLP, transfer.offered(offer(MLP), only=["0.*"])), ["0.weight"])
    optimizer = OPTIMIZERS["clipped"]
    starts = tree.stack([training.train_start(seed, model=model, optimizer=optimizer) for seed in (0, 1, 2)])
    batch = whole(DATA)._replace(x=torch.as_tensor(DATA.x).float())
    step = partial(training.train_step, model=model, loss=losses.cross_entropy, optimizer=optimizer)
    mapped = vmap(step, in_dims=(0, None))
    one = traced(mapped, starts, batch)(starts, batch)
    assert_close(one, tree.stack([step(state, batch) for state in members(starts)]), rtol=1e-5, atol=1e-6)
    for state in members(one):
        assert torch.equal(state.buffers["0.weight"], offer(MLP)["0.weight"])


def test_running_statistics_of_a_frozen_layer_go_on_following_the_data():
    model = normed(features=(1, 4, 4), classes=3)
    data = blobs(features=(1, 4, 4))
    state = trained(transfer.frozen(model, transfer.held(model, ["0.*", "1.*"])), sgd(learning_rate=0.1), data=data)
    end, begin = training.variables(state), offer(model, seed=0)
    assert all(torch.equal(end[name], begin[name]) for name in ("0.weight", "0.bias", "1.weight", "1.bias"))
    assert not torch.equal(end["1.running_mean"], begin["1.running_mean"])
    assert int(end["1.num_batches_tracked"]) == 4


def test_a_model_of_which_nothing_is_frozen_is_itself_and_one_of_which_all_is_is_refused():
    assert transfer.frozen(MLP, ()) is MLP
    with pytest.raises(BadInput, match=r"^nothing is left to train: 0.weight, .* and 2 more are all parameters there"):
        transfer.held(MLP, ["*"])
    with pytest.raises(BadInput, match=r"^`head` matches none of 0.weight"):
        transfer.held(MLP, ["head"])


# runs


def config(**more):
    own = {key: copy.deepcopy(CONFIG[key]) for key in ("name", "seed", "data", "split", "model", "optimizer")}
    return own | {"training": {"total_iterations": 12, "batch_size": 16, "evaluate_every": 6}, **more}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run of two members, and the weights of the second as a file."""
    folder = tmp_path_factory.mktemp("first")
    path = written(folder, config(name="a", members={"seed": [0, 1]}))
    assert fcurr("run", path, "--out", folder).exit_code == 0
    assert fcurr("export", folder / "a", folder / "w.safetensors", "--member", "1", "--last").exit_code == 0
    return folder


def begun(folder, start, **more):
    experiment = configs.read(config(start=start, **more))
    return runner.load(experiment)


def test_a_run_starts_from_a_file_as_from_the_run_that_it_was_exported_from(first):
    prepared = begun(first, {"weights": str(first / "w.safetensors")})
    tensors = safetensors.torch.load_file(first / "w.safetensors")
    params, buffers = prepared.model.init(5)
    assert tree.equal({**params, **buffers}, tensors)
    same = begun(first, {"run": str(first / "a"), "member": 1, "which": "last"})
    assert tree.equal(same.model.init(5)[0], params)
    best = begun(first, {"run": str(first / "a"), "member": 0})
    assert tree.equal(best.model.init(5)[0], using.weights(first / "a", 0, "best").variables)


def test_models_that_score_start_from_scratch(first, tmp_path):
    more = {"score": {"fn": "cross_validated_loss", "folds": 2}, "fit": {"iterations": 5, "batch_size": 16}}
    start = {"weights": str(first / "w.safetensors"), "freeze": ["0.*"]}
    for name, own in (("plain", {}), ("started", {"start": start})):
        assert fcurr("run", written(tmp_path, config(name=name, **more, **own)), "--out", tmp_path).exit_code == 0
    scores = [(tmp_path / name / store.SCORES).read_bytes() for name in ("plain", "started")]
    assert scores[0] == scores[1]
    rows = [store.metrics(tmp_path / name)[-1]["loss"] for name in ("plain", "started")]
    assert rows[0] != rows[1]


def test_a_run_that_starts_and_freezes_says_so_and_leaves_the_frozen_as_they_were(first, tmp_path):
    """Digits learned by 8 hidden units; then iris-like: a head of 10 classes is another for 3."""
    start = {"run": str(first / "a"), "member": 1, "which": "last", "freeze": ["0.*"]}
    data = {"data": {"fn": "digits"}, "model": {"fn": "mlp", "hidden": [8, 4]}}
    path = written(tmp_path, config(name="b", start=start, **data))
    told = fcurr("check", path, "--out", tmp_path).stdout
    assert f"  start from member 1 of {first}/a, step 12, 2 of the model's 6 tensors\n" in told
    by_seed = "1.weight ([10, 8] there, [4, 8] here), 1.bias ([10] there, [4] here), 2.weight, 2.bias"
    assert f"  draw by seed {by_seed}\n  freeze 0.weight, 0.bias\n" in told
    assert fcurr("run", path, "--out", tmp_path).exit_code == 0
    facts = json.loads((tmp_path / "b/results.json").read_text())["facts"]
    assert facts["frozen"] == "0.weight, 0.bias" and facts["by seed"] == by_seed
    begin, end = using.weights(first / "a", 1, "last").variables, using.weights(tmp_path / "b", 0, "last").variables
    assert torch.equal(begin["0.weight"], end["0.weight"]) and torch.equal(begin["0.bias"], end["0.bias"])
    assert set(end) == {f"{layer}.{kind}" for layer in range(3) for kind in ("weight", "bias")}


def test_a_run_is_continued_with_the_weights_that_it_started_from_and_no_others(first, tmp_path):
    tensors = safetensors.torch.load_file(first / "w.safetensors")
    weights = tmp_path / "w.safetensors"
    safetensors.torch.save_file(tensors, weights)
    path = written(tmp_path, config(name="b", start={"weights": str(weights)}))
    assert fcurr("run", path, "--out", tmp_path).exit_code == 0
    longer = (path, "training.total_iterations=18", "--out", tmp_path)
    safetensors.torch.save_file(tensors | {"1.bias": tensors["1.bias"] + 1}, weights)
    result = fcurr("run", *longer)
    assert result.exit_code == 2 and "holds a run that started from other weights; name=..." in result.stderr
    safetensors.torch.save_file(dict(reversed(tensors.items())), weights)
    assert fcurr("run", *longer).exit_code == 0


SAID = {
    "neither": (
        {},
        "start: tensors come from `weights`, a file; from `run`, the folder of a run; or from `config`, which is "
        "trained first: one of them",
    ),
    "both": ({"weights": "W", "run": "A"}, "start: tensors come from `weights`, a file; from `run`"),
    "a member of a file": (
        {"weights": "W", "member": 1},
        "start.member: a file has no members: `member` belongs to `run`",
    ),
    "no file": ({"weights": "none.safetensors"}, "start.weights: there is no file none.safetensors"),
    "a folder": ({"weights": "A"}, "is a folder: `run` takes a run's"),
    "no tensors": ({"weights": "C"}, "c.toml is not a readable .safetensors file: "),
    "no run": ({"run": "nowhere"}, "start.run: nowhere has no checkpoint"),
    "no member": ({"run": "A", "member": 2}, "start.run: there is no member 2"),
    "a wrong key": ({"run": "A", "freze": ["0.*"]}, "start.freze: [start] takes no `freze` (did you mean `freeze`?)"),
    "a wrong kind": ({"run": "A", "freeze": "0.*"}, 'start.freeze: "0.*" is not a list of patterns of names'),
    "a pattern of nothing": ({"run": "A", "freeze": ["head.*"]}, "start.freeze: `head.*` matches none of 0.weight"),
    "only nothing": ({"run": "A", "only": ["head.*"]}, "`head.*` matches none of 0.bias, 0.weight"),
    "all frozen": ({"run": "A", "freeze": ["*"]}, "start.freeze: nothing is left to train"),
    "nothing fits": (
        {"weights": "O"},
        "start: O: nothing fits the model by name and shape: there are x [2]; the model",
    ),
    "not a number": ({"weights": "N"}, "0.bias has a value that is not a finite number"),
    "not a table": ("A", 'start: "A" is not a table'),
}


@pytest.mark.parametrize("case", SAID)
def test_what_cannot_be_started_from_is_said_where_it_was_written(case, first, tmp_path):
    start, words = SAID[case]
    files = {name: str(tmp_path / f"{name.lower()}.safetensors") for name in "ON"}
    files |= {"A": str(first / "a"), "W": str(first / "w.safetensors"), "C": str(tmp_path / "c.toml")}
    safetensors.torch.save_file({"x": torch.ones(2)}, files["O"])
    safetensors.torch.save_file({"0.bias": torch.full((8,), torch.nan)}, files["N"])
    (tmp_path / "c.toml").write_text(tomli_w.dumps({"a": 1}))
    if isinstance(start, dict):
        start = {key: files.get(value, value) if isinstance(value, str) else value for key, value in start.items()}
    result = fcurr("check", written(tmp_path, config(start=start)))
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert words.replace("O:", f"{files['O']}:") in result.stderr, result.stderr
