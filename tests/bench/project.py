"""Benchmark projections: time, memory and quality, compared with the libraries' own default calls.

    python tests/bench/project.py [--sizes 1000 10000 100000] [--methods umap tsne pca] [--no-peers]

Generated vectors of 512 numbers, spread around real CLIP text vectors that are read from --vectors. For each size and
method, one after the other in one run, each in a separate process:

    ours    the neighbour graph and the fit, with a seed; before and after the peers, both must give the same bytes
    peers   umap: umap.UMAP().fit_transform(X)             without a seed, on all cores
            tsne: openTSNE.TSNE().fit(X), and up to 2,000 points sklearn.manifold.TSNE().fit_transform(X)
            pca:  sklearn.decomposition.PCA(2).fit_transform(X)

Seconds include imports and compilation. Memory is the peak of the process, vectors included. `placing` transforms one
new point in a new process: `process_seconds` from its start to its end, `seconds` without Python's start. Quality is
measured on a sample, each of its points compared with all points. `of_peer` is the mean of our two times divided by the
peer's. The last line is JSON; `reached` judges UMAP with the most points.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from service.index import graph
from service.projections.reduction import Method, fit, neighbours_needed, quality
from tests.bench.measuring import alone, say
from tests.bench.search_library import centres

D = 512
K = 15
SAMPLE = 1000
SMALL = 2000
"""Largest number of points for which scikit-learn's t-SNE is measured too."""

Figures = dict[str, Any]
METHODS: tuple[Method, ...] = ("umap", "tsne", "pca")


def make(path: Path, count: int, vectors: Path) -> None:
    """Write (count + 1, D) float32 unit vectors, the last to be placed later; popular centres have more vectors."""
    around, sigma = centres("real", vectors)
    rng = np.random.default_rng(1)
    popularity = np.arange(1, len(around) + 1) ** -0.7
    which = rng.choice(len(around), count + 1, p=rng.permutation(popularity / popularity.sum()))
    made = rng.standard_normal((count + 1, D), dtype=np.float32) * np.float32(sigma / math.sqrt(D)) + around[which]
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    np.save(path, made)


def peak() -> int:
    """Return the peak resident memory of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def ours(path: Path, method: Method, into: Path) -> Figures:
    """Measure the graph and the fit; write the coordinates and the fitted model to `into`."""
    vectors = np.load(path)[:-1]
    wanted = neighbours_needed(method, len(vectors), {})
    started = time.perf_counter()
    found = graph.neighbours(vectors, wanted) if wanted else None
    between = time.perf_counter()
    made = fit(vectors, method, 2, seed=0, parameters={}, neighbours=found)
    ended = time.perf_counter()
    np.savez(into, coordinates=made.coordinates, **made.model)
    return {
        "graph_seconds": round(between - started, 2),
        "seconds": round(ended - started, 2),
        "peak_bytes": peak(),
        "sha256": hashlib.sha256(made.coordinates.tobytes()).hexdigest(),
    }


def peer(path: Path, name: str, into: Path) -> Figures:
    """Measure a library's default call; write its coordinates to `into`."""
    vectors = np.load(path)[:-1]
    warnings.simplefilter("ignore")
    started = time.perf_counter()
    if name == "umap":
        import umap

        made = umap.UMAP().fit_transform(vectors)
    elif name == "openTSNE":
        import openTSNE

        made = openTSNE.TSNE().fit(vectors)
    elif name == "sklearn TSNE":
        from sklearn.manifold import TSNE

        made = TSNE().fit_transform(vectors)
    else:
        from sklearn.decomposition import PCA

        made = PCA(2).fit_transform(vectors)
    seconds = time.perf_counter() - started
    np.savez(into, coordinates=np.asarray(made, np.float32))
    return {"seconds": round(seconds, 2), "peak_bytes": peak()}


def measure_quality(path: Path, into: Path) -> Figures:
    """Measure the quality of the coordinates written to `into`."""
    found = quality(np.load(path)[:-1], np.load(into)["coordinates"], neighbours=K, sample=SAMPLE)
    return {} if found is None else {name: round(value, 4) for name, value in asdict(found).items()}


PLACE_ONE = """
import sys, time
started = time.perf_counter()
import numpy as np
from service.index import graph
from service.projections.fits import Fit
from service.projections.reduction import neighbours_needed, transform
path, into, method = sys.argv[1:]
vectors, saved = np.load(path, mmap_mode="r"), dict(np.load(into))
made = Fit(saved.pop("coordinates"), saved)
matrix, new = vectors[:-1], np.array(vectors[-1:])
found = graph.nearest(matrix, new, neighbours_needed(method, len(matrix), {}))
transform(new, made, method, parameters={}, neighbours=found)
print(time.perf_counter() - started)
"""


