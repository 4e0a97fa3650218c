# Recipes for work on ReelsRS: `just --list` shows them. They use the environment `.venv` if it exists.

export PATH := justfile_directory() / ".venv" / "bin" + ":" + env("PATH")

# Create the environment with everything that tests and checks need.
setup:
    python3 -m venv .venv
    .venv/bin/pip install --quiet uv
    .venv/bin/uv pip install --python .venv -e ".[all]" --group dev

# Check style, formatting, imports and spelling.
lint:
    ruff check .
    ruff format --check .
    lint-imports
    codespell

# Check types.
types:
    mypy

# Run the tests, or those named: `just test tests/unit -n 0`.
test *arguments:
    python -m pytest {{arguments}}

# Run everything that a change must pass.
test-all:
    .ci/run

# Run the long forms of the tests: an hour and more.
soak:
    .ci/run soak

# Serve the library of the folder `data` with the small model.
serve *arguments:
    REELSRS_MODEL=tiny python -m service serve {{arguments}}

# Check the guide and the README against the code.
docs:
    python -m pytest -n 0 tests/integration/test_readme.py tests/integration/test_guide.py

# Measure searches over 10,000 videos.
bench:
    python tests/bench/search.py --videos 10000 --no-peer
