#!/bin/sh
# Start the model server in the background: scripts/serve.sh [KEY=VALUE ...]    (models=qwen2_5_vl_7b server.port=8001 ...)
# Waits until /health says so. The process id lies in $FGVR_HOME/server.pid, logs in $FGVR_HOME/logs. Stop it with scripts/stop.sh.
set -eu
cd "$(dirname "$0")/.."
home=${FGVR_HOME:-./fgvr_home}
pidfile=$home/server.pid
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
patience=${FGVR_START_SECONDS:-300}
mkdir -p "$home/logs"

if [ -f "$pidfile" ] && kill -0 "$(cat "$pidfile")" 2>/dev/null; then
    echo "already running: process $(cat "$pidfile") (scripts/stop.sh stops it)" >&2
    exit 1
fi

# What start-up says, a generated admin token among it, is for the owner's eyes alone; the dated logs never hold it.
said=$home/logs/start.txt
(umask 077 && : >"$said")
nohup "$python" discovering.py mode=serve "$@" >>"$said" 2>&1 &
pid=$!
echo "$pid" >"$pidfile"

waited=0
while [ "$waited" -lt "$patience" ]; do
    if ! kill -0 "$pid" 2>/dev/null; then
        rm -f "$pidfile"
        cat "$said" >&2
        exit 1
    fi
    url=$(sed -n 's/^fgvr serves at //p' "$said")
    if [ -n "$url" ] && "$python" -c '
import sys, urllib.request
ask = urllib.request.build_opener(urllib.request.ProxyHandler({}))
ask.open(sys.argv[1] + "/health", timeout=30).read()
' "$url" 2>/dev/null; then
        sed -n '/^fgvr serves at\|^WARNING\|^admin token/p' "$said"
        exit 0
    fi
    sleep 1
    waited=$((waited + 1))
done
echo "not healthy after $patience s; it goes on starting (process $pid, $said)" >&2
exit 1
