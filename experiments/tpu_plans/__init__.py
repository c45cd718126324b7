"""Training steps compiled for TPUs that are not there: do they fit, and what do they send (see README.md)."""
