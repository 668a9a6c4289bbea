"""Sample files: an ``.npz`` with one array per model input (first axis: samples) and optional ``labels``."""

import os
from pathlib import Path

import numpy as np


def save_samples(path: Path, arrays: dict[str, np.ndarray], compress: bool = False) -> None:
    """Write an ``.npz`` so that no reader ever sees half of it; equal arrays give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    write = np.savez_compressed if compress else np.savez
    write(partial, allow_pickle=False, **arrays)
    partial.replace(path)


def pick_evenly(labels: np.ndarray, per_class: int, rng: np.random.Generator) -> np.ndarray:
    """Return the indices of ``per_class`` random members of every class, in shuffled order."""
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    return rng.permutation(np.concatenate([rng.choice(group, per_class, replace=False) for group in members]))
