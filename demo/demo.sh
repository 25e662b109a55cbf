#!/usr/bin/env bash
# Plays Herdbook's main job with real models: three generations of Silero VAD are pushed, evaluated, held against
# the gates of production, promoted or refused, and pulled back. Called by `make demo` once bin/herdbook is built.
#
# Everything it writes lies in .demo (made anew by each run; DEMO_STATE names another folder), .tools and
# demo/node_modules. The server keeps running afterwards, unless DEMO_EXIT=1 is set.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
export DEMO_STATE=${DEMO_STATE:-$root/.demo}
state=$DEMO_STATE
model=acme/silero-vad
herdbook=$root/bin/herdbook
declare -A onnx=(
  [v1.0.0]=$root/demo/node_modules/vad-web-legacy/dist/silero_vad.onnx
  [v2.0.0]=$root/demo/node_modules/vad-web-v5/dist/silero_vad_v5.onnx
  [v3.0.0]=$root/demo/node_modules/vad-web-v6/dist/silero_vad_v6.onnx
)
versions=(v1.0.0 v2.0.0 v3.0.0)
declare -A evaluation=() # version -> process

# The user's own settings must not reach the play, nor a proxy what is on this machine.
while read -r name; do unset "$name"; done < <(compgen -e HERDBOOK_ || true; git rev-parse --local-env-vars)
export NO_PROXY=${NO_PROXY:+$NO_PROXY,}127.0.0.1 no_proxy=${no_proxy:+$no_proxy,}127.0.0.1

bold='' green='' plain=''
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then bold=$'\e[1m' green=$'\e[32m' plain=$'\e[0m'; fi
number=0
step() { number=$((number + 1)); printf '\n%s%d. %s%s  (%d s)\n' "$bold" "$number" "$*" "$plain" "$SECONDS"; }
ok() { printf '   %sok%s %s\n' "$green" "$plain" "$*"; }
indent() { sed -u -e 's/.*\r//' -e '/^$/d' -e 's/^/   /'; }
die() { echo "demo: $*" >&2; exit 1; }
api() { node "$root/demo/api.mjs" "$@"; }

eventually() { # SECONDS WHAT COMMAND...: the command must succeed within that time
  local deadline=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$deadline" ] || die "$what: not seen in time"
    sleep 0.1
  done
}

