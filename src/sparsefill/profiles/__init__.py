"""Shipped profiles: one JSON file per architecture, with its origin in the provenance."""
