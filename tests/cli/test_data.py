"""What `--data` may be: a callable, an image folder, digits."""

import argparse

import pytest
import torch
from cli.helpers_cli import pyalign

from pyalign.cli.answers import UsageError
from pyalign.cli.data import add_data_options, load_data, load_recalibration
from pyalign.cli.images import ImageFolder
from pyalign.errors import DataError, InputError, PyalignError

Image = pytest.importorskip("PIL.Image")


def options(*words):
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    add_data_options(parser, required=False, recalibrate=True)
    return parser.parse_args(list(words))


def batches(text, *words):
    return list(load_data(text, options(*words)))


@pytest.fixture
def images(tmp_path):
    """Three classes of 2, 1 and 3 images of 4 x 6 pixels, each filled with its own colour."""
    for label, (name, count) in enumerate((("ant", 2), ("bee", 1), ("cat", 3))):
        (tmp_path / "images" / name).mkdir(parents=True)
        for k in range(count):
            Image.new("RGB", (6, 4), (50 * label, 10 * k, 255)).save(tmp_path / "images" / name / f"{k}.png")
    (tmp_path / "images" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "images" / ".hidden").mkdir()
    return tmp_path / "images"


def test_digits():
    assert sum(len(labels) for _, labels in batches("digits")) == 1797
    (batch,) = batches("digits:test", "--batch", "500")
    assert batch[0].shape == (500, 1, 8, 8)
    assert sum(len(labels) for _, labels in batches("digits:train", "--limit", "10")) == 10


def test_the_users_function_and_a_file_of_the_user(workplace):
    for text in ("nets_of_a_user:data", "nets_of_a_user.py:data", str(workplace / "nets_of_a_user.py") + ":data"):
        assert [images.shape for images, _ in batches(text)] == [(32, 4), (32, 4)]


def test_a_one_pass_function_is_called_again_for_every_pass(workplace, capsys):
    data = load_data("nets_of_a_user:one_pass", options())
    first, second = list(data), list(data)
    assert all(torch.equal(x[0], y[0]) for x, y in zip(first, second, strict=True))
    assert capsys.readouterr().out.count("called") == 2


def test_images_labels_and_channels(images):
    found = [(x, y) for batch in batches(str(images)) for x, y in zip(*batch, strict=True)]
    assert len(found) == 6 and sorted(int(y) for _, y in found) == [0, 0, 1, 2, 2, 2]
    for pixels, label in found:
        assert pixels.shape == (3, 4, 6) and pixels.dtype == torch.float32
        assert torch.allclose(pixels[0], torch.full((4, 6), 50 * int(label) / 255))
        assert torch.allclose(pixels[2], torch.ones(4, 6))


def test_mean_and_std(images):
    ((pixels, _),) = batches(str(images), "--mean", "0,0,0.5", "--std", "1,1,0.25")
    assert torch.allclose(pixels[:, 2], torch.full_like(pixels[:, 2], 2.0))


def test_size_gray_batch_and_limit(images):
    found = batches(str(images), "--size", "8x2", "--gray", "--batch", "2", "--limit", "5")
    assert [x.shape for x, _ in found] == [(2, 1, 8, 2), (2, 1, 8, 2), (1, 1, 8, 2)]


def test_the_draw_depends_on_the_seed_alone(images):
    orders = {seed: [y.tolist() for _, y in batches(str(images), "--seed", str(seed))] for seed in range(6)}
    assert orders[0] == [y.tolist() for _, y in batches(str(images), "--seed", "0")]
    assert len({str(order) for order in orders.values()}) > 1


@pytest.mark.parametrize("text", ["folder", "digits:test"])
def test_training_draws_a_new_order_for_every_pass(images, text):
    data = load_data(str(images) if text == "folder" else text, options("--limit", "6", "--batch", "3"), shuffle=True)
    torch.manual_seed(0)
    first, second = ([(x, y) for batch in data for x, y in zip(*batch, strict=True)] for _ in range(2))
    torch.manual_seed(0)
    again = [x for batch in data for x in batch[0]]
    assert all(torch.equal(x, y) for x, (y, _) in zip(again, first, strict=True))
    assert any(not torch.equal(x, y) for (x, _), (y, _) in zip(first, second, strict=True))
    key = lambda pair: (int(pair[1]), pair[0].flatten().tolist())  # noqa: E731
    assert sorted(map(key, first)) == sorted(map(key, second))


