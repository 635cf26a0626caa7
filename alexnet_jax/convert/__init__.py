"""Weights of other libraries read, and nets written for other libraries."""
