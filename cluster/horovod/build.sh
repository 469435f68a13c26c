#!/usr/bin/env bash
# Builds the patched Horovod wheel for the Python of a virtual environment. Usage: build.sh VENV OUT_DIR
# The environment holds torch and what setup.cfg's dev extra lists for this build; a C++ compiler and patch are installed.
set -euo pipefail
version=0.28.1+mltrain2         # count up with every change of the patches
here=$(cd "$(dirname "$0")" && pwd)
venv=$(realpath "$1") out=$(realpath -m "$2")
python=$venv/bin/python
export PATH="$venv/bin:$PATH" PIP_DISABLE_PIP_VERSION_CHECK=1   # the environment's cmake, whatever the machine has

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m pip download -q --no-deps --no-binary :all: --no-build-isolation --require-hashes \
    -r "$here/sdist.txt" -d "$work"
tar xzf "$work"/horovod-*.tar.gz -C "$work"
source=$work/horovod-${version%+*}
for file in "$here"/patches/*.patch; do
    patch -s -p1 -d "$source" <"$file"
done
sed -i "s/^__version__ = .*/__version__ = '$version'/" "$source/horovod/__init__.py"

# Torch's headers need C++20; Horovod's CMake files insist on C++17.
cat >"$work/c++20" <<'WRAPPER'
#!/usr/bin/env bash
arguments=()
for argument in "$@"; do
    case "$argument" in
        -std=*) arguments+=(-std=gnu++20) ;;
        *) arguments+=("$argument") ;;
    esac
done
exec g++ "${arguments[@]}"
WRAPPER
chmod +x "$work/c++20"
export CXX="$work/c++20" HOROVOD_WITH_PYTORCH=1 HOROVOD_WITHOUT_TENSORFLOW=1 HOROVOD_WITHOUT_MXNET=1 \
    HOROVOD_WITHOUT_MPI=1 HOROVOD_WITH_GLOO=1 CMAKE_POLICY_VERSION_MINIMUM=3.5
"$python" -m pip wheel -q --no-build-isolation --no-deps -w "$out" "$source"