finish() {
  local status=$?
  if [ "$status" -ne 0 ]; then
    kill "${evaluation[@]}" 2>/dev/null || true
    if [ -s "$state/server.log" ]; then
      echo "demo: ended at step $number; the last lines of $state/server.log:" >&2
      tail -n 20 "$state/server.log" >&2
    fi
  fi
  if [ "$status" -ne 0 ] || [ -n "${DEMO_EXIT:-}" ]; then "$root/demo/stop.sh"; fi
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

# --- the parts --------------------------------------------------------------------------------------------------

step 'Clients and models'
[ -x "$herdbook" ] || die 'bin/herdbook is missing: run make build'
"$root/demo/stop.sh" | indent
rm -rf "$state"
mkdir -p "$state/run" "$state/home"
"$root/demo/tools.sh" | indent
export PATH=$root/.tools/bin:$PATH
if ! cmp -s "$root/demo/package-lock.json" "$root/demo/node_modules/.installed"; then
  (cd "$root/demo" && npm ci --no-progress --loglevel=error) | indent
  cp "$root/demo/package-lock.json" "$root/demo/node_modules/.installed"
fi
ok 'three generations of Silero VAD, a runtime for ONNX, a speech synthesiser'

start() { # NAME COMMAND...: in the background, in a session of its own so that it outlives this terminal
  local name=$1
  shift
  setsid "$@" >"$state/$name.log" 2>&1 </dev/null &
  echo $! >"$state/run/$name.pid"
}

step 'A server in a fresh data directory'
(umask 077 && node -p '"whsec_" + crypto.randomBytes(32).toString("base64")' >"$state/webhook-secret")
start receiver node "$root/demo/receiver.mjs" \
  --secret-file "$state/webhook-secret" --port-file "$state/run/receiver.port" --events "$state/events.ndjson"
eventually 10 'the webhook receiver' test -s "$state/run/receiver.port"
cat >"$state/herdbook.yaml" <<YAML
hooks:
  - name: notify
    type: webhook
    url: http://127.0.0.1:$(cat "$state/run/receiver.port")/
    secret_file: $state/webhook-secret
    allow_private: true
    models: ["acme/*"]
    events: ["environment.promoted", "version.published"]
YAML
port=$(node -e '
  const listen = (port) => require("net").createServer().on("error", () => listen(0))
    .listen(port, "127.0.0.1", function () { console.log(this.address().port); this.close(); });
  listen(8080);')
url=http://127.0.0.1:$port
start server "$herdbook" serve --listen "127.0.0.1:$port" --data "$state/data" --config "$state/herdbook.yaml" --public-url "$url"
export HERDBOOK_URL=$url
eventually 20 'the server' api GET /readyz
HERDBOOK_TOKEN=$(cat "$state/data/admin-token")
export HERDBOOK_TOKEN
api POST /api/v1/models '"created " + it.name' \
  "{\"name\":\"$model\",\"visibility\":\"public\",\"description\":\"Tells speech from silence\"}" | indent
ok "$url, webhooks go to a receiver that checks their signature"

# --- push -------------------------------------------------------------------------------------------------------

step 'git push: three versions, the weights by Git LFS'
# A home and settings of its own: the user's stay as they are. The token reaches git by the environment only.
export HOME=$state/home GIT_CONFIG_GLOBAL=$state/home/gitconfig GIT_CONFIG_NOSYSTEM=1 GIT_TERMINAL_PROMPT=0
export XDG_CONFIG_HOME=$state/home XDG_CACHE_HOME=$state/home DOCKER_CONFIG=$state/home
git config --global user.name 'Herdbook demo'
git config --global user.email demo@example.org
git config --global init.defaultBranch main
# shellcheck disable=SC2016  # the helper's shell expands it
git config --global "credential.$url.helper" '!f() { [ "$1" != get ] || printf "username=demo\npassword=%s\n" "$HERDBOOK_TOKEN"; }; f'
git config --global "lfs.$url/$model.git/info/lfs.locksverify" false
git init --quiet "$state/work"
cd "$state/work"
git lfs install >/dev/null
git remote add origin "$url/$model.git"
for version in "${versions[@]}"; do
  cp "$root"/demo/models/shared/.gitattributes "$root"/demo/models/shared/* "$root/demo/models/$version"/* .
  cp "${onnx[$version]}" silero_vad.onnx
  git add .
  git commit --quiet -m "Silero VAD $version"
  git tag -a -m "Silero VAD $version" "$version"
  echo "   git push origin main $version"
  git push --quiet origin main "$version" 2>&1 | indent
done
cd "$root"

# --- evaluate ---------------------------------------------------------------------------------------------------

step 'Evaluation: each model listens to 82 seconds of speech at four noise levels'
for version in "${versions[@]}"; do
  node demo/evaluate.mjs --model "${onnx[$version]}" --out "$state/evaluations/$version" \
    >"$state/$version.table" 2>&1 &
  evaluation[$version]=$!
done
in_staging() { [ "$(api GET "/api/v1/models/$model/environments/staging" 'it.current.version')" = "$1" ]; }
is_open() { # VERSION ENVIRONMENT
  [ "$(api GET "/api/v1/models/$model/gates/$1" "it.items.find((v) => v.environment === '$2').open")" = true ]
}
for version in "${versions[@]}"; do
  wait "${evaluation[$version]}" || { cat "$state/$version.table" >&2; die "$version was not evaluated"; }
  echo "   $version"
  indent <"$state/$version.table"
  for slice in clean snr20 snr10 snr0 all; do
    "$herdbook" evaluate "$model" "$version" --file "$state/evaluations/$version/$slice.json" >>"$state/evaluate.log"
  done
  if is_open "$version" staging; then
    eventually 20 "$version in staging" in_staging "$version"
    ok "$version meets the bar of staging and was promoted there by itself"
  fi
done

# --- gates ------------------------------------------------------------------------------------------------------

step 'Gates of production'
refused='' passed=''
for version in "${versions[@]}"; do
  "$herdbook" gate "$model" "$version" --env production 2>&1 | indent || true # exits 1 when closed
  if is_open "$version" production; then passed=${passed:-$version}; else refused=$version; fi
done
[ -n "$refused" ] || die 'no version was refused: the gates prove nothing'
[ -n "$passed" ] || die 'no version passed'

step "Promotion of $refused, whose gate is closed"
if "$herdbook" promote "$model" "$refused" --env production >"$state/promote.log" 2>&1; then
  cat "$state/promote.log" >&2
  die "$refused went to production through a closed gate"
fi
indent <"$state/promote.log"
grep -q f1 "$state/promote.log" || die 'the refusal does not name the metric'
ok "$refused was refused"

step "Promotion of $passed, whose gate is open"
"$herdbook" promote "$model" "$passed" --env production 2>&1 | indent
announced() {
  # shellcheck disable=SC2016  # JavaScript's
  node -e '
    const [file, version] = process.argv.slice(1);
    const events = require("fs").readFileSync(file, "utf8").trim().split("\n").filter(Boolean).map((line) => JSON.parse(line));
    const found = events.find((e) => e.type.endsWith("environment.promoted")
      && JSON.stringify(e).includes("\"production\"") && JSON.stringify(e).includes(`"${version}"`));
    if (!found) process.exit(1);
    console.log(`${found.type} ${found.id}`);' "$state/events.ndjson" "$passed"
}
eventually 30 'the webhook of the promotion' announced
ok "the webhook arrived, its signature is good: $(announced)"

# --- pull -------------------------------------------------------------------------------------------------------

sums() { (cd "$1" && find . -name .git -prune -o -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum); }
same() { # DIRECTORY WHAT: the same files with the same SHA-256 as in Git
  diff <(sums "$state/clone") <(sums "$1") >&2 || die "$2: not the files that are in Git"
  ok "$2: the same $(sums "$1" | wc -l) files as in Git at $passed, by SHA-256"
}

step 'oras pull: the artifact of production'
git clone --quiet --depth 1 --branch "$passed" -c advice.detachedHead=false "$url/$model.git" "$state/clone" 2>&1 | indent
cmp "${onnx[$passed]}" "$state/clone/silero_vad.onnx" || die 'git clone gave back another model'
ok 'git clone gives back the model from npm, byte for byte'
oras pull --plain-http --no-tty -o "$state/artifact" "127.0.0.1:$port/$model:production" >"$state/oras.log" 2>&1 ||
  { cat "$state/oras.log" >&2; die 'oras pull'; }
same "$state/artifact" "oras pull 127.0.0.1:$port/$model:production"

step 'crane export: the image of production, unpacked'
image_ready() { [ "$(api GET "/api/v1/models/$model/versions/$passed" it.image.state)" = ready ]; }
eventually 60 'the image' image_ready
crane export --insecure "127.0.0.1:$port/$model/image:production" "$state/image.tar"
mkdir "$state/image"
tar -xf "$state/image.tar" --no-same-owner -C "$state/image"
same "$state/image/models" "/models of 127.0.0.1:$port/$model/image:production"

# --- end --------------------------------------------------------------------------------------------------------

step 'Done'
if [ -n "${DEMO_EXIT:-}" ]; then
  ok 'DEMO_EXIT is set: stopping'
else
  echo "   The model's page:  $bold$url/$model$plain"
  echo "   The admin token:   $state/data/admin-token"
  echo '   To end the server: make demo-stop'
  # shellcheck disable=SC2016  # for the reader's shell
  printf '   To go on:          HERDBOOK_URL=%s HERDBOOK_TOKEN=$(cat %s/data/admin-token) \\\n' "$url" "${state#"$PWD/"}"
  echo "                        bin/herdbook promote $model ${versions[-1]} --env production"
fi
