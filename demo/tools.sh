#!/usr/bin/env bash
# Puts the clients that the demo plays with into .tools/bin, built from Go modules without root. What PATH already
# has in a version that will do is left alone; what was built before is not built again. With the argument "tests" it
# brings what the tests need besides: the newest git-lfs, whatever PATH has, more clients of registries, and the programs that
# test LFS servers and registries.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
bin=$root/.tools/bin
mkdir -p "$bin" "$root/.tools/stamps"

need() { # COMMAND LEAST-VERSION WHAT-IT-IS
  local found
  command -v "$1" >/dev/null || { echo "tools: $1 is not on PATH; install $3, version $2 or newer" >&2; exit 1; }
  found=$("$1" "${4:---version}" | grep -Eo '[0-9]+(\.[0-9]+)+' | head -n 1)
  newer "$found" "$2" || { echo "tools: $1 is version $found; $2 or newer is needed" >&2; exit 1; }
}

newer() { [ -n "$1" ] && [ "$(printf '%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

tool() { # COMMAND LEAST-VERSION MODULE-PATH VERSION
  local name=$1 least=$2 package=$3 version=$4 found stamp=$root/.tools/stamps/$1-$4 log=$root/.tools/$1.log started=$SECONDS
  if [ -e "$stamp" ] && [ -x "$bin/$name" ]; then
    echo "$name $version: built before"
    return
  fi
  if command -v "$name" >/dev/null; then
    found=$("$name" version 2>/dev/null | grep -Eo '[0-9]+(\.[0-9]+)+' | head -n 1 || true)
    if newer "$found" "$least"; then
      echo "$name $found: on PATH"
      return
    fi
  fi
  echo "$name $version: building"
  # GOFLAGS of the caller may hold -mod=vendor, which go install refuses; without cgo no C compiler is needed.
  GOFLAGS='' CGO_ENABLED=0 GOBIN=$bin go install -trimpath -ldflags '-s -w' "$package@$version" >"$log" 2>&1 &
  local build=$!
  while kill -0 "$build" 2>/dev/null; do
    sleep 1
    [ $(((SECONDS - started) % 15)) -ne 14 ] || echo "$name $version: building for $((SECONDS - started)) s"
  done
  if ! wait "$build"; then
    tail -n 20 "$log" >&2
    echo "tools: $name could not be built" >&2
    exit 1
  fi
  rm -f "$log" "$root/.tools/stamps/$name-"*
  touch "$stamp"
  echo "$name $version: built in $((SECONDS - started)) s"
}

need git 2.39 Git
need node 18 Node.js
need npm 9 npm
need go 1.26 Go version

lfs_version=3.8.1
lfs_least=3.0.0
[ "${1:-}" != tests ] || lfs_least=$lfs_version

tool git-lfs "$lfs_least" github.com/git-lfs/git-lfs/v3 "v$lfs_version"
tool oras 1.2.0 oras.land/oras/cmd/oras v1.3.6
tool crane 0.19.0 github.com/google/go-containerregistry/cmd/crane v0.22.1
if [ "${1:-}" = tests ]; then
  tool git-lfs-test-server-api "$lfs_version" github.com/git-lfs/git-lfs/v3/t/git-lfs-test-server-api "v$lfs_version"
  tool regctl 0.8.0 github.com/regclient/regclient/cmd/regctl v0.11.7
  tool umoci 0.4.7 github.com/opencontainers/umoci/cmd/umoci v0.5.1
  # It has no releases of its own, and does not say which version it is.
  tool conformance 1.1 github.com/opencontainers/distribution-spec/conformance v0.0.0-20260831232431-97274622c111
fi
