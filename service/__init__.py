"""ReelsRS: a video recommendation service built on vector search.

One package for each capability. Imports point down this list, never up; import-linter enforces it (pyproject.toml).

    cli             command line                    api             REST API
    operations      backup, copy, doctor, export    worker          process that runs jobs
    bootstrap       builds all parts from settings  serving         model and indexes that answer requests
    generations     active and target generations   projections     maps of the embedding space
    search          queries and search results      ingestion       uploads, from bytes to vectors
    index           nearest neighbours              embedding       CLIP
    media           decoding of clips and images    storage         bytes of clips
    database        tables and transactions         config          settings
    models          shared data classes             errors, telemetry, timing
"""

__version__ = "0.4.0"
