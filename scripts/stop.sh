#!/bin/sh
# Stop the model server that scripts/serve.sh started: it finishes what runs (server.drain seconds), then is made to.
set -eu
cd "$(dirname "$0")/.."
home=${FGVR_HOME:-./fgvr_home}
pidfile=$home/server.pid
patience=${FGVR_STOP_SECONDS:-45}

if [ ! -f "$pidfile" ]; then
    echo "no server of scripts/serve.sh ($pidfile is not there)"
    exit 0
fi
pid=$(cat "$pidfile")
case $(ps -o args= -p "$pid" 2>/dev/null || true) in
*mode=serve*) ;;
*) # ended by itself, and the number may be another's now
    rm -f "$pidfile"
    echo "process $pid is gone"
    exit 0
    ;;
esac
kill -TERM "$pid"
waited=0
while kill -0 "$pid" 2>/dev/null && [ "$waited" -lt "$patience" ]; do
    sleep 1
    waited=$((waited + 1))
done
if kill -0 "$pid" 2>/dev/null; then
    kill -KILL "$pid"
    echo "process $pid did not end within $patience s and was killed" >&2
else
    echo "stopped"
fi
rm -f "$pidfile"
