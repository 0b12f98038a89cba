"""Batches of pixels: order, scale, draws and resumption."""

import numpy as np
import pytest
import torch
from idx_files import grey

from scmixvi.image.batches import ImageBatches, binarise_once


def test_binarise_once_is_the_same_draw_and_leaves_the_default_generator_alone():
    pixels = grey(40, 9)
    state = torch.get_rng_state()
    first, rest = binarise_once(pixels[:10], pixels[10:])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(torch.cat(binarise_once(pixels[:10], pixels[10:])), torch.cat([first, rest]))
    assert set(first.unique().tolist()) == {0.0, 1.0}
    p = pixels[10:].float() / 255
    error = (p * (1 - p)).sum().sqrt()
    assert (rest.sum() - p.sum()).abs() < 4 * error
    assert rest[pixels[10:] == 255].all()
    assert not rest[pixels[10:] == 0].any()


def test_the_one_draw_of_the_held_out_images_is_this_one():
    """Figures of different versions are of the same images."""
    (drawn,) = binarise_once(torch.full((24,), 128, dtype=torch.uint8))
    assert "".join(str(int(pixel)) for pixel in drawn) == "111100000110100001000111"


def test_every_image_comes_once_an_epoch_and_the_order_changes():
    pixels = torch.arange(12, dtype=torch.uint8).reshape(12, 1, 1, 1)
    batches = ImageBatches(pixels, 4, shuffle=True)
    epochs = [torch.cat(list(batches)).mul(255).round().flatten().tolist() for _ in range(2)]
    assert [sorted(e) for e in epochs] == [list(range(12))] * 2
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize(("n", "shuffle", "sizes"), [
    (11, False, [4, 4, 3]),
    (11, True, [4, 4]),
    (3, True, [3]),
    (12, True, [4, 4, 4]),
])  # fmt: skip
def test_only_shuffled_batches_drop_the_incomplete_last(n, shuffle, sizes):
    batches = ImageBatches(grey(n), 4, shuffle=shuffle)
    assert [len(x) for x in batches] == sizes
    assert len(batches) == len(sizes)


def test_grey_values_are_scaled_to_the_unit_interval():
    pixels = grey(5)
    (x,) = ImageBatches(pixels, 5)
    torch.testing.assert_close(x, pixels.float() / 255)
    assert torch.equal(next(iter(ImageBatches(x, 5))), x)


def test_pixels_are_drawn_anew_from_their_grey_values():
    pixels = grey(3)
    batches = ImageBatches(pixels, 3, binarise=True)
    draws = torch.stack([next(iter(batches)) for _ in range(800)])
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    p = pixels.float() / 255
    z = (draws.mean(0) - p) / (p * (1 - p) / 800).sqrt().clamp(min=1e-6)
    assert z.abs().max() < 5
    assert z.square().mean() < 2


def test_half_of_the_images_are_mirrored_each_whole():
    pixels = grey(2000, 3, 3)
    (x,) = ImageBatches(pixels, 2000, flip=True)
    plain = (x == pixels.float() / 255).flatten(1).all(1)
    mirrored = (x.flip(-1) == pixels.float() / 255).flatten(1).all(1)
    assert (plain | mirrored).all()
    assert abs(int(mirrored.sum()) - 1000) < 4 * (2000 * 0.25) ** 0.5


def test_an_interrupted_epoch_goes_on_where_it_stood():
    torch.manual_seed(3)
    whole = list(ImageBatches(grey(20), 4, shuffle=True))
    torch.manual_seed(3)
    interrupted = ImageBatches(grey(20), 4, shuffle=True)
    epoch = iter(interrupted)
    head = [next(epoch), next(epoch)]
    resumed = ImageBatches(grey(20), 4, shuffle=True)
    resumed.load_state_dict(interrupted.state_dict())
    torch.testing.assert_close(head + list(resumed), whole, rtol=0, atol=0)
    assert len(list(resumed)) == 5


def test_the_state_after_a_whole_epoch_is_a_new_epoch():
    batches = ImageBatches(grey(8), 4, shuffle=True)
    list(batches)
    assert batches.state_dict()["position"] == 0


@pytest.mark.parametrize(("pixels", "complaint"), [
    (torch.zeros(3, 4, 4), r"\[N, C, H, W\]"),
    (np.zeros((3, 1, 4, 4)), "one tensor .*, but they are of type ndarray: make one .*as_tensor"),
    (torch.zeros(0, 1, 4, 4), "no empty axis"),
    (torch.zeros(1, 1, 4, 4, dtype=torch.int64), "not torch.int64"),
    (torch.full((1, 1, 4, 4), 1.5), r"within \[0, 1\]"),
    (torch.full((1, 1, 4, 4), torch.nan), "not be NaN"),
])  # fmt: skip
def test_pixels_that_are_no_images_are_refused(pixels, complaint):
    with pytest.raises(ValueError, match=complaint):
        ImageBatches(pixels, 2)


def test_a_batch_size_below_one_is_refused():
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1"):
        ImageBatches(grey(2), 0)
