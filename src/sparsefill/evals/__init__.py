"""What sparse attention costs in answers: the benchmarks of long prompts, by their own rules.

A task makes samples for a tokenizer and a length, and scores what a model says of them. Nothing
here sees a model: a reader is handed in.
"""
