"""silero-vad, a voice detector with its weights inside the bodies of If nodes, and spoken sounds of ALSA.

The state of the detector has its batch on the second axis, so the samples are folders of single feeds.
"""

import shutil
import wave
from pathlib import Path

import numpy as np
import onnxruntime

from zoo.packages import Packages
from zoo.samples import save_samples

LICENCE = "model MIT (Silero); sounds: alsa-utils, GPL-2"
SEED = 20240510
RATE = 16_000
CHUNK, CONTEXT = 512, 64  # samples that are new, and samples repeated from the chunk before


def read_sound(path: Path) -> np.ndarray:
    """Return a mono float32 sound in [-1, 1] at 16 kHz."""
    with wave.open(str(path)) as file:
        values = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").astype(np.float32) / 32768
        values = np.mean(values.reshape(-1, file.getnchannels()), axis=1)
        factor = file.getframerate() // RATE
    # The mean of neighbours is a low-pass filter that is good enough for speech at a third of the rate.
    return np.asarray(values[: len(values) // factor * factor].reshape(-1, factor).mean(axis=1))


def spoken_mixture(sounds: list[Path], rng: np.random.Generator) -> np.ndarray:
    """Return the sounds one after another at random loudness, with pauses and background noise."""
    pieces: list[np.ndarray] = []
    for path in sounds:
        pieces += [read_sound(path) * rng.uniform(0.3, 1), np.zeros(int(rng.uniform(0.2, 1) * RATE))]
    mixture = np.concatenate(pieces)
    return (mixture + rng.normal(0, 0.003, len(mixture))).astype(np.float32)


def record_feeds(model: Path, sound: np.ndarray, folder: Path) -> np.ndarray:
    """Run the detector along a sound and save each step's feed; return the voice probabilities."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    state, rate = np.zeros((2, 1, 128), dtype=np.float32), np.array(RATE, dtype=np.int64)
    padded, probabilities = np.concatenate([np.zeros(CONTEXT, dtype=np.float32), sound]), []
    for index in range(len(sound) // CHUNK):
        window = padded[None, index * CHUNK : (index + 1) * CHUNK + CONTEXT]
        feed = {"input": window, "state": state, "sr": rate}
        save_samples(folder / f"{index:04d}.npz", feed)
        probability, state = session.run(["output", "stateN"], feed)
        probabilities.append(probability[0, 0])
    return np.array(probabilities)


def prepare(packages: Packages, folder: Path) -> dict[str, float]:
    """Fill the folder; return the share of chunks with voice; about half of the test sound is speech."""
    model = folder / "silero_vad.onnx"
    shutil.copyfile(packages.pypi("silero-vad", "6.2.3") / "silero_vad/data/silero_vad.onnx", model)
    root = packages.debian("alsa-utils") / "usr/share/sounds/alsa"
    sounds = [path for path in sorted(root.glob("*.wav")) if path.stem != "Noise"]
    rng = np.random.default_rng(SEED)
    record_feeds(model, spoken_mixture(sounds[::2], rng), folder / "calibration")
    probabilities = record_feeds(model, spoken_mixture(sounds[1::2], rng), folder / "test")
    return {"share of voiced chunks": float((probabilities > 0.5).mean())}
