#!/bin/sh
# Stop the server, remove what it and dead runs left in memory and on disk, start it with the allocator's limits:
# scripts/restart_clean.sh [KEY=VALUE ...]. Knowledge bases, runs and the store of answers stay.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}

scripts/stop.sh
"$python" discovering.py mode=memory action=cleanup server.url=null logging=quiet

# As the runtime sets them from inside (configs/runtime); here for libraries that look before it can. What is set already stays.
export PYTORCH_ALLOC_CONF="${PYTORCH_ALLOC_CONF:-expandable_segments:True,garbage_collection_threshold:0.6}"
export PYTORCH_MPS_HIGH_WATERMARK_RATIO="${PYTORCH_MPS_HIGH_WATERMARK_RATIO:-0.7}"
export PYTORCH_MPS_LOW_WATERMARK_RATIO="${PYTORCH_MPS_LOW_WATERMARK_RATIO:-0.5}"
export PYTORCH_ENABLE_MPS_FALLBACK="${PYTORCH_ENABLE_MPS_FALLBACK:-1}"
export MALLOC_MMAP_THRESHOLD_="${MALLOC_MMAP_THRESHOLD_:-8388608}"
export MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-33554432}"
export MALLOC_ARENA_MAX="${MALLOC_ARENA_MAX:-4}"
exec scripts/serve.sh "$@"
