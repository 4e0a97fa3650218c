"""ReelsRS: a video recommender around a vector database.

One package for each capability. Imports point down this list, never up; pyproject.toml holds them to it.

    cli             commands                        api             REST
    operations      backup, copies, doctor, export  worker          the process that takes jobs
    bootstrap       settings in, working parts out  serving         the model and the indexes that answer
    generations     which model answers             projections     maps of the embedding space
    search          queries and results             ingestion       from accepted bytes to vectors
    index           nearest neighbours              embedding       CLIP
    media           clips, frames, decoders         storage         bytes of clips
    database        rows                            config          settings
    models          nouns that all of them share    errors, telemetry, timing
"""

__version__ = "0.4.0"
