#!/bin/sh
# postgres: a new cluster, then the server, as the official image starts.
set -e
bin=$(echo /usr/lib/postgresql/*/bin)
data=/tmp/pgdata
mkdir -m 700 "$data"
chown postgres "$data"
# The cluster's own short-lived servers must not look like the service.
setpriv --reuid postgres --regid postgres --clear-groups \
  "$bin/initdb" -D "$data" --auth trust >/dev/null 2>&1
exec setpriv --reuid postgres --regid postgres --clear-groups \
  "$bin/postgres" -D "$data" -c unix_socket_directories=/tmp -p 18080
