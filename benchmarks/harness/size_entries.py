"""What size.py compares: codebooks and low-rank products, beside the peers that have them."""

from __future__ import annotations

from harness.entries import Entry, named, onnxcomp_entry, peer_entry
from harness.peers import CODEBOOKS

__all__ = ["FACTORED", "SHARED"]

_RESIDUAL, _RECOGNISER, _TRANSFORMERS = ("fashion",), ("ppocr_rec",), ("minilm",)

SHARED = named(
    [
        onnxcomp_entry("onnxcomp-share", "share"),
        onnxcomp_entry("onnxcomp-share-4", "share(clusters=4)", _RESIDUAL),
        onnxcomp_entry(
            "onnxcomp-sparse-shared", 'prune(granularity="element", sparsity=0.8),share', ("fashion", "ppocr_rec")
        ),
        *(peer_entry(name, peer) for name, peer in CODEBOOKS.items()),
    ]
)


def _factored(share: float, only: tuple[str, ...]) -> list[Entry]:
    name = f"onnxcomp-factorize-{round(100 * share)}"
    return [
        onnxcomp_entry(name, f"factorize(flops={share})", only),
        onnxcomp_entry(f"{name}-plain", f'factorize(flops={share}, metric="weights")', only),
    ]


FACTORED = named([*_factored(0.3, (*_RESIDUAL, *_TRANSFORMERS)), *_factored(0.2, _RECOGNISER)])
