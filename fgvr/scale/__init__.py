"""engine=ray: workers of a Ray cluster do the work of a session, each with a pool of its own on its own device.

`cluster.py` starts or joins the cluster, `worker.py` is what a worker does, `workers.py` hands out the work and survives their deaths,
`engine.py` is what a session sees of it. ray is imported in functions only.
"""

from fgvr.scale.engine import job_of, some_files, working

__all__ = ["job_of", "some_files", "working"]
