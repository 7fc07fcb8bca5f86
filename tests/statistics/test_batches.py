"""What `data` may be, and that every wrong form of it is told clearly."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from pyalign.errors import DataError, NonFiniteError, PyalignWarning
from pyalign.statistics import checked, outputs_of, split
from pyalign.statistics.batches import batch_size, repeatable
from pyalign.statistics.forward import evaluating, first_nonfinite, nonfinite_error, respond


@dataclass
class Answer:
    loss: torch.Tensor | None
    logits: torch.Tensor


def test_split_tells_inputs_from_targets():
    x, y = torch.zeros(4, 3), torch.arange(4)
    assert split(x) == (x, None)
    assert split((x, y)) == (x, y)
    assert split([x, y]) == (x, y)
    assert split([x]) == (x, None)
    assert split(((x, x), y)) == ((x, x), y)
    assert split({"input_ids": x, "labels": y}) == ({"input_ids": x}, y)
    assert split({"input_ids": x, "mask": x}) == ({"input_ids": x, "mask": x}, None)


@pytest.mark.parametrize("key", ["labels", "label", "targets", "target", "y"])
def test_split_knows_the_names_of_targets(key):
    inputs, targets = split({"x": torch.zeros(1), key: torch.ones(1)})
    assert list(inputs) == ["x"]
    assert targets.item() == 1


@pytest.mark.parametrize(
    "batch",
    [None, 3, "text", (), (torch.zeros(1),) * 3, ("a", torch.zeros(1)), {"labels": torch.zeros(1)}, {}],
    ids=str,
)
def test_split_refuses_what_is_no_batch(batch):
    with pytest.raises(DataError, match=r"Given: .*Expected: .*What to do: "):
        split(batch)


def test_outputs_of_takes_logits_first():
    logits, other = torch.ones(2), torch.zeros(1)
    assert outputs_of(logits) is logits
    assert outputs_of({"loss": other, "logits": logits}) is logits
    assert outputs_of(Answer(other, logits)) is logits
    assert outputs_of({"out": logits, "aux": other}) is logits
    assert outputs_of((logits, other)) is logits
    with pytest.raises(DataError, match="without any tensor"):
        outputs_of({"text": "none"})


@pytest.mark.parametrize("data", [[], iter(()), (x for x in ())], ids=["list", "iterator", "generator"])
def test_empty_data(data):
    with pytest.raises(DataError, match="data is empty"):
        list(checked(data))


class MapDataset(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return torch.zeros(3), 0


@pytest.mark.parametrize("data", [torch.zeros(4, 3), {"x": torch.zeros(4, 3)}, 7, "digits", MapDataset()])
def test_what_is_no_iterable_of_batches(data):
    with pytest.raises(DataError, match="not an iterable of batches"):
        list(checked(data))


def test_checked_passes_a_dataloader_through():
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.arange(5.0)), batch_size=2)
    assert [batch_size(split(batch)[0]) for batch in checked(loader)] == [2, 2, 1]


def test_one_pass_data_is_kept_only_when_read_again():
    batches = [torch.zeros(1), torch.ones(1)]
    assert repeatable(batches, 9) is batches
    once = iter(batches)
    assert repeatable(once, 1) is once
    with pytest.warns(PyalignWarning, match="one-pass iterator and is read 3 times"):
        kept = repeatable(iter(batches), 3)
    assert [len(list(kept)) for _ in range(3)] == [2, 2, 2]


def test_a_batch_the_model_cannot_take_is_named():
    with pytest.raises(DataError, match=r"Linear cannot take batch 7: .*Given: float32 \(4, 2\) on cpu") as caught:
        respond(nn.Linear(3, 1), torch.zeros(4, 2), 7)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_another_dtype_than_the_model():
    with pytest.raises(DataError, match=r"float64 \(4, 3\).*Expected: inputs of float32.*\.to\(torch\.float32\)"):
        respond(nn.Linear(3, 1), torch.zeros(4, 3, dtype=torch.float64), 0)


def test_another_device_than_the_model():
    with pytest.raises(DataError, match=r"on cpu.*Expected: inputs on meta, where the model is.*move the batches"):
        respond(nn.Linear(3, 1).to("meta"), torch.zeros(4, 3), 0)


def test_dict_inputs_are_keywords():
    assert respond(nn.Bilinear(1, 1, 1), {"input1": torch.ones(1), "input2": torch.ones(1)}, 0).shape == (1,)
    with pytest.raises(DataError, match="unexpected keyword"):
        respond(nn.Linear(1, 1), {"pixels": torch.ones(1)}, 0)


def test_evaluating_restores_every_mode_also_after_an_error():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout()))
    model[1].eval()
    before = [module.training for module in model.modules()]
    with pytest.raises(ZeroDivisionError), evaluating(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
        raise ZeroDivisionError
    assert [module.training for module in model.modules()] == before
    assert torch.is_grad_enabled()


def test_the_first_layer_with_nan_is_named():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    x = torch.ones(1, 2)
    assert first_nonfinite(model, x) == ""
    with torch.no_grad():
        model[2].weight[0, 0] = float("inf")
    assert first_nonfinite(model, x) == "2"
    assert not model[2]._forward_hooks
    error = nonfinite_error(model, x, 4, " at t=0.5")
    assert isinstance(error, NonFiniteError)
    assert "layer '2' at t=0.5" in str(error) and "batch 4" in str(error)
    with torch.no_grad():
        model[2].weight.zero_()
    assert str(nonfinite_error(model[0], x, 4)).startswith("the loss is NaN or infinite")
    broken = nn.Linear(2, 2)
    broken.bias.data.fill_(float("inf"))
    assert "layer 'the model itself'" in str(nonfinite_error(broken, torch.ones(1, 2), 0))
    assert "inputs of batch 1" in str(nonfinite_error(model, torch.tensor([[float("nan"), 0.0]]), 1))
