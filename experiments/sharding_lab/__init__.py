"""Strategies compared on slices that nobody rented (see README.md)."""
