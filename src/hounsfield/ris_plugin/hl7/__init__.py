"""HL7 v2 over MLLP: what other systems say becomes actions, and what happens here is told to them."""
