"""The parts of the GPU check: `python -m benchmarks.gpu_check`."""
