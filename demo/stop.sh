#!/usr/bin/env bash
# Ends the demo's server and webhook receiver. Their data stays under .demo until the next run.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)

stop() { # NAME COMMAND-LINE
  local file=${DEMO_STATE:-$root/.demo}/run/$1.pid pid
  [ -f "$file" ] || return 0
  pid=$(cat "$file")
  ours() { tr '\0' ' ' <"/proc/$pid/cmdline" | grep -qF -- "$2"; } 2>/dev/null
  if ours "$@"; then # the number may belong to another process by now
    kill "$pid" 2>/dev/null || true
    for _ in $(seq 150); do
      ours "$@" || break
      sleep 0.1
    done
    if ours "$@"; then
      echo "demo: the $1 did not stop within 15 s and is killed" >&2
      kill -KILL "$pid" 2>/dev/null || true
    else
      echo "demo: the $1 is stopped"
    fi
  fi
  rm -f "$file"
}

stop server "$root/bin/herdbook serve"
stop receiver "$root/demo/receiver.mjs"
