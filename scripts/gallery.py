"""Draw the gallery of the README from the reports of recipes and of a sweep, in a few minutes.

python scripts/gallery.py docs/gallery
"""

import io
import itertools
import sys
import tempfile
from pathlib import Path

from PIL import Image

from snnexp.experiment import compose, run
from snnexp.report import report

FIGURES = {
    "regression_sqrt_fit": ["trajectory"],
    "mnist_leaky": ["spike_raster", "confusion"],
    "mnist_rleaky_membrane": ["output_membrane"],
    "mnist_parametrized_lif": ["parameters"],
}
SWEEP = {"seed": range(5), "optimizer.lr": (3e-4, 1e-3, 3e-3, 1e-2)}


def main(target: str) -> None:
    folder = Path(target)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as root:
        for recipe, names in FIGURES.items():
            overrides = [f"experiment={recipe}", f"logger.root={root}"]
            page = report([run(compose(overrides), overrides).path])
            for name in names:
                save_small(page.parent / "figures" / f"{name}.png", folder / f"{name}.png")
        for values in itertools.product(*SWEEP.values()):
            point = [f"{key}={value}" for key, value in zip(SWEEP, values, strict=True)]
            overrides = ["experiment=regression_sqrt", "logger=jsonl", f"logger.root={root}", *point]
            run(compose(overrides), overrides)
        page = report([Path(root, "regression_sqrt")], Path(root, "sweep"))
        save_small(page.parent / "figures" / "response.png", folder / "response.png")


def save_small(source: Path, target: Path) -> None:
    """Save a PNG with a palette of 128 colors."""
    packed = io.BytesIO()
    Image.open(source).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(packed, "PNG", optimize=True)
    target.write_bytes(packed.getvalue())


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["docs/gallery"]))
