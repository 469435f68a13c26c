#!/usr/bin/env bash
# Builds the patched Horovod wheel with NCCL operations, without a system CUDA. Usage: build-nccl.sh VENV OUT_DIR
# Besides what build.sh needs, the environment holds the packages of nccl.txt. No GPU is needed to build.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
nvidia=$("$1/bin/python" -c 'import nvidia; print(list(nvidia.__path__)[0])')

# One CUDA home made of the wheels' files, with the names that CMake looks for.
cuda=$(mktemp -d)
trap 'rm -rf "$cuda"' EXIT
cp -as "$nvidia"/cu13/{bin,include,nvvm} "$cuda"/
mkdir "$cuda/lib64"
ln -s lib64 "$cuda/lib"
for file in "$nvidia"/cu13/lib/*; do ln -s "$file" "$cuda/lib64/"; done
for file in "$nvidia"/nccl/include/*; do ln -sf "$file" "$cuda/include/"; done
ln -sf libcudart.so.13 "$cuda/lib64/libcudart.so"
ln -sf "$nvidia/nccl/lib/libnccl.so.2" "$cuda/lib64/libnccl.so"

export CUDA_HOME=$cuda CUDAToolkit_ROOT=$cuda HOROVOD_CUDA_HOME=$cuda HOROVOD_NCCL_HOME=$cuda PATH="$cuda/bin:$PATH" \
    CUDAHOSTCXX=$(command -v g++) NVCC_APPEND_FLAGS=-std=c++17 HOROVOD_GPU_OPERATIONS=NCCL \
    HOROVOD_BUILD_CUDA_CC_LIST=${HOROVOD_BUILD_CUDA_CC_LIST:-80,90}
"$here/build.sh" "$1" "$2"
