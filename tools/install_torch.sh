#!/bin/sh
# Install torch into the environment whose Python is given: the CPU build where no NVIDIA
# GPU is seen (the default build would bring gigabytes of CUDA), else the default one.
set -eu
python=$1
version=2.13.0
if "$python" -c 'import torch' 2>/dev/null; then
    exit 0
fi
if nvidia-smi >/dev/null 2>&1; then
    exec "$python" -m pip install torch
fi
# A CPU build that pip already reaches (a wheel folder, a mirror), or PyTorch's own index.
"$python" -m pip install "torch==$version+cpu" 2>/dev/null ||
    exec "$python" -m pip install "torch==$version" --index-url https://download.pytorch.org/whl/cpu
