"""A model's towers compiled for the CPU by OpenVINO, in single precision or in 8 bits (NNCF). Knows no CLIP.

The 8 bits are fitted to pictures and captions that travel with the package, `calibration/`, so that a model becomes the
same one everywhere; the last few of them are held back to compare the towers with torch's. A tower is kept on disk,
for to make it takes a minute: written aside, synced and renamed, and made anew where its checksum is wrong.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import structlog
from filelock import FileLock

from service.errors import ConfigurationError

log = structlog.get_logger(__name__)

Array = npt.NDArray[Any]
Tower = Callable[[Array], Array]
"""Takes a batch (N, ...), gives (N, D) float32. Not to be called by two threads at once."""

_RECIPE = b"2"  # another number whenever `_made` makes other 8-bit towers of the same model
HELD = 8
"""So many of the pictures and captions, the last ones, no tower is fitted to."""

_SMOOTH = 0.15
"""How much of the outliers of activations goes over to the weights (Xiao et al., SmoothQuant, 2023). By NNCF's default
the cosine of a ViT-B-32's vectors is 0.992 at least, with this 0.998."""

_CALIBRATION = Path(__file__).parent / "calibration"


def require() -> None:
    """Raises ConfigurationError where OpenVINO is not installed. To be called before the first tower is asked for.

    OpenVINO and NNCF send statistics of each conversion to their maker, and keep a number of this machine in ~/intel,
    until somebody opts out by a program of theirs. Both do without where the package that sends is not there; so it is
    not there for this process.
    """
    sys.modules.setdefault("openvino_telemetry", cast("ModuleType", None))
    try:
        import nncf
        import openvino
    except ImportError as error:
        raise ConfigurationError(
            'OpenVINO is not installed, and this device and precision need it: pip install "reelsrs[openvino]"'
        ) from error
    assert nncf is not None
    assert openvino is not None


@cache
def calibration() -> tuple[tuple[bytes, ...], tuple[str, ...], str]:
    """(JPEG files of 256 x 256 pixels, as many captions, a digest of them all)."""
    table = (_CALIBRATION / "pictures.tsv").read_text(encoding="utf-8")
    rows = [line.split("\t") for line in table.splitlines() if not line.startswith("#")]
    pictures = tuple((_CALIBRATION / row[0]).read_bytes() for row in rows)
    digest = hashlib.sha256(_RECIPE + b"".join(pictures) + table.encode()).hexdigest()
    return pictures, tuple(row[1] for row in rows), digest


def tower(traced: Callable[[], Any], inputs: Array, *, int8: bool, keep: Path | None, name: str) -> Tower:
    """A tower: from the folder `keep` where it is kept under `name`, else made of what `traced` gives, which is a
    torch.jit.ScriptModule, and kept there. It takes inputs like `inputs` (N, ...), as many at a time as anybody likes;
    with `int8` it is fitted to them, else it computes in single precision.

    Processes that ask at the same time for the same one make it once.
    """
    import openvino

    if keep is None:
        return _ready(_made(traced(), inputs, int8=int8))
    keep.mkdir(parents=True, exist_ok=True)
    with FileLock(keep / f"{name}.lock"):
        if not _whole(keep, name):
            _write(_made(traced(), inputs, int8=int8), keep, name)
        return _ready(openvino.Core().read_model(keep / f"{name}.xml"))


def _made(traced: Any, inputs: Array, *, int8: bool) -> Any:
    import openvino

    shape = openvino.PartialShape([-1, *inputs.shape[1:]])
    with _quiet():
        model = openvino.convert_model(traced, input=[(shape, openvino.Type(inputs.dtype))])
        if int8:
            import nncf

            log.info("quantising the model to 8 bits, once", inputs=len(inputs))
            model = nncf.quantize(
                model,
                nncf.Dataset([inputs[n : n + 1] for n in range(len(inputs))]),
                model_type=nncf.ModelType.TRANSFORMER,
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(inputs),
                advanced_parameters=nncf.AdvancedQuantizationParameters(
                    # Without VNNI a CPU adds products in 16 bits, which full 8-bit weights overflow.
                    overflow_fix=nncf.OverflowFix.ENABLE,
                    smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=_SMOOTH),
                ),
            )
    return model


def _ready(model: Any) -> Tower:
    import openvino

    # Where a CPU has bfloat16, OpenVINO would use it for single precision without a word.
    hints = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(model, "CPU", hints)

    def run(inputs: Array) -> Array:
        output: Array = compiled(inputs)[0]
        return np.array(output, dtype=np.float32)  # the buffer is written again by the next call

    return run


# --- on disk


def _write(model: Any, folder: Path, name: str) -> None:
    import openvino

    with tempfile.TemporaryDirectory(dir=folder) as aside:
        with _quiet():
            openvino.save_model(model, Path(aside) / f"{name}.xml", compress_to_fp16=False)
        sums = {file.name: _digest(file) for file in sorted(Path(aside).iterdir())}
        (Path(aside) / f"{name}.json").write_text(json.dumps(sums))
        # The list of checksums goes last: without it there is no tower.
        for file in (*sums, f"{name}.json"):
            path = Path(aside) / file
            with path.open("rb") as opened:
                os.fsync(opened.fileno())
            path.replace(folder / file)


def _whole(folder: Path, name: str) -> bool:
    try:
        sums = json.loads((folder / f"{name}.json").read_text())
        if all(_digest(folder / file) == expected for file, expected in sums.items()) and f"{name}.xml" in sums:
            return True
    except FileNotFoundError:
        return False
    except (OSError, ValueError, AttributeError):
        pass
    log.warning("a kept tower of the model is damaged and is made anew", folder=str(folder), tower=name)
    return False


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What these libraries narrate; their errors come out as exceptions."""
    root = logging.getLogger("nncf")
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)
