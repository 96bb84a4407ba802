"""The engine: ingest, search, retrieve, recover; and the one gate from the event loop to threads."""
