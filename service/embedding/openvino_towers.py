"""Towers of a model compiled for the CPU by OpenVINO, in float32 or in int8 (NNCF).

int8 is calibrated with images and captions that are part of the package (`calibration/`), so a model becomes the same
on every machine. The last few of them are held back, to compare the towers with those of torch.

Towers are kept on disk, because making one takes a minute. Files are written aside, synced and renamed. A tower whose
checksum is wrong is made again.
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
"""Maps a batch (N, ...) to (N, D) float32. Not thread-safe."""

_RECIPE_VERSION = b"2"  # change this whenever `_convert` makes different int8 towers of the same model
HELD_OUT_COUNT = 8
"""Number of calibration images and captions, the last ones, that are held back for comparison."""

_SMOOTH_QUANT_ALPHA = 0.15
"""Share of the activations' outliers that is moved to the weights (Xiao et al., SmoothQuant, 2023).

With NNCF's default, the cosine of a ViT-B-32's vectors to the float32 ones is at least 0.992. With this value it is at
least 0.998.
"""

_CALIBRATION = Path(__file__).parent / "calibration"


def require_without_telemetry() -> None:
    """Check that OpenVINO and NNCF are installed, and disable their telemetry. Raises ConfigurationError.

    Call before the first tower is requested. OpenVINO and NNCF send statistics of each conversion to their vendor, and
    store an id of this machine in ~/intel. To opt out, a user must run a program of the vendor. Both libraries work
    without the package that sends, so that package is hidden from this process.
    """
    sys.modules.setdefault("openvino_telemetry", cast("ModuleType", None))
    try:
        import nncf
        import openvino
    except ImportError as error:
        raise ConfigurationError(
            'OpenVINO is not installed, but this device and precision need it; run pip install "reelsrs[openvino]"'
        ) from error
    assert nncf is not None
    assert openvino is not None


@cache
def calibration() -> tuple[tuple[bytes, ...], tuple[str, ...], str]:
    """Return JPEG files of 256 x 256 pixels, as many captions, and a digest of both.

    The digest also covers the recipe by which int8 towers are made.
    """
    table = (_CALIBRATION / "pictures.tsv").read_text(encoding="utf-8")
    rows = [line.split("\t") for line in table.splitlines() if not line.startswith("#")]
    images = tuple((_CALIBRATION / row[0]).read_bytes() for row in rows)
    digest = hashlib.sha256(_RECIPE_VERSION + b"".join(images) + table.encode()).hexdigest()
    return images, tuple(row[1] for row in rows), digest


def tower(trace: Callable[[], Any], inputs: Array, *, int8: bool, cache_dir: Path | None, name: str) -> Tower:
    """Return a compiled tower, read from disk or newly made.

    Processes that request the same tower at the same time make it once.

    Args:
        trace: returns the torch.jit.ScriptModule to compile. Called only if the tower is not on disk.
        inputs: (N, ...) example inputs, which set shape and dtype. The tower accepts any batch size.
        int8: calibrate the tower with `inputs` and compute in int8, else in float32.
        cache_dir: folder in which the tower is kept; None keeps nothing.
        name: file name of the tower in `cache_dir`, without suffix.
    """
    import openvino

    if cache_dir is None:
        return _compile(_convert(trace(), inputs, int8=int8))
    cache_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(cache_dir / f"{name}.lock"):
        if not _is_intact(cache_dir, name):
            _write(_convert(trace(), inputs, int8=int8), cache_dir, name)
        return _compile(openvino.Core().read_model(cache_dir / f"{name}.xml"))


def _convert(traced: Any, inputs: Array, *, int8: bool) -> Any:
    """Convert a traced module to an OpenVINO model, quantised to int8 if requested."""
    import openvino

    shape = openvino.PartialShape([-1, *inputs.shape[1:]])
    with _quiet():
        model = openvino.convert_model(traced, input=[(shape, openvino.Type(inputs.dtype))])
        if int8:
            import nncf

            log.info("quantising the model to 8 bits", inputs=len(inputs))
            model = nncf.quantize(
                model,
                nncf.Dataset([inputs[n : n + 1] for n in range(len(inputs))]),
                model_type=nncf.ModelType.TRANSFORMER,
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(inputs),
                advanced_parameters=nncf.AdvancedQuantizationParameters(
                    # A CPU without VNNI adds products in 16 bits, which full 8-bit weights overflow.
                    overflow_fix=nncf.OverflowFix.ENABLE,
                    smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=_SMOOTH_QUANT_ALPHA),
                ),
            )
    return model


def _compile(model: Any) -> Tower:
    import openvino

    # On a CPU with bfloat16, OpenVINO would silently use it instead of float32.
    hints = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(model, "CPU", hints)

    def run(inputs: Array) -> Array:
        output: Array = compiled(inputs)[0]
        return np.array(output, dtype=np.float32)  # a copy, because the next call overwrites the buffer

    return run


# --- on disk


def _write(model: Any, folder: Path, name: str) -> None:
    import openvino

    with tempfile.TemporaryDirectory(dir=folder) as aside:
        with _quiet():
            openvino.save_model(model, Path(aside) / f"{name}.xml", compress_to_fp16=False)
        sums = {file.name: _digest(file) for file in sorted(Path(aside).iterdir())}
        (Path(aside) / f"{name}.json").write_text(json.dumps(sums))
        # The list of checksums is written last: without it the tower does not exist.
        for file in (*sums, f"{name}.json"):
            path = Path(aside) / file
            with path.open("rb") as opened:
                os.fsync(opened.fileno())
            path.replace(folder / file)


def _is_intact(folder: Path, name: str) -> bool:
    """Return whether the folder holds a tower whose checksums are right."""
    try:
        sums = json.loads((folder / f"{name}.json").read_text())
        if all(_digest(folder / file) == expected for file, expected in sums.items()) and f"{name}.xml" in sums:
            return True
    except FileNotFoundError:
        return False
    except (OSError, ValueError, AttributeError):
        pass
    log.warning("cached tower damaged; compiling it again", folder=str(folder), tower=name)
    return False


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the messages, warnings and standard output of these libraries. Errors are still raised."""
    root = logging.getLogger("nncf")
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)
