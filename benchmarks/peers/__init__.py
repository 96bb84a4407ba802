"""The servers that are measured: each starts on loopback in a folder of its own and is gone afterwards."""
