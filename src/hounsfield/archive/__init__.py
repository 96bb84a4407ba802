"""The archive: what takes studies in, keeps them, finds them and gives them out."""
