"""Print the folder of the embedded model, which is converted once.

python -m tests.vllm.embedded
"""

from sparsefill.integrations.transformers.loading import embedded_model

if __name__ == "__main__":
    print(embedded_model())  # noqa: T201 - what the test reads
