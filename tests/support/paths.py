"""Paths of the checkout, the test assets, and the shared data that may lie beside the checkout."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "tests" / "assets"
SHARED = ROOT.parent / "shared"
SHARED_CLIPS = SHARED / "clips"
