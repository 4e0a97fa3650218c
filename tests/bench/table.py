"""Write the guide's table of speeds from the latest results of the benchmarks.

    python tests/bench/decode.py FOLDER | tail -n 1 > tests/bench/results/decode.json     (and so on)
    python tests/bench/table.py

Reads results/{decode,ingest,embed,serve,memory}.json and writes the table between the two marks in
service/docs/benchmarks.md. The table says what was not measured.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[2] / "service" / "docs" / "benchmarks.md"
BEGIN, END = "<!-- speeds: python tests/bench/table.py -->", "<!-- end of speeds -->"


def results() -> dict[str, dict[str, Any]]:
    """Read the stored results, by the benchmark's name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}


def table(found: dict[str, dict[str, Any]]) -> str:
    """Return the table in Markdown."""
    decode, ingest, embed = found["decode"], found["ingest"], found["embed"]["ViT-B-32"]
    serve, memory = found["serve"], found["memory"]
    seconds, long = decode["seconds"], decode["long_seconds"]
    single, eight = ingest["float32"], ingest["int8"]
    busy, peaks = serve["ingesting"], memory["peak_mib"]
    ways = {name: value for name, value in embed.items() if isinstance(value, dict) and "pictures_per_second" in value}
    rows = [
        (
            f"ten even frames of {decode['clips']} clips",
            f"{seconds['ours']} s",
            f"OpenCV {seconds['opencv']} s, PyAV {seconds['pyav']} s, torchcodec "
            f"{min(seconds[name] for name in seconds if 'torchcodec' in name)} s: "
            f"{decode['ours_to_best_other']} of the best",
        ),
        (
            "ten even frames of ten minutes at 1080p",
            f"{long['ours']} s; keyframes only {long['keyframes']} s",
            f"read in order {long['pyav']} s: 1/{1 / decode['long_ours_to_sequential']:.0f}",
        ),
        *(
            (
                f"ViT-B-32's picture tower, {name}",
                f"{way['pictures_per_second']} pictures/s",
                f"least cosine to torch float32 {way['least_cosine']}",
            )
            for name, way in ways.items()
        ),
        ("ViT-B-32 and ViT-L-14 on a GPU", "not measured", ""),
        (
            "files to vectors, ViT-B-32, float32",
            f"{single['frames_per_second']} frames/s",
            f"decoding alone and model alone, added: {single['to_the_sum_of_both']} of that time; "
            f"{ingest['float32_to_seed']} times the founding scripts' way, "
            f"{ingest['float32_to_clip_video_encode']} times clip-video-encode's",
        ),
        (
            "the same with `REELSRS_PRECISION=int8`",
            f"{eight['frames_per_second']} frames/s",
            f"{eight['to_the_sum_of_both']}; {ingest['int8_to_seed']} and {ingest['int8_to_clip_video_encode']} times; "
            f"the model alone {ingest['int8_forward_to_float32_forward']} times float32",
        ),
        (
            f"`GET recommendations` among {serve['videos']:,}, p50 / p99",
            f"{serve['over_http']['p50']} / {serve['over_http']['p99']} ms",
            f"the same call in the process {serve['in_the_process']['p50']} / {serve['in_the_process']['p99']} ms",
        ),
        ("eight at a time", f"{serve['requests_per_second']:.0f} requests/s", f"asked by {serve['asked_by']}"),
        *(
            (
                f"p99 while clips are embedded: {kind.replace('_', ' ')}",
                f"{each['busy']['p99']} ms",
                f"idle {each['idle']['p99']} ms: {busy['p99_busy_to_idle'][kind]} times",
            )
            for kind, each in busy["milliseconds"].items()
        ),
        (
            "peak memory, process / decoder",
            "; ".join(f"{name} {each['process']:.0f} / {each['decoder']:.0f} MiB" for name, each in peaks.items()),
            "",
        ),
    ]
    lines = ["| | ReelsRS | beside it |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def written(page: str, found: dict[str, dict[str, Any]]) -> str:
    """Return the page with the table between its marks."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table(found)}\n\n{END}{rest.split(END)[1]}"


def main() -> None:
    """Write the table into the guide's page."""
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), results()), encoding="utf-8")


if __name__ == "__main__":
    main()
