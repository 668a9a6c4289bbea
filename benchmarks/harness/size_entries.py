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
        *(
            onnxcomp_entry(
                f"onnxcomp-sparse-shared-{round(100 * share)}",
                f'prune(granularity="element", sparsity={share}),share',
                models,
            )
            for share, models in ((0.8, _RESIDUAL), (0.6, _RECOGNISER))
        ),
        onnxcomp_entry("onnxcomp-share-loss", "share(loss=0.01)", ("mobilenetv2",)),
        onnxcomp_entry("onnxcomp-share-256", "share(clusters=256)", ("mobilenetv2",)),
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
