"""Decode loops compiled for TPUs that are not there, and what was learnt of the compiler (see README.md)."""
