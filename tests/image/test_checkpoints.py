"""Checkpoint files: whole or not at all, and no code from them."""

import pytest
import torch

from scmixvi.image.checkpoints import check_fit, read_checkpoint, write_checkpoint

GOOD = {"state_dict": {"weight": torch.arange(3.0)}, "epoch": 4}


def test_round_trip_makes_missing_folders(tmp_path):
    path = tmp_path / "new" / "run" / "best.ckpt"
    write_checkpoint(GOOD, path)
    read = read_checkpoint(path)
    assert read["epoch"] == 4
    assert torch.equal(read["state_dict"]["weight"], torch.arange(3.0))
    assert [p.name for p in path.parent.iterdir()] == ["best.ckpt"]


def test_an_interrupted_write_leaves_the_good_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    write_checkpoint(GOOD, path)

    def power_cut(checkpoint, file):
        file.write(b"half of a checkpoint")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", power_cut)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint({"state_dict": {}}, path)
    assert read_checkpoint(path)["epoch"] == 4
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no checkpoint .*gone.ckpt"):
        read_checkpoint(tmp_path / "gone.ckpt")


@pytest.mark.parametrize("damage", ["cut short", "first bytes", "middle", "empty", "text"])
def test_a_damaged_file_gets_one_clear_sentence(tmp_path, damage):
    path = tmp_path / "last.ckpt"
    write_checkpoint({"state_dict": {"weight": torch.randn(5000)}}, path)
    data = bytearray(path.read_bytes())
    if damage == "cut short":
        data = data[: len(data) // 2]
    elif damage == "first bytes":
        data[:200] = bytes(200)
    elif damage == "middle":
        data[-600:-300] = bytes(300)
    else:
        data = bytearray(b"" if damage == "empty" else b"not a checkpoint at all")
    path.write_bytes(data)
    with pytest.raises(ValueError, match="no readable checkpoint"):
        read_checkpoint(path)


class Bomb:
    """Pickled, it would run code when it is loaded."""

    def __reduce__(self):
        return exec, ("raise SystemError('code ran')",)


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path):
    torch.save({"state_dict": {}, "bomb": Bomb()}, tmp_path / "bomb.ckpt")
    with pytest.raises(ValueError, match="no readable checkpoint"):
        read_checkpoint(tmp_path / "bomb.ckpt")


def test_a_file_without_weights_is_no_checkpoint(tmp_path):
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(ValueError, match="holds no weights"):
        read_checkpoint(tmp_path / "list.ckpt")


def test_the_first_difference_is_named():
    here = {"a": torch.zeros(2), "b": torch.zeros(3)}
    check_fit({"a": torch.ones(2), "b": torch.ones(3)}, here)
    with pytest.raises(ValueError, match=r"'b' has shape \(4,\) in it and \(3,\) here"):
        check_fit({"a": torch.ones(2), "b": torch.ones(4)}, here)
    with pytest.raises(ValueError, match=r"'b' has shape none in it and \(3,\) here"):
        check_fit({"a": torch.ones(2)}, here)
    with pytest.raises(ValueError, match=r"'c' has shape \(1,\) in it and none here"):
        check_fit(here | {"c": torch.ones(1)}, here)
