"""Windows in time: the frames and spectrogram rows of a view."""

import pytest

from mbt.train.recipes.schema import InputRecipe
from mbt.train.sampling.window import Start, Window

PAPER = Window(seconds=8.0, frames=8)


def test_frames_are_t_over_f_apart() -> None:
    assert PAPER.frame_numbers(50, 250) == [50, 75, 100, 125, 150, 175, 200, 225]


def test_frame_numbers_are_rounded_down() -> None:
    assert Window(1.6, 3).frame_numbers(0, 250) == [0, 13, 26]


def test_spectrogram_rows_cover_the_same_time() -> None:
    assert PAPER.mel_rows == 800
    assert PAPER.mel_spans(50, 250) == [(200, 1000)]


def test_four_views_of_ten_seconds_are_evenly_spaced() -> None:
    """D - t = 2 s = 50 frames: 0, 16.7, 33.3, 50."""
    assert PAPER.crop_starts(4, 250) == [Start(s, s) for s in (0, 16, 33, 50)]


def test_a_single_view_is_centered() -> None:
    assert PAPER.crop_starts(1, 250) == [Start(25, 25)]


def test_a_short_clip_is_repeated() -> None:
    """A clip of 5 s in a window of 8 s."""
    assert PAPER.crop_starts(4, 125) == [Start(0, 0)] * 4
    assert PAPER.frame_numbers(0, 125) == [0, 25, 50, 75, 100, 0, 25, 50]
    assert PAPER.mel_spans(0, 125) == [(0, 500), (0, 300)]
    assert PAPER.mel_spans(0, 80) == [(0, 320), (0, 320), (0, 160)]


def test_training_starts_are_uniform_over_all_possible_starts() -> None:
    starts = [PAPER.random_start(((i + 0.5) / 5100, 0.0), 250) for i in range(5100)]
    assert [starts.count(Start(start, start)) for start in range(51)] == [100] * 51


OFFICIAL = Window(seconds=8.0, frames=32, rgb_seconds=2.56)


def test_frames_may_span_less_time_than_the_audio() -> None:
    """The official configuration: 32 frames at stride 2 and 800 rows."""
    assert OFFICIAL.frame_numbers(10, 250) == list(range(10, 74, 2))
    assert OFFICIAL.mel_rows == 800


def test_the_official_views_are_spaced_separately_in_each_modality() -> None:
    """Frames from 0, 62, 124, 186 of 250; audio from 0, 66, 133, 200 of 1000 rows, here rounded to whole frames."""
    starts = OFFICIAL.crop_starts(4, 250)
    assert [start.rgb for start in starts] == [0, 62, 124, 186]
    assert [4 * start.spec for start in starts] == [0, 64, 132, 200]


def test_video_and_audio_start_together_and_the_audio_wraps_around() -> None:
    starts = [OFFICIAL.random_start(((i + 0.5) / 187, 0.0), 250) for i in range(187)]
    assert starts == [Start(i, i) for i in range(187)]
    assert OFFICIAL.mel_spans(150, 250) == [(600, 1000), (0, 400)]


def test_a_stride_sets_the_distance_between_frames() -> None:
    """32 frames at stride 1, as in the paper for Epic-Kitchens, and at stride 2, as in the official AudioSet configuration."""
    for stride in (1, 2):
        recipe = InputRecipe(frames=32, stride=stride)
        assert Window(recipe.seconds, recipe.frames, recipe.rgb_seconds).frame_numbers(5, 250) == list(
            range(5, 5 + 32 * stride, stride)
        )


def test_asynchronous_windows_are_uniform_over_the_clip_independently() -> None:
    places = [(i + 0.5) / 187 for i in range(187)]
    others = [(i + 0.5) / 51 for i in range(51)]
    starts = {OFFICIAL.random_start((a, b), 250, synchronized=False) for a in places for b in others}
    assert starts == {Start(a, b) for a in range(187) for b in range(51)}
    assert OFFICIAL.mel_spans(50, 250) == [(200, 1000)], "the last window ends with the clip"


@pytest.mark.parametrize("rgb_seconds", [0.03, -1.0, 1.2])
def test_impossible_frame_spans_are_refused(rgb_seconds: float) -> None:
    with pytest.raises(ValueError, match=r"seconds|frames"):
        Window(8.0, 32, rgb_seconds)


@pytest.mark.parametrize(("seconds", "frames"), [(0.03, 1), (0.0, 1), (1.0, 26), (1.0, 0)])
def test_impossible_windows_are_refused(seconds: float, frames: int) -> None:
    with pytest.raises(ValueError, match=r"seconds|frames"):
        Window(seconds, frames)
