"""Log-mel spectrograms with exactly 100 rows per second."""

from functools import cache

import numpy as np
import torch
import torchaudio

from mbt.manifests.shards import LogMelFormat


def log_mel(audio: np.ndarray, log_mel_format: LogMelFormat) -> np.ndarray:
    """Natural-log mel power of 16 kHz mono audio.

    Args:
        audio: float32 (samples,) in [-1, 1]; the length is divisible by the hop (160).
        log_mel_format: the parameters.

    Returns:
        float16 (samples / 160, 128); row k covers the 400 samples from sample 160 k on.
    """
    # torch.stft centers the window in the FFT frame: shift by its margin so that windows begin at 0, 160, 320, ...
    margin = (log_mel_format.n_fft - log_mel_format.win_length) // 2
    right = log_mel_format.n_fft - margin - log_mel_format.hop_length
    padded = torch.nn.functional.pad(torch.from_numpy(audio), (margin, right))
    power = _mel(log_mel_format)(padded)
    return power.clamp_min(log_mel_format.floor).log().T.to(torch.float16).contiguous().numpy()


def use_one_core() -> None:
    """Compute on one core in this thread: others work on other clips."""
    torch.set_num_threads(1)


def window(log_mel_format: LogMelFormat) -> np.ndarray:
    """The window function, (400,)."""
    return _mel(log_mel_format).spectrogram.window.numpy()


def weights(log_mel_format: LogMelFormat) -> np.ndarray:
    """Weight of each FFT bin in each mel band, (513, 128)."""
    return _mel(log_mel_format).mel_scale.fb.numpy()


@cache
def _mel(log_mel_format: LogMelFormat) -> torchaudio.transforms.MelSpectrogram:
    return torchaudio.transforms.MelSpectrogram(
        sample_rate=log_mel_format.sample_rate,
        n_fft=log_mel_format.n_fft,
        win_length=log_mel_format.win_length,
        hop_length=log_mel_format.hop_length,
        window_fn=torch.hamming_window,
        n_mels=log_mel_format.n_mels,
        f_min=log_mel_format.f_min,
        f_max=log_mel_format.f_max,
        mel_scale=log_mel_format.mel_scale,
        power=2.0,
        center=False,
    )
