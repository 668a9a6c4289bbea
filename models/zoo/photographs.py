"""Real photographs: wallpapers, lessons and samples of Debian packages, templates of web pages, and scikit-image's."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from zoo.packages import Packages
from zoo.qt_resources import qt_resources

Photograph = Path | bytes  # an image file, or what is in one

# Wallpapers that are drawings are left out: a network trained on photographs has nothing to say about them.
DEBIAN_PHOTOGRAPHS = {
    "lomiri-wallpapers-16.04": ("usr/share/backgrounds/*_by_*.jpg", ("analogpattern_", "umang_")),
    "mate-backgrounds": ("usr/share/backgrounds/mate/nature/*.jpg", ()),
    "plasma-workspace-wallpapers": ("usr/share/wallpapers/*/contents/images/2560x1600.jpg", ("Autumn",)),
}
SCIKIT_IMAGE_SAMPLES = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
LONGEST_SIDE = 1600
# To train on, beside the photographs of calibration; those that are drawings, diagrams or grey are left out.
OPENCV_SAMPLES = (
    *("aero1", "aloeL", "apple", "baboon", "board", "building", "butterfly", "chicky_512", "fruits", "graf1", "home"),
    *("leuvenA", "licenseplate_motion", "messi5", "orange", "rubberwhale1", "smarties", "squirrel_cls", "starry_night"),
    "stuff",
)
# Activities of GCompris that show photographs: animals, buildings, tools, sports, instruments.
GCOMPRIS = (
    *("babyshapes", "categorization", "details", "erase"),
    *("explore_farm_animals", "explore_monuments", "explore_world_animals", "explore_world_music"),
)
# Templates of web pages and of a shop: people, rooms, food, desks, landscapes, goods. MIT, the shop's GPL-3.
TEMPLATES = {
    "argon-design-system-react": ("1.1.0", "**/*.jp*g"),
    "material-kit": ("2.0.4", "**/*.jp*g"),
    "now-ui-kit": ("1.3.0", "**/*.jp*g"),
    "paper-kit-2": ("2.1.0", "**/*.jp*g"),
    "sneat-bootstrap-html-admin-template-free": ("1.0.0", "assets/img/elements/*.jpg"),
    "soft-ui-design-system": ("1.0.4", "**/*.jp*g"),
    "startbootstrap-agency": ("7.0.12", "**/*.jp*g"),
    "startbootstrap-business-casual": ("7.0.9", "**/*.jp*g"),
    "startbootstrap-creative": ("7.0.7", "**/*.jp*g"),
    "startbootstrap-landing-page": ("6.0.6", "**/*.jp*g"),
    "startbootstrap-stylish-portfolio": ("6.0.6", "**/*.jp*g"),
    "tabler-ui": ("0.0.34", "dist/demo/photos/*-1500.jpg"),
    "themekit": ("2.1.0", "img/[bu]*/*.jpg"),
    "@vendure/create": ("3.7.3", "assets/images/*.jpg"),
}
# Backgrounds of programs for children: rooms, buildings, sports fields, nature.
BACKGROUNDS = {
    "scratch": "usr/share/scratch/Media/Backgrounds/**/*.jpg",
    "tuxpaint-data": "usr/share/tuxpaint/[st]*/*.jp*g",
}
SHORTEST_SIDE = 180  # smaller ones are icons
STAMPS = "tuxpaint-stamps-default"  # animals, plants, food, vehicles, tools: photographs without their backgrounds
DRAWN_STAMPS = ("cartoon", "symbols", "hanukkah", "flags", "roadsigns", "seasonal", "hats")
STAMPED = 0.4  # of the crops


def photographs(packages: Packages) -> tuple[list[Path], list[Path]]:
    """Return two disjoint lists of image files: a third for calibration, the rest for tests."""
    files = [packages.pypi("scikit-image", "0.26.0") / "skimage/data" / name for name in SCIKIT_IMAGE_SAMPLES]
    for package, (pattern, drawings) in DEBIAN_PHOTOGRAPHS.items():
        root = packages.debian(package)
        found = sorted(root.glob(pattern))
        files += [path for path in found if not any(name in str(path) for name in drawings)]
    return files[::3], [path for index, path in enumerate(files) if index % 3]


def more_photographs(packages: Packages) -> list[Path]:
    """Return samples of OpenCV: photographs of other things than wallpapers show."""
    folder = packages.debian("opencv-doc") / "usr/share/doc/opencv-doc/examples"
    named = [next(iter(sorted(folder.glob(f"data/{name}.*")))) for name in OPENCV_SAMPLES]
    return [*named, *sorted(folder.glob("text/scenetext0[1-6].jpg"))]


def lesson_photographs(packages: Packages) -> list[bytes]:
    """Return the photographs of GCompris: things that ImageNet has classes for; 273 of them in version 3.1."""
    folder = packages.debian("gcompris-qt-data") / "usr/share/gcompris-qt/rcc"
    files = [file for name in GCOMPRIS for file in qt_resources(folder / f"{name}.rcc")]
    return [content for name, content in sorted(files) if name.endswith((".webp", ".jpg")) and _is_photograph(content)]


def background_photographs(packages: Packages) -> list[Path]:
    """Return photographs that children are to draw on or to let things move before, 80 of them."""
    files = [path for name, pattern in BACKGROUNDS.items() for path in sorted(packages.debian(name).glob(pattern))]
    return [path for path in files if _is_photograph(path.read_bytes())]


def template_photographs(packages: Packages) -> list[Path]:
    """Return the photographs of templates of web pages, 320 of them."""
    folders = [(packages.npm(name, version), pattern) for name, (version, pattern) in TEMPLATES.items()]
    files = [path for folder, pattern in folders for path in sorted(folder.glob(pattern))]
    return [path for path in files if "thumb" not in path.parent.name + path.name and _is_photograph(path.read_bytes())]


def _is_photograph(content: bytes) -> bool:
    image = Image.open(io.BytesIO(content))
    return image.mode == "RGB" and min(image.size) >= SHORTEST_SIDE


def stamped(crops: np.ndarray, packages: Packages, seed: int) -> np.ndarray:
    """Return the crops with things of Tux Paint pasted onto some of them, at random sizes and places."""
    files = sorted(packages.debian(STAMPS).glob("usr/share/tuxpaint/stamps/**/*.png"))
    stamps = [_cut_out(path) for path in files if not any(name in str(path) for name in DRAWN_STAMPS)]
    rng, result = np.random.default_rng(seed), crops.copy()
    for index in np.flatnonzero(rng.random(len(crops)) < STAMPED):
        result[index] = _pasted(Image.fromarray(crops[index]), stamps[rng.integers(len(stamps))], rng)
    return result


def _cut_out(path: Path) -> Image.Image:
    image = Image.open(path).convert("RGBA")
    image = image.crop(image.getchannel("A").getbbox())
    image.thumbnail((448, 448))
    return image


def _pasted(crop: Image.Image, stamp: Image.Image, rng: np.random.Generator) -> np.ndarray:
    scale, aspect = crop.width * rng.uniform(0.5, 1.3) / max(stamp.size), np.exp(rng.uniform(-0.15, 0.15))
    width, height = max(8, round(stamp.width * scale * aspect)), max(8, round(stamp.height * scale / aspect))
    stamp = stamp.resize((width, height), Image.Resampling.BILINEAR)
    if rng.random() < 0.5:
        stamp = stamp.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    # Up to 15 % of it may lie outside.
    left = round(rng.random() * (crop.width - 0.7 * width) - 0.15 * width)
    top = round(rng.random() * (crop.height - 0.7 * height) - 0.15 * height)
    crop.paste(stamp, (left, top), stamp)
    return np.asarray(crop)


def read_photograph(photograph: Photograph) -> Image.Image:
    """Return an RGB image of at most 1600 pixels in its longer side."""
    file = Image.open(photograph if isinstance(photograph, Path) else io.BytesIO(photograph))
    file.draft("RGB", (LONGEST_SIDE, LONGEST_SIDE))  # lets JPEG decode at a fraction of the size
    image = file.convert("RGB")
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return image


def random_crops(files: Sequence[Photograph], count: int, size: int, seed: int) -> np.ndarray:
    """Return ``count`` random crops uint8 [count, size, size, 3], spread evenly over the files."""
    rng = np.random.default_rng(seed)
    crops = []
    for index, file in enumerate(files):
        image = read_photograph(file)
        share = count * (index + 1) // len(files) - count * index // len(files)
        crops += [_best_crop(image, size, rng) for _ in range(share)]
    return np.stack([crops[index] for index in rng.permutation(count)])


def _best_crop(image: Image.Image, size: int, rng: np.random.Generator) -> np.ndarray:
    """Return the most varied of three crops, so that plain sky stays rare."""
    candidates = [_crop(image, size, rng) for _ in range(3)]
    return max(candidates, key=lambda crop: float(crop.std()))


def _crop(image: Image.Image, size: int, rng: np.random.Generator) -> np.ndarray:
    area = image.width * image.height * rng.uniform(0.08, 0.8)
    aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    width = min(round(np.sqrt(area * aspect)), image.width)
    height = min(round(np.sqrt(area / aspect)), image.height)
    left, top = rng.integers(image.width - width + 1), rng.integers(image.height - height + 1)
    box = (left, top, left + width, top + height)
    pixels = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels
