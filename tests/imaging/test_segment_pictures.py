"""Pictures of segments: colours that tell neighbours apart, names inside of things, COCO's numbers."""

import numpy as np

from hourglass_jax.imaging.segment_pictures import Region, encode_ids, segment_overlay


def region(left: int, right: int, color: tuple[int, int, int], is_thing: bool, text: str = "cat 99%") -> Region:
    mask = np.zeros((100, 200), bool)
    mask[20:80, left:right] = True
    return Region(mask, text, color, is_thing)


def blended(color: tuple[int, int, int]) -> np.ndarray:
    """A colour on a black photograph."""
    return np.rint(np.array(color) / 2).astype(np.uint8)


PHOTO = np.zeros((100, 200, 3), np.uint8)


def test_numbers_are_spread_over_the_channels() -> None:
    np.testing.assert_array_equal(encode_ids(np.array([[1, 300, 70000]])), [[[1, 0, 0], [44, 1, 0], [112, 17, 1]]])


def test_a_class_keeps_its_colour_and_a_second_thing_of_it_gets_another() -> None:
    picture = segment_overlay(PHOTO, [region(10, 60, (200, 0, 0), True), region(60, 110, (200, 0, 0), True)])
    np.testing.assert_array_equal(picture[25, 12], blended((200, 0, 0)))
    assert np.abs(picture[25, 100].astype(int) - picture[25, 12]).sum() > 60


def test_stuff_beside_other_things_of_its_colour_gets_another() -> None:
    picture = segment_overlay(PHOTO, [region(10, 60, (0, 90, 0), False), region(60, 110, (0, 95, 0), False)])
    assert np.abs(picture[25, 100].astype(int) - picture[25, 12]).sum() > 60


def test_regions_far_apart_have_other_colours_too_and_the_rest_is_the_photograph() -> None:
    photo = np.full_like(PHOTO, 77)
    picture = segment_overlay(photo, [region(10, 60, (200, 0, 0), True), region(100, 150, (200, 0, 0), False)])
    assert np.abs(picture[25, 120].astype(int) - picture[25, 12]).sum() > 40
    np.testing.assert_array_equal(picture[:15, :200], photo[:15])


def test_the_first_region_lies_on_top() -> None:
    picture = segment_overlay(PHOTO, [region(30, 60, (200, 0, 0), False), region(10, 90, (0, 0, 200), False)])
    np.testing.assert_array_equal(picture[50, 45], blended((200, 0, 0)))
    np.testing.assert_array_equal(picture[50, 80], blended((0, 0, 200)))


def test_things_are_named_inside_and_the_legend_hides_nothing() -> None:
    named = segment_overlay(PHOTO, [region(20, 180, (0, 0, 200), True)])
    unnamed = segment_overlay(PHOTO, [region(20, 180, (0, 0, 200), False)])
    changed = (named != unnamed).any(axis=-1)
    rows, columns = np.nonzero(changed)
    assert 40 < rows.mean() < 60
    assert 85 < columns.mean() < 115
    assert named.shape[1] > 200
    assert not changed[:, 200:].any()


def test_a_thing_of_one_pixel_is_drawn() -> None:
    mask = np.zeros((100, 200), bool)
    mask[99, 199] = True
    assert segment_overlay(PHOTO, [Region(mask, "cat", (9, 9, 9), True)]).shape[0] >= 100
