"""Train the committed Fashion-MNIST network and export it to ONNX, with and without BatchNormalization nodes.

    python models/train_fashion_resnet.py              # about 25 minutes on 2 cores
    python models/train_fashion_resnet.py --export-only   # from the checkpoint of the last training

The recipe is fixed beforehand and the test images are looked at once, after the last epoch.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from zoo import fashion
from zoo.evaluate import first_output, run_model
from zoo.export import export_pair, set_metadata
from zoo.packages import Packages, cache_root
from zoo.resnet import FashionResNet

HERE = Path(__file__).resolve().parent
SEED = 20240501


def augment(images: torch.Tensor, shift: int = 2) -> torch.Tensor:
    """Return the batch with each image flipped at random and moved by up to ``shift`` pixels either way."""
    count, _, height, width = images.shape
    flip = torch.rand(count, 1, 1, 1) < 0.5
    padded = functional.pad(torch.where(flip, images.flip(3), images), [shift] * 4)[:, 0]
    rows = torch.randint(2 * shift + 1, (count, 1, 1)) + torch.arange(height).view(1, -1, 1)
    columns = torch.randint(2 * shift + 1, (count, 1, 1)) + torch.arange(width).view(1, 1, -1)
    return padded[torch.arange(count).view(-1, 1, 1), rows, columns][:, None]


def train(images: torch.Tensor, labels: torch.Tensor, epochs: int, batch: int = 128) -> FashionResNet:
    """Train from scratch with SGD under a one-cycle schedule; return the network in inference mode."""
    # The channels-last layout is a quarter faster on CPU; it does not change the exported graph.
    network = FashionResNet().to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    steps = len(images) // batch
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.15, total_steps=epochs * steps, pct_start=0.25)
    for epoch in range(epochs):
        started, total = time.monotonic(), 0.0
        order = torch.randperm(len(images))
        for step in range(steps):
            chosen = order[step * batch : (step + 1) * batch]
            inputs = augment(images[chosen]).contiguous(memory_format=torch.channels_last)
            loss = functional.cross_entropy(network(inputs), labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        seconds = time.monotonic() - started
        print(f"epoch {epoch + 1}/{epochs}: training loss {total / steps:.4f}, {seconds:.0f} s", flush=True)
    return network.eval()


def export(network: FashionResNet, packages: Packages, folder: Path) -> None:
    """Write both ONNX variants, check them on the 10,000 test images and record the accuracy in them."""
    images, labels = fashion.load(packages, "t10k")
    folded, kept = folder / "fashion_resnet.onnx", folder / "fashion_resnet_bn.onnx"
    network = network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    export_pair(network, torch.zeros(2, 1, 28, 28), ("image", "logits"), folded, kept)
    logits = {path: first_output(run_model(path, {"image": images})) for path in (folded, kept)}
    difference = float(np.abs(logits[folded] - logits[kept]).max())
    if difference > 1e-3:
        raise SystemExit(f"the two variants disagree by {difference:.2e}; nothing is recorded")
    for path in (folded, kept):
        accuracy = float((logits[path].argmax(1) == labels).mean())
        set_metadata(
            path,
            licence="Apache-2.0 (weights); data: Fashion-MNIST, Copyright 2017 Zalando SE, MIT",
            dataset="Fashion-MNIST; input: pixel / 255",
            classes="T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot",
            test_accuracy=f"{accuracy:.4f}",
            trained_by="models/train_fashion_resnet.py",
        )
        print(f"{path.name}: accuracy {accuracy:.4f} on 10,000 test images, {path.stat().st_size:,} bytes")
    print(f"largest difference between the variants: {difference:.2e}")


def main() -> None:
    """Parse the command line, train unless a checkpoint is given, export."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--cache", type=Path, default=cache_root())
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the two ONNX files")
    parser.add_argument("--checkpoint", type=Path, help="default: <cache>/train/fashion_resnet.pt")
    parser.add_argument("--export-only", action="store_true", help="export the checkpoint without training")
    options = parser.parse_args()
    packages = Packages(options.cache)
    checkpoint = options.checkpoint or options.cache / "train" / "fashion_resnet.pt"
    torch.manual_seed(SEED)
    if options.export_only:
        network = FashionResNet().eval()
        network.load_state_dict(torch.load(checkpoint, weights_only=True))
    else:
        images, labels = fashion.load(packages, "train")
        network = train(torch.from_numpy(images), torch.from_numpy(labels), options.epochs)
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        torch.save(network.state_dict(), checkpoint)
    export(network, packages, options.out)


if __name__ == "__main__":
    main()
