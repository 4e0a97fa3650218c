"""REST API: the FastAPI application, its routes and its schemas."""
