"""All timing of sparsefill: `python -m benchmarks.run --help`; README.md says how."""