def test_images_are_decoded_once_and_again_when_there_is_no_room(images, monkeypatch):
    folder = ImageFolder(images, batch=4)
    decoded = []
    real = ImageFolder._decode
    monkeypatch.setattr(ImageFolder, "_decode", lambda self, path: decoded.append(path) or real(self, path))
    first, second = list(folder), list(folder)
    assert len(decoded) == 6 and all(torch.equal(x[0], y[0]) for x, y in zip(first, second, strict=True))
    monkeypatch.setattr("pyalign.cli.images.KEPT_BYTES", 0)
    folder = ImageFolder(images, batch=4)
    assert len(list(folder) + list(folder)) == 4 and len(decoded) == 18


def test_images_of_different_sizes_need_a_size(images):
    Image.new("RGB", (5, 5)).save(images / "bee" / "odd.png")
    with pytest.raises(DataError, match="give --size"):
        batches(str(images))
    assert sum(len(y) for _, y in batches(str(images), "--size", "4")) == 7


def test_a_damaged_image_is_named(images):
    (images / "bee" / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.png cannot be read"):
        batches(str(images))


def test_folders_without_images(tmp_path):
    with pytest.raises(DataError, match="holds no images"):
        batches(str(tmp_path))
    with pytest.raises(DataError, match="there is no folder"):
        batches(str(tmp_path / "none"))


@pytest.mark.parametrize("words", [("--mean", "0,0"), ("--std", "1,1,0")])
def test_means_that_do_not_fit_are_refused(images, words):
    with pytest.raises(InputError, match="--mean and --std"):
        batches(str(images), *words)


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("digits", ("--size", "4"), "--size cannot be used with the data digits"),
        ("nets_of_a_user:data", ("--batch", "4", "--gray"), "--gray, --batch cannot be used"),
        ("nonsense", (), "'nonsense' is none of"),
    ],
)
def test_options_that_do_not_belong_are_refused(workplace, text, words, message):
    with pytest.raises(UsageError, match=message):
        batches(text, *words)


@pytest.mark.parametrize("words", [("--batch", "0"), ("--limit", "x"), ("--size", "3xx"), ("--mean", "a")])
def test_values_that_make_no_sense_are_wrong_usage(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        options(*words)
    assert stopped.value.code == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("number", "returns no iterable of batches.*int"),
        ("missing", "has no 'missing'"),
        ("not_callable", "cannot be called"),
    ],
)
def test_functions_that_give_no_data(workplace, name, message):
    with pytest.raises(InputError, match=message):
        batches(f"nets_of_a_user:{name}")


def test_empty_data_and_data_that_fail_late_end_a_command_with_one_line(workplace, capsys):
    words = ["barrier", "--model", "nets_of_a_user:factory", "--a", "a.safetensors", "--b", "b.safetensors", "--data"]
    for name, message in (("empty", "data is empty"), ("fails_late", "ValueError: the file ended")):
        outcome = pyalign(capsys, *words, f"nets_of_a_user:{name}")
        assert outcome.code == 1 and message in outcome.err and outcome.out == ""


def test_recalibration_takes_the_data_or_its_own(workplace):
    assert load_recalibration(options(), []) is None
    data = load_data("digits:test", options())
    assert load_recalibration(options("--recalibrate"), data) is data
    own = load_recalibration(options("--recalibrate", "digits:train"), data)
    assert sum(len(y) for _, y in own) == 1297
    with pytest.raises(UsageError, match="no --data"):
        load_recalibration(options("--recalibrate"), None)


def test_without_pillow_the_error_says_what_to_install(images, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(PyalignError, match=r"pip install 'pyalign-nn\[images\]'"):
        ImageFolder(images)
