"""How fast the sampling engine is, beside what the machine's memory and multipliers allow (see README.md)."""
