"""Estimates of log p(x), each with its error."""
