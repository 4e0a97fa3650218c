"""ReelsRS: a video recommender around a vector database.

The package is flat, a module for one noun. Imports point down this list, never up:

    cli > app > routes > guard > schemas > folder | export | visualize | backup | doctor > worker > runtime
        > reembed > ingest | recommend | examples | duplicates | atlas
        > tables | generations > follower | jobs | keys | maps
        > files | video | embedder | catalog | index | projection | drawing
        > compiled | db | vectors | scenery | question | ranking > config > domain | faults > errors | log
"""

__version__ = "0.4.0"
