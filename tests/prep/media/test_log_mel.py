"""Log-mel spectrograms against the formula of the specification, in NumPy."""

import numpy as np
import pytest

from mbt.manifests.shards import LogMelFormat
from mbt.prep.media.log_mel import log_mel

FORMAT = LogMelFormat()
RATE, FFT, WINDOW, HOP, BANDS = 16_000, 1024, 400, 160, 128


def mel(hertz: float | np.ndarray) -> np.ndarray:
    return 2595 * np.log10(1 + np.asarray(hertz) / 700)


def corners() -> np.ndarray:
    return 700 * (10 ** (np.linspace(0, mel(8000), BANDS + 2) / 2595) - 1)


def expected(audio: np.ndarray) -> np.ndarray:
    rows = len(audio) // HOP
    padded = np.concatenate([audio.astype(np.float64), np.zeros(WINDOW)])
    window = 0.54 - 0.46 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    parts = np.stack([padded[HOP * k : HOP * k + WINDOW] * window for k in range(rows)])
    power = np.abs(np.fft.rfft(parts, FFT)) ** 2
    bins, edges = np.arange(FFT // 2 + 1) * RATE / FFT, corners()
    bands = []
    for low, middle, high in zip(edges, edges[1:], edges[2:], strict=False):
        bands.append(np.clip(np.minimum((bins - low) / (middle - low), (high - bins) / (high - middle)), 0, None))
    return np.log(np.maximum(power @ np.array(bands).T, 1e-6))


@pytest.mark.parametrize("samples", [160, 640, 16_000, 35_200])
def test_values_follow_the_formula(samples: int) -> None:
    audio = np.random.default_rng(samples).normal(0, 0.1, samples).astype(np.float32)
    values = log_mel(audio, FORMAT)
    assert values.dtype == np.float16
    assert values.shape == (samples // 160, 128)
    np.testing.assert_allclose(values.astype(np.float64), expected(audio), atol=0.01, rtol=1e-3)


def test_values_follow_the_formula_over_a_wide_range() -> None:
    times = np.arange(16_000) / RATE
    audio = (np.exp(-8 * times) * np.sin(2 * np.pi * (200 + 3000 * times) * times)).astype(np.float32)
    values, wanted = log_mel(audio, FORMAT).astype(np.float64), expected(audio)
    audible = wanted > -9
    np.testing.assert_allclose(values[audible], wanted[audible], atol=0.02, rtol=2e-3)
    assert wanted.max() - wanted.min() > 15


@pytest.mark.parametrize("frequency", [250, 1000, 4000, 7000])
def test_a_tone_is_loudest_in_its_band(frequency: int) -> None:
    audio = (0.5 * np.sin(2 * np.pi * frequency * np.arange(RATE) / RATE)).astype(np.float32)
    edges = corners()
    band = int(np.abs(edges[1:-1] - frequency).argmin())
    assert abs(int(log_mel(audio, FORMAT)[:90].astype(float).mean(0).argmax()) - band) <= 1


def test_silence_is_the_logarithm_of_the_floor() -> None:
    values = log_mel(np.zeros(1600, np.float32), FORMAT)
    np.testing.assert_allclose(values.astype(float), -13.8155, atol=0.01)


def test_a_click_is_in_the_rows_whose_window_contains_it() -> None:
    audio = np.zeros(16_000, np.float32)
    audio[8000] = 1
    loud = np.flatnonzero(log_mel(audio, FORMAT).astype(float).mean(1) > -13)
    assert loud.tolist() == [k for k in range(100) if 160 * k <= 8000 < 160 * k + 400]