def placing(path: Path, into: Path, method: Method) -> Figures:
    """Measure transforming one new point in a new process."""
    started = time.perf_counter()
    command = [sys.executable, "-c", PLACE_ONE, str(path), str(into), method]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    whole = time.perf_counter() - started
    return {"process_seconds": round(whole, 2), "seconds": round(float(done.stdout), 3)}


def measure(scratch: Path, path: Path, method: Method, count: int, peers: bool) -> Figures:
    """Measure one method on one size: ours, the peers, ours again."""
    say(f"{method}, {count:,} points")
    into = scratch / f"{method}.npz"
    first = alone(ours, path, method, into)
    say(f"  ours {first['seconds']} s")
    report: Figures = {"method": method, "points": count, "quality": alone(measure_quality, path, into)}
    report["placing"] = placing(path, into, method)
    names = {"umap": ["umap"], "tsne": ["openTSNE"], "pca": ["sklearn PCA"]}[method] if peers else []
    if names == ["openTSNE"] and count <= SMALL:
        names = ["openTSNE", "sklearn TSNE"]
    report["peers"] = {}
    for name in names:
        theirs = scratch / "peer.npz"
        report["peers"][name] = alone(peer, path, name, theirs) | {"quality": alone(measure_quality, path, theirs)}
        say(f"  {name} {report['peers'][name]['seconds']} s")
    second = alone(ours, path, method, into)
    report |= {"ours": [first, second], "same_bytes": first["sha256"] == second["sha256"]}
    mean = (first["seconds"] + second["seconds"]) / 2
    for its in report["peers"].values():
        its["of_peer"] = round(mean / its["seconds"], 3)
    report["load_average"] = os.getloadavg()[0]
    return report


def show(reports: list[Figures]) -> None:
    """Print the reports as a table."""
    say(f"\n{'':<8}{'points':>8}  {'who':<14}{'seconds':>16}{'of peer':>9}{'peak MB':>9}{'trust':>8}{'overlap':>9}")
    for report in reports:
        head = f"{report['method']:<8}{report['points']:>8}  "
        times = " ".join(f"{one['seconds']:.2f}" for one in report["ours"])
        good, memory = report["quality"], max(one["peak_bytes"] for one in report["ours"])
        say(f"{head}{'ours':<14}{times:>16}{'':>9}{memory / 1e6:>9.0f}{_quality(good)}   placing {report['placing']}")
        for name, its in report["peers"].items():
            line = f"{'':<18}{name:<14}{its['seconds']:>16.2f}{its['of_peer']:>9.3f}{its['peak_bytes'] / 1e6:>9.0f}"
            say(line + _quality(its["quality"]))


def _quality(found: Figures) -> str:
    return f"{found['trustworthiness']:>8.4f}{found['neighbourhood_overlap']:>9.4f}" if found else ""


def reached(report: Figures) -> dict[str, bool | None]:
    """Compare a report of UMAP with the targets; None means not measured."""
    its = report["peers"].get("umap")
    trust = report["quality"]["trustworthiness"]
    return {
        "at_most_0.7_of_umaps_time": None if its is None else its["of_peer"] <= 0.7,
        "trustworthiness_within_0.01": None if its is None else trust >= its["quality"]["trustworthiness"] - 0.01,
        "same_bytes": report["same_bytes"],
        "placing_within_1_second": report["placing"]["process_seconds"] <= 1,
    }


def main() -> None:
    """Measure each size and method in turn, and print one JSON line."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 100_000])
    arguments.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    arguments.add_argument("--vectors", type=Path, default=Path("../shared/vectors"), help="a folder of .npy, (N, 512)")
    arguments.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True)
    given = arguments.parse_args()
    reports = []
    with tempfile.TemporaryDirectory() as scratch:
        for count in given.sizes:
            path = Path(scratch) / "vectors.npy"
            make(path, count, given.vectors)
            reports += [measure(Path(scratch), path, method, count, given.peers) for method in given.methods]
    show(reports)
    judged = [one for one in reports if one["method"] == "umap" and one["points"] == max(given.sizes)]
    head = {"benchmark": "project", "cores": os.cpu_count(), "dimension": D, "neighbours": K, "sample": SAMPLE}
    print(json.dumps({**head, "maps": reports, "reached": reached(judged[0]) if judged else None}))


if __name__ == "__main__":
    main()
