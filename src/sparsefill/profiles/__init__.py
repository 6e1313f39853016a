"""Shipped profiles: one JSON file per architecture that was searched."""
