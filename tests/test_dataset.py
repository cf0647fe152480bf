"""The dataset for a loop of one's own: the right picture beside the right targets, holes marked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import polytag
from polytag.dataset import LabelDataset
from polytag.errors import TableError, UserError
from polytag.images import decode
from polytag.losses import masked_bce
from polytag.preprocess import PreprocessSpec, preprocess
from polytag.table import LabelTable

SPEC = PreprocessSpec(24, "squash", "bilinear")


@pytest.fixture(scope="module")
def dataset(world) -> LabelDataset:
    return LabelDataset(world.table(), world.images, SPEC)


def test_every_usable_row_gives_its_picture_its_targets_and_what_is_known(dataset, world):
    assert len(dataset) == len(world.good)
    for index in (0, 1, 17, len(dataset) - 1):
        image, targets, known = dataset[index]
        pixels = preprocess(decode(world.path(world.good[index])), SPEC)
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), pixels)
        row = world.values[index]
        np.testing.assert_array_equal(known.numpy(), ~np.isnan(row))
        np.testing.assert_array_equal(targets.numpy(), np.nan_to_num(row))
        assert image.dtype == torch.uint8 and image.shape == (3, 24, 24)
        assert targets.dtype == torch.float32 and known.dtype == torch.bool


def test_what_cannot_be_used_is_left_out_and_listed_and_no_other_slips_in(dataset, world):
    assert [row.image for row in dataset.skipped] == ["missing.png", "broken.png"]
    assert dataset.skipped[0].where.endswith(f":{world.names.index('missing.png') + 2}")
    assert dataset.table.images == tuple(world.good)


def test_a_loader_makes_batches_that_a_masked_loss_takes(dataset):
    loader = DataLoader(dataset, batch_size=16, shuffle=True)
    cells = 0
    for images, targets, known in loader:
        logits = torch.zeros(len(images), 5, requires_grad=True)
        loss = masked_bce(logits, targets, known)
        loss.backward()
        assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()
        assert logits.grad[~known].count_nonzero() == 0
        cells += int(known.sum())
    assert cells == int((~np.isnan(dataset.table.values)).sum())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of fork in a process with threads
def test_a_loader_with_processes_gives_the_same(dataset):
    alone = [image for image, _, _ in DataLoader(dataset, batch_size=20)]
    helped = [image for image, _, _ in DataLoader(dataset, batch_size=20, num_workers=2)]
    assert all(torch.equal(a, b) for a, b in zip(alone, helped, strict=True))


def test_a_transform_gets_the_pixels_and_its_answer_is_what_comes_out(world):
    seen = []

    def transform(image: np.ndarray) -> str:
        seen.append((image.dtype, image.shape))
        return "mine"

    whole = LabelDataset(world.table(), world.images, transform=transform)
    sized = LabelDataset(world.table(), world.images, SPEC, transform)
    assert whole[0][0] == sized[0][0] == "mine"
    assert seen == [(np.uint8, (40, 48, 3)), (np.uint8, (24, 24, 3))]


def test_without_a_spec_a_picture_keeps_its_size(world):
    assert LabelDataset(world.table(), world.images)[0][0].shape == (3, 40, 48)


def test_a_random_transform_does_not_touch_the_dataset(world):
    def darken(image: np.ndarray) -> np.ndarray:
        image[:] = 0
        return image

    dataset = LabelDataset(world.table(), world.images, SPEC, darken)
    assert dataset[0][0].max() == 0
    dataset.transform = None
    assert dataset[0][0].max() > 0


def test_targets_are_the_datasets_own_and_the_table_stays_as_it_was(world):
    table = world.table()
    dataset = LabelDataset(table, world.images, SPEC)
    dataset[0][1].fill_(9)
    assert np.nanmax(table.values) == 1


def test_nothing_usable_is_an_empty_dataset(tmp_path):
    table = LabelTable(("a.png",), ("x",), [[1]])
    dataset = LabelDataset(table, tmp_path, SPEC)
    assert len(dataset) == 0 and len(dataset.skipped) == 1


def test_a_missing_folder_and_a_name_that_leaves_it_are_refused(world, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        LabelDataset(world.table(), tmp_path / "nowhere", SPEC)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "link.png").symlink_to(world.path("twin.png"))
    table = LabelTable(("link.png",), ("x",), [[1]])
    with pytest.raises(TableError, match="through a link"):
        LabelDataset(table, tmp_path / "images", SPEC)


def test_it_is_public(world):
    assert polytag.LabelDataset is LabelDataset
