"""Adapters to inference engines; each is imported only when asked for."""
