"""Vector index in Milvus, on a server or, with Milvus Lite, in a file."""

from service.index.milvus.connection import PREFIX
from service.index.milvus.sync import MilvusIndex

__all__ = ["PREFIX", "MilvusIndex"]
