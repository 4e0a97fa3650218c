"""The vector index in Milvus, a server or a file."""

from service.index.milvus.connection import PREFIX
from service.index.milvus.sync import MilvusIndex

__all__ = ["PREFIX", "MilvusIndex"]
