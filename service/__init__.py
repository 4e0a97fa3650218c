"""ReelsRS: a video recommender around a vector database.

The package is flat, a module for one noun. Imports point down this list, never up:

    cli > app > routes > schemas > folder | export | visualize > worker > runtime > ingest | recommend
        > follower | jobs > files | video | embedder | catalog | index | projection | drawing
        > db | vectors | scenery > config > domain > errors | log
"""

__version__ = "0.1.0"
