"""The sentence that keys are hidden amid, of RULER and InfiniteBench alike."""

# Their wording, of Mohtashami and Jaggi 2023 (arXiv:2305.16300).
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
