"""One machine's shared models behind HTTP (`mode=serve`). Nothing here is imported before it is wanted: FastAPI costs half a second."""
