"""Ingestion of clips: accept, decode, embed, store."""
