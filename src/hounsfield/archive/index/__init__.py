"""What finds the bytes: a sealed catalog, blind tokens, the journal and the facts ledger. Blocking."""
