#!/bin/sh
# Starts reprpo @VERSION@ with a libtorch of this machine: the libtorch in the folder LIBTORCH, or
# the torch of the `python3` on the PATH. Commands that train or test and `--version` print a line
# to stderr with its path; with REPRPO_LOG, all commands do.
set -eu

needed=@TORCH@

fail() {
    printf 'error: %s\n\nhint: %s\n' "$1" "$2" >&2
    exit 1
}

# Find the folder of this file, following symbolic links.
self=$0
while [ -L "$self" ]; do
    link=$(readlink "$self")
    case $link in
        /*) self=$link ;;
        *) self=$(dirname "$self")/$link ;;
    esac
done
here=$(CDPATH='' cd -P "$(dirname "$self")" && pwd)

# Prints the folder of torch, without importing it, because that takes seconds.
locate='
import importlib.util, os, sys
sys.path[:] = [folder for folder in sys.path if folder]
spec = importlib.util.find_spec("torch")
if spec and spec.origin:
    print(os.path.dirname(os.path.abspath(spec.origin)))
'

export_it="set LIBTORCH to the folder of a libtorch $needed, which contains \`lib\`"
if [ -n "${LIBTORCH:-}" ]; then
    from='LIBTORCH'
    other="$export_it, or unset it to use the torch of python3"
    torch=$(CDPATH='' cd "$LIBTORCH" 2>/dev/null && pwd) ||
        fail "LIBTORCH is set to \`$LIBTORCH\`, which is not a folder" "$other"
else
    python=$(command -v python3) ||
        fail "there is no \`python3\` on the PATH, and LIBTORCH is not set" \
            "activate an environment with torch $needed, or $export_it"
    from=$python
    other="run \`'$python' -m pip install torch==$needed\`, or $export_it"
    torch=$("$python" -c "$locate") || fail "\`$python\` failed to locate torch" "$other"
    [ -n "$torch" ] ||
        fail "torch is not installed for \`$python\`, but reprpo @VERSION@ needs torch $needed" \
            "$other"
fi
lib=$torch/lib
[ -f "$lib/libtorch_cpu.so" ] ||
    fail "there is no \`libtorch_cpu.so\` in \`$lib\` (from $from)" "$other"

# The version is in `version.py` (in a wheel), in `build-version` (in the archive of libtorch), or
# in the header (in either).
version=
if [ -f "$torch/version.py" ]; then
    version=$(sed -n "s/^__version__ *= *['\"]\([^'\"]*\).*/\1/p" "$torch/version.py")
fi
if [ -z "$version" ] && [ -f "$torch/build-version" ]; then
    version=$(sed -n 1p "$torch/build-version")
fi
header=$torch/include/torch/headeronly/version.h
if [ -z "$version" ] && [ -f "$header" ]; then
    part='s/^#define TORCH_VERSION_'
    version=$(
        sed -n -e "${part}MAJOR *//p" -e "${part}MINOR *//p" -e "${part}PATCH *//p" "$header" |
            tr '\n' '.'
    )
    version=${version%.}
fi
[ -n "$version" ] ||
    fail "the version of the libtorch in \`$torch\` (from $from) cannot be found" "$other"
[ "${version%%+*}" = "$needed" ] ||
    fail "libtorch $version is in \`$torch\` (from $from), but reprpo @VERSION@ needs $needed" \
        "$other"

case ${REPRPO_LOG:-}:${1:-} in
    :doctor | :selftest | :run | :sweep | :--version | :-V | ?*:*)
        printf 'libtorch %s in `%s` (from %s)\n' "$version" "$torch" "$from" >&2
        ;;
esac

LD_LIBRARY_PATH=$lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export LD_LIBRARY_PATH
exec "$here/lib/reprpo" "$@"
