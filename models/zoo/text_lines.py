"""Text lines drawn with the DejaVu fonts, so that their exact text is known."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from zoo.packages import Packages


@dataclass
class TextSource:
    """Fonts and words to draw from."""

    fonts: list[Path]
    words: list[str]


def text_source(packages: Packages) -> TextSource:
    """Return the DejaVu fonts and a list of common English words, both from Debian packages."""
    fonts = sorted((packages.debian("fonts-dejavu-core") / "usr/share/fonts/truetype/dejavu").glob("*.ttf"))
    listing = packages.debian("wamerican-small") / "usr/share/dict/american-english-small"
    words = [word for word in listing.read_text(encoding="utf-8").split() if word.isascii() and len(word) > 1]
    return TextSource(fonts, words)


def random_text(source: TextSource, rng: np.random.Generator, longest: int) -> str:
    """Return up to ``longest`` characters: words, now and then a price, a date or a number."""
    pieces: list[str] = []
    while True:
        piece = _random_piece(source, rng)
        if len(" ".join([*pieces, piece])) <= longest:
            pieces.append(piece)
        elif pieces:
            return " ".join(pieces)


def _random_piece(source: TextSource, rng: np.random.Generator) -> str:
    kind = rng.random()
    if kind < 0.06:
        return f"${rng.integers(1, 1000)}.{rng.integers(100):02d}"
    if kind < 0.12:
        return f"{rng.integers(1990, 2030)}-{rng.integers(1, 13):02d}-{rng.integers(1, 29):02d}"
    if kind < 0.18:
        return str(rng.integers(10, 100_000))
    word = str(rng.choice(source.words))
    styles: tuple[Callable[[str], str], ...] = (str, str, str.capitalize, str.upper)
    return styles[rng.integers(len(styles))](word)


def draw_line(text: str, source: TextSource, rng: np.random.Generator) -> Image.Image:
    """Return an RGB picture of one line: random font, size, margins, colours, blur and noise."""
    font = random_font(source, rng, 14, 44)
    left, top, right, bottom = font.getbbox(text)
    margins = rng.integers(2, 8, 2)
    size = (int(right - left + 2 * margins[0]), int(bottom - top + 2 * margins[1]))
    paper, ink = random_colours(rng)
    image = Image.new("RGB", size, paper)
    ImageDraw.Draw(image).text((margins[0] - left, margins[1] - top), text, font=font, fill=ink)
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, font.size / 40)))
    noisy = np.asarray(image) + rng.normal(0, rng.uniform(0, 18), (size[1], size[0], 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def random_font(source: TextSource, rng: np.random.Generator, smallest: int, largest: int) -> ImageFont.FreeTypeFont:
    """Return one of the fonts in a random size in pixels."""
    path = source.fonts[rng.integers(len(source.fonts))]
    return ImageFont.truetype(str(path), int(rng.integers(smallest, largest + 1)))


def random_colours(rng: np.random.Generator) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return a light and a dark colour, sometimes the other way round."""
    light, dark = rng.integers(170, 256, 3), rng.integers(0, 90, 3)
    first, second = (dark, light) if rng.random() < 0.2 else (light, dark)
    return (int(first[0]), int(first[1]), int(first[2])), (int(second[0]), int(second[1]), int(second[2]))


def scaled_to_height(image: Image.Image, height: int, widest: int) -> Image.Image:
    """Return the picture at the given height, squeezed where it would be wider than ``widest``."""
    width = min(-(-height * image.width // image.height), widest)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def model_input(image: Image.Image, width: int | None = None) -> np.ndarray:
    """Return float32 [3, height, width] in [-1, 1], blue first as OpenCV has it, padded with zeros."""
    pixels = np.asarray(image, dtype=np.float32)[:, :, ::-1].transpose(2, 0, 1) / 127.5 - 1
    if width is None:
        return np.ascontiguousarray(pixels)
    padded = np.zeros((3, image.height, width), dtype=np.float32)
    padded[:, :, : image.width] = pixels
    return padded
