"""Samples for the three PP-OCR models: lines to read, lines upright or upside down, pages with text."""

import numpy as np
from PIL import Image, ImageDraw

from zoo.text_lines import (
    TextSource,
    draw_line,
    model_input,
    random_colours,
    random_font,
    random_text,
    scaled_to_height,
)

LINE_HEIGHT = 48
LINE_WIDTH = 320
TURN_WIDTH = 192
PAGE_SIDE = 320

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels


def reading_samples(source: TextSource, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 [count, 3, 48, 320] and the texts; each line fits without being squeezed."""
    rng = np.random.default_rng(seed)
    inputs: list[np.ndarray] = []
    texts: list[str] = []
    while len(inputs) < count:
        text = random_text(source, rng, int(rng.integers(4, 20)))
        image = scaled_to_height(draw_line(text, source, rng), LINE_HEIGHT, 10_000)
        if image.width <= LINE_WIDTH:
            inputs.append(model_input(image, LINE_WIDTH))
            texts.append(text)
    return np.stack(inputs), np.array(texts)


def ragged_reading_samples(source: TextSource, count: int, seed: int) -> list[np.ndarray]:
    """Return lines float32 [1, 3, 48, width], each with the width that its text needs."""
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(count):
        text = random_text(source, rng, int(rng.integers(4, 40)))
        image = scaled_to_height(draw_line(text, source, rng), LINE_HEIGHT, 10_000)
        samples.append(model_input(image, -(-image.width // 8) * 8)[None])
    return samples


def turn_samples(source: TextSource, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 [count, 3, 48, 192] and int64 labels: 0 upright, 1 turned by 180 degrees."""
    rng = np.random.default_rng(seed)
    inputs, labels = [], rng.integers(2, size=count)
    for label in labels:
        image = draw_line(random_text(source, rng, int(rng.integers(6, 16))), source, rng)
        turned = image.rotate(180) if label else image
        inputs.append(model_input(scaled_to_height(turned, LINE_HEIGHT, TURN_WIDTH), TURN_WIDTH))
    return np.stack(inputs), labels.astype(np.int64)


def page_samples(source: TextSource, backgrounds: np.ndarray, seed: int) -> tuple[np.ndarray, list[list[Box]]]:
    """Return float32 [count, 3, 320, 320] and the boxes of the text lines of each page.

    Half of the pages are plain paper, the others are photographs from ``backgrounds`` with a label on them.
    """
    rng = np.random.default_rng(seed)
    inputs, boxes = [], []
    for background in backgrounds:
        page, page_boxes = _draw_page(background, source, rng)
        inputs.append(model_input(page))
        boxes.append(page_boxes)
    return np.stack(inputs), boxes


def _draw_page(background: np.ndarray, source: TextSource, rng: np.random.Generator) -> tuple[Image.Image, list[Box]]:
    paper, ink = random_colours(rng)
    plain = rng.random() < 0.5
    page = Image.new("RGB", (PAGE_SIDE, PAGE_SIDE), paper) if plain else Image.fromarray(background)
    draw = ImageDraw.Draw(page)
    boxes: list[Box] = []
    top = int(rng.integers(8, 40))
    while True:
        font = random_font(source, rng, 14, 29)
        text = random_text(source, rng, int(rng.integers(4, 18)))
        left = int(rng.integers(6, 40))
        x0, y0, x1, y1 = (round(value) for value in draw.textbbox((left, top), text, font=font))
        if y1 > PAGE_SIDE - 8:
            return page, boxes
        if x1 <= PAGE_SIDE - 4:
            if not plain:
                draw.rectangle((x0 - 4, y0 - 4, x1 + 4, y1 + 4), fill=paper)
            draw.text((left, top), text, font=font, fill=ink)
            boxes.append((x0, y0, x1, y1))
            top = y1 + int(rng.integers(8, 60))
