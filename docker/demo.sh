#!/usr/bin/env bash
# Two services in a mesh of containers: what comes through, what does not, and what happens while
# policy, certificates and the CA come and go. Exits with 0 only if everything was as expected, and
# takes down what it brought up. Needs a Docker engine with compose; nothing else.
#
#   docker/demo.sh          # KEEP=1 leaves it running; BASE_IMAGE=... builds on another base
set -euo pipefail
cd "$(dirname "$0")/.."

export COMPOSE_PROJECT_NAME=remora-demo COMPOSE_FILE=docker/compose.yaml
export REMORA_IMAGE=remora SECRET_TTL=60s
SECRETS=$(mktemp -d)
export SECRETS

if docker compose version >/dev/null 2>&1; then
  compose() { docker compose "$@"; }
else
  compose() { docker-compose "$@"; }
fi

# Progress is of no interest, unless something fails.
quietly() {
  "$@" >"$SECRETS/output" 2>&1 || { cat "$SECRETS/output" >&2; fail "$*"; }
}

say() { printf '\n== %s\n' "$*"; }
fail() {
  printf 'NOT AS EXPECTED: %s\n' "$*" >&2
  compose logs --tail 8 >&2
  exit 1
}

down() {
  status=$?
  trap - EXIT
  if [[ -z ${KEEP:-} ]]; then
    say "taking it all down"
    compose down --volumes --timeout 2 2>/dev/null
  fi
  rm -rf "$SECRETS"
  exit "$status"
}
trap down EXIT

# What CLIENT gets for GET /orders: an HTTP status, 000 for none.
ask() { compose exec -T "$1" python3 /opt/apps/ask.py; }

answers() { [[ $(ask "$1") == "$2" ]]; }

expect() { # CLIENT STATUS WHY
  local got
  got=$(ask "$1")
  [[ $got == "$2" ]] || fail "$1 got $got instead of $2 ($3)"
  printf '%-9s %s   %s\n' "$1" "$got" "$3"
}

# Wait until a command succeeds; at most SECONDS.
eventually() { # SECONDS COMMAND...
  local ends=$((SECONDS + $1))
  shift
  until "$@"; do
    ((SECONDS < ends)) || fail "in vain waited for: $*"
    sleep 0.5
  done
}

logged() { [[ $(compose logs --no-color "$1" 2>/dev/null) == *"$2"* ]]; }
serials() { compose logs --no-color orders-agent 2>/dev/null | grep -c 'certificate obtained' || true; }
more_serials_than() { (($(serials) > $1)); }

say "building the image"
quietly docker build --network host ${BASE_IMAGE:+--build-arg "BASE_IMAGE=$BASE_IMAGE"} \
  -f docker/Dockerfile -t "$REMORA_IMAGE" .
docker image inspect --format '{{.Size}}' "$REMORA_IMAGE" | awk '{printf "image: %.0f MB\n", $1 / 1e6}'

say "the CA first, and a token for each service account"
started=$SECONDS
touch "$SECRETS"/{root-cert.pem,orders.token,till.token}
quietly compose up -d ca
eventually 60 logged ca 'ca ready'
remora() { compose exec -T ca remora "$@"; }
compose exec -T ca cat /var/lib/remora/ca/root-cert.pem > "$SECRETS/root-cert.pem"
for account in orders till; do
  remora token create --state-dir /var/lib/remora/ca --service-account "shop/$account" \
    > "$SECRETS/$account.token"
done

apply() { remora apply --state-dir /var/lib/remora/ca -f -; }
say "the policies, and where the service is"
apply < docker/mesh.yaml

say "the rest: pods, rules of capture, agents, sidecars, apps"
quietly compose up -d
eventually 60 logged till 'accepted as'
printf 'first order over mutual TLS %d s after the first up\n' $((SECONDS - started))

say "STRICT: who is in the mesh gets through, who is not does not"
expect till 200 "plain HTTP in both apps, mutual TLS between them"
expect outsider 000 "plaintext is reset"
eventually 10 logged orders-proxy 'transport=mtls'
logged orders-proxy 'peer_id=spiffe://cluster.local/ns/shop/sa/till' || fail "no peer identity"
logged orders-proxy 'plaintext_on_strict' || fail "the refusal was not logged"

say "PERMISSIVE by remora apply, live, and STRICT again"
sed 's/mode: STRICT/mode: PERMISSIVE/' docker/mesh.yaml | apply
eventually 10 answers outsider 200
expect outsider 200 "plaintext is let in"
expect till 200 "still mutual TLS"
apply < docker/mesh.yaml
eventually 10 answers outsider 000
expect outsider 000 "and no more"
expect till 200 "as before"

say "certificates are renewed, and traffic goes on"
before=$(serials)
eventually 90 more_serials_than "$before"
expect till 200 "with the new certificate"

say "the CA is stopped, and traffic goes on"
quietly compose stop -t 2 ca
expect till 200 "the certificate is still good"
expect outsider 000 "and nobody else gets in"
quietly compose start ca

say "the sidecar of the server is killed: refused, never plaintext"
quietly compose kill orders-proxy
expect outsider 000 "nobody listens"
expect till 000 "nobody listens"
quietly compose start orders-proxy
eventually 30 answers till 200
expect till 200 "it is back"

compose logs --no-color till | grep -c 'accepted as' | xargs printf '\n%s orders were accepted\n'
printf 'everything was as expected\n'
