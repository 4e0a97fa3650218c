"""pytest hooks: order of the tests among processes, and a summary of skipped tests."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections import Counter

import pytest
from hypothesis import Phase, settings

# For mutation testing: a failing test is enough, so its example is not shrunk.
settings.register_profile("first-failure", phases=(Phase.explicit, Phase.generate), database=None, max_examples=10)

_PR_SET_PDEATHSIG = 1
# The slowest tier first, so that no process is left with a long file when the others are idle.
_TIERS = ("external", "soak", "e2e", "browser", "integration", "unit")

HOW_TO_GET = {
    "shared clips": "real clips are looked for in ../shared/clips, beside the checkout",
    "chromium": "Debian: apt install chromium",
    "playwright": "pip install playwright axe-playwright-python",
    "PostgreSQL": "Debian: apt install postgresql",
    "milvus-server": 'pip install "milvus==2.3.5" "setuptools<80" into an environment of its own, its bin on the PATH',
    "mounted": "run as root on Linux, in a container that may mount",
}


def pytest_configure() -> None:
    """Make the kernel kill an xdist worker when its controller ends, for any reason. Linux only."""
    if "PYTEST_XDIST_WORKER" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@pytest.hookimpl(trylast=True)  # pytest-randomly decides the order within a tier.
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the tests by their tier."""
    items.sort(key=lambda item: next((place for place, tier in enumerate(_TIERS) if tier in item.path.parts), -1))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Write which tests were skipped, why, and how to get what they need."""
    reasons: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", ()):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons[reason.removeprefix("Skipped: ")] += 1
    if not reasons:
        return
    terminalreporter.section("left out")
    for reason, count in reasons.most_common():
        hint = next((said for word, said in HOW_TO_GET.items() if word in reason), "")
        terminalreporter.line(f"{count} tests: {reason}{f' ({hint})' if hint and hint not in reason else ''}")
