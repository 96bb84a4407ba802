"""What modalities ask for and report: the worklist (PS3.4 K) and performed steps (PS3.4 F)."""
