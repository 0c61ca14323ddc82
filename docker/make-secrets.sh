#!/bin/sh
# Makes what is missing of the secrets that docker-compose.yml reads: sh docker/make-secrets.sh [FOLDER, else ./secrets].
# Only their owner may enter the folder. The files themselves can be read, as they are by the users of the containers.
set -eu
folder=${1:-${POTSTILL_SECRETS:-secrets}}
mkdir -p "$folder"
chmod 700 "$folder"
for name in postgres_password redis_password store_access_key_id store_secret_access_key grafana_password; do
  [ -s "$folder/$name" ] || head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$folder/$name"
  chmod 444 "$folder/$name"
done
echo "secrets are in $folder; keep a copy in a safe place"
