"""Where bytes stay (blobs) and what finds them (key-value), with sealing and keys. Imports none of ours."""
