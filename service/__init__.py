"""ReelsRS: a video recommender around a vector database.

One package for each capability. Imports point down this list, never up, and so does pyproject.toml say:

    cli             the commands                    api         REST
    operations      backup, copies, doctor, export  worker      the process that takes jobs
    runtime         what wires all of it together
    generations     which model answers             projections maps of the embedding space
    search          questions and answers           ingestion   the way of an upload
    index           nearest neighbours              embedding   CLIP
    media           clips, frames, decoders         storage     bytes of clips
    database        rows
    config          settings                        domain      nouns that all of them share
"""

__version__ = "0.4.0"
