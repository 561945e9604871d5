#!/bin/bash
# build_runtime.sh KIT TARGET
#
# Build the runtime, a virtual environment with Skerry in it, from the kit's wheels and nothing else. It is built under
# a hidden name beside TARGET, proven to start, written to disk, and only then renamed: a run that is killed leaves no
# half runtime under a name that anything uses. What such a run has left is removed by the next one.
set -euo pipefail
umask 022

kit=$1
target=$2
versions=$(dirname "$target")
tag=$(python3 -I -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
requirements=$kit/wheels/runtime-$tag.txt

fail() {
    echo "cannot build runtime $(basename "$target"): $1" >&2
    exit 1
}

[[ -e $requirements ]] || fail "the kit has no $(basename "$requirements"), expected one for this machine's $(python3 -V)"
pip=("$kit"/wheels/pip-*.whl)
[[ -e ${pip[0]} && ${#pip[@]} -eq 1 ]] || fail "found ${pip[*]}, expected one wheel of pip in the kit"

mkdir -p "$versions"
rm -rf "$versions"/.new.*
# Always the same name: pip writes down digests of commands that name it, and two images shall be the same bytes.
work=$versions/.new.$(basename "$target")
mkdir "$work"
trap 'rm -rf "$work"' EXIT

# Nothing of the caller's environment may change what is installed: no index, no configuration, no user folder.
clean=(env -i PATH=/usr/bin:/bin LANG=C.UTF-8 HOME=/nonexistent PIP_CONFIG_FILE=/dev/null ORT_DISABLE_TELEMETRY=1)
python3 -I -m venv --without-pip "$work"
"${clean[@]}" "$work/bin/python" -I "${pip[0]}/pip" --isolated --quiet --disable-pip-version-check install \
    --no-index --find-links "$kit/wheels" --only-binary :all: --no-deps --require-hashes -r "$requirements" \
    --no-cache-dir --no-compile || fail "pip refused a wheel of the kit"

# The folder moves once: nothing in it may name the place where it was built. Of the commands only ours is for a box.
find "$work/bin" -type f ! -name skerry -delete
sed -i "s|$work|$target|g" "$work/bin/skerry" "$work/pyvenv.cfg"

# Byte code now, because later nobody may write here; valid by itself, so that no clock matters. What a box never
# imports takes half of the time and is left out.
"${clean[@]}" "$work/bin/python" -I -m compileall -q -j 0 --invalidation-mode unchecked-hash -s "$work" -p "$target" \
    -x '/(tests|huggingface_hub|lexers|onnxruntime/(transformers|tools|quantization))/' "$work/lib" ||
    fail "a module does not compile"

# Wheels for another processor, or a missing one, show here and not when the service starts.
"${clean[@]}" "$work/bin/python" -I -c 'import appliance.cli.main, appliance.inferenced.main' ||
    fail "it does not start on this machine"

sync -f "$work"
mv -T "$work" "$target"
trap - EXIT
sync -f "$versions"
