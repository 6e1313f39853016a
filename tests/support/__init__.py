"""What several test files share: inputs, strategies, and how results are judged."""
